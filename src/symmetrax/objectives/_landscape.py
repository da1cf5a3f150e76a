"""Objectives that describe the surroundings of a point: curvature and sharpness of the loss and the orbit."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import conjugate, pairing, safe_norm, shift, squared_norm, times
from symmetrax.objectives._base import AbstractObjective
from symmetrax.symmetry._base import AbstractLieSymmetry


class GuaranteedDecrease(AbstractObjective):
    """||g||^4 / (g' H g): twice the gain of a gradient step of optimal size on the quadratic model.

    With g and H the gradient and Hessian at `params`, the model f - s ||g||^2 + s^2/2 g'Hg is smallest at
    step size s = ||g||^2 / g'Hg. Unlike ||g||^2, this does not reward points that are steep only because they
    are sharply curved, where only tiny steps make progress.

    `floor` bounds the curvature along the gradient, g'Hg / ||g||^2, from below, because along straight or
    concave directions the model promises more than is achievable. There the value is ||g||^2 / floor, the
    gain of the step size 1 / floor: set `floor` to 1 over the largest step size that you would take. It has
    the units of a second derivative of the loss and may be an array. The value and its derivative are zero at
    zero gradient.

    >>> import jax.numpy as jnp
    >>> curvature = jnp.array([1.0, 4.0])
    >>> value_fn = lambda x: jnp.sum(curvature * x**2) / 2
    >>> float(GuaranteedDecrease()(value_fn, jnp.array([0.0, 3.0])))  # one step reaches the minimum from 18
    36.0
    """

    floor: float | Float[Array, ""] = 0.1

    def __check_init__(self):
        if isinstance(self.floor, int | float) and not self.floor > 0:
            raise ValueError(f"GuaranteedDecrease needs floor > 0, got floor={self.floor}.")

    @property
    def cost(self) -> float:
        return 3.0

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        gradient = conjugate(jax.grad(value_fn)(params))
        # In units of the norm, which cancel: ||g||^4 would overflow single precision. The unit is held
        # constant in derivatives, because a derivative with respect to a unit that cancels is zero.
        norm = jax.lax.stop_gradient(safe_norm(gradient))
        norm = jnp.where(norm == 0, 1.0, norm)
        direction = times(1 / norm, gradient)
        _, curved = jax.jvp(jax.grad(value_fn), (params,), (direction,))
        square = squared_norm(direction)
        bending = jnp.maximum(pairing(direction, conjugate(curved)), self.floor * square)
        return norm * (norm * jnp.square(square) / jnp.where(square == 0, 1.0, bending))


class Sharpness(AbstractObjective):
    """Mean of the loss around a point: value_fn(params + r d) over unit directions d and `radii` r.

    Larger is sharper; `negate(Sharpness(...))` seeks flat points. The loss at the point itself is constant on
    an orbit and is not subtracted. Both signs of each direction are evaluated, so the slope cancels. On a
    quadratic with Hessian H in n dimensions, the mean is value_fn(params) + mean(r^2) tr(H) / (2 n), up to
    the sampling of directions. Radii are absolute, in the units of the parameters.

    The `directions` are uniform on the unit sphere of all parameters together. They are derived from `key`
    and the same at every call, so that a search climbs a noise-free function. They are generated one at a
    time and regenerated for derivatives, which limits memory to `2 len(radii)` points.

    Source: the sharpness of arXiv:2305.13404, whose code instead draws coordinates from U[0, 1], so that all
    directions lie in the positive orthant.

    >>> import jax, jax.numpy as jnp
    >>> sharpness = Sharpness(jax.random.key(0), radii=(1.0, 2.0))
    >>> round(float(sharpness(lambda x: jnp.sum(x**2), jnp.zeros(5))), 4), round(sharpness.cost, 2)
    (2.5, 21.33)
    """

    key: Key[Array, ""]
    directions: int = eqx.field(static=True, default=16)
    radii: tuple[float | Float[Array, ""], ...] | Float[Array, " radii"] = (0.01, 0.02, 0.05, 0.1)

    def __check_init__(self):
        check_key(self.key)
        if self.directions < 1:
            raise ValueError(f"Sharpness needs at least one direction, got directions={self.directions}.")
        if len(self.radii) < 1:
            raise ValueError("Sharpness needs at least one radius, got none: pass for example radii=(0.1,).")

    @property
    def cost(self) -> float:
        return 2 * self.directions * len(self.radii) / 3

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        radii = jnp.asarray(self.radii)
        signed = jnp.concatenate([radii, -radii])

        # Without the checkpoint a derivative would store the activations of every direction.
        @jax.checkpoint
        def around(key):
            drawn = optax.tree.random_like(key, params)
            unit = times(1 / safe_norm(drawn), drawn)
            return jnp.mean(jax.vmap(lambda r: value_fn(shift(params, r, unit)))(signed))

        return jnp.mean(jax.lax.map(around, jax.random.split(self.key, self.directions)))


class Curvature(AbstractObjective):
    """Mean curvature of the curves t -> exp(t M) . params at t = 0, over random unit M in the algebra.

    With velocity v and acceleration a of the curve (by nested forward-mode derivatives), the curvature is
    sqrt(|v|^2 |a|^2 - (v . a)^2) / |v|^3, in units of 1 / parameter: 1 / radius for a circle. It is
    evaluated as |a - (a . v/|v|) v/|v|| / |v|^2, which loses no digits where a and v are nearly parallel.
    The length of M does not matter, and a curve that does not move counts as 0. Larger curvature correlated
    with lower validation loss in arXiv:2305.13404, the source of this objective (its code draws a single M,
    with coordinates from U[0, 1]).

    The `curves` directions M are derived from `key` and the same at every call. `batch` is passed to the
    action. No gradient of the loss is computed; eight curves count as one gradient. For rescalings of a
    784-16-10 network they took 0.7 of a gradient over 200 samples, more for smaller batches and less for
    larger ones.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> circle = sx.symmetry.Pullback(sx.symmetry.Affine(jnp.eye(2), jnp.zeros(2)))
    >>> curvature = Curvature(circle, jax.random.key(0))
    >>> round(float(curvature(lambda x: jnp.sum(x**2), jnp.array([0.0, 4.0]))), 4)
    0.25
    """

    symmetry: AbstractLieSymmetry
    key: Key[Array, ""]
    curves: int = eqx.field(static=True, default=8)
    batch: PyTree = None

    def __check_init__(self):
        check_key(self.key)
        if self.curves < 1:
            raise ValueError(f"Curvature needs at least one curve, got curves={self.curves}.")

    @property
    def cost(self) -> float:
        return self.curves / 8

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        def along(key):
            curve = one_parameter_curve(self.symmetry, unit_direction(self.symmetry, key), params, self.batch)
            return curvature(curve, jnp.zeros(()))

        return jnp.mean(jax.vmap(along)(jax.random.split(self.key, self.curves)))


def unit_direction(symmetry: AbstractLieSymmetry, key: Key[Array, ""]) -> Float[Array, "..."]:
    """A random direction of length 1 in the algebra.

    >>> import jax, symmetrax as sx
    >>> direction = unit_direction(sx.tasks.booth().symmetry(), jax.random.key(0))
    >>> direction.shape, round(abs(float(direction[0])), 5)
    ((1,), 1.0)
    """
    drawn = jax.random.normal(key, symmetry.algebra)
    return drawn / safe_norm(drawn)


def one_parameter_curve(
    symmetry: AbstractLieSymmetry, direction: Float[Array, "..."], params: PyTree, batch: PyTree
) -> Callable[[Array], PyTree]:
    """The curve t -> exp(t direction) . params, accurate up to its first three derivatives at t = 0.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> circle = sx.symmetry.Pullback(sx.symmetry.Affine(jnp.eye(2), jnp.zeros(2)))
    >>> curve = one_parameter_curve(circle, jnp.ones(1), jnp.array([4.0, 0.0]), None)
    >>> print(abs(jax.jvp(curve, (0.0,), (1.0,))[1]))
    [0. 4.]
    """
    # `jet`, not `exp`: nested derivatives of a matrix exponential are expensive, and no more than three are
    # needed.
    return lambda t: symmetry.act(symmetry.jet(direction, t), params, batch)


def curvature(curve: Callable[[Array], PyTree], t: Float[Array, ""]) -> Float[Array, ""]:
    """The curvature of a curve of parameters at t, by forward mode; 0 where the curve does not move.

    >>> import jax.numpy as jnp
    >>> circle = lambda t: jnp.array([2 * jnp.cos(t), 2 * jnp.sin(t)])
    >>> round(float(curvature(circle, jnp.array(0.3))), 5)
    0.5
    """

    def velocity(t):
        return jax.jvp(curve, (t,), (jnp.ones_like(t),))[1]

    v, a = jax.jvp(velocity, (t,), (jnp.ones_like(t),))
    speed = safe_norm(v)
    # A speed of 1 in place of 0 keeps the derivative finite where the curve is constant.
    constant = speed == 0
    speed = jnp.where(constant, 1.0, speed)
    along = times(1 / speed, v)
    # Remove the acceleration along the curve before taking the norm; subtracting squares would cancel.
    across = shift(a, -pairing(along, a), along)
    return jnp.where(constant, 0.0, safe_norm(across) / jnp.square(speed))


class NegativeParameterNorm(AbstractObjective):
    """Minus the squared norm of the parameters: increasing it balances layers, without any gradient.

    On the orbit of a rescaling symmetry, the norm is smallest where the incoming weights of each unit are as
    large as its outgoing weights. Unlike the gradient norm, this objective is bounded there.

    >>> import jax.numpy as jnp
    >>> float(NegativeParameterNorm()(None, {"in": jnp.array([3.0]), "out": jnp.array([4.0])}))
    -25.0
    """

    @property
    def cost(self) -> float:
        return 0.0

    def __call__(self, value_fn: Callable | None, params: PyTree) -> Float[Array, ""]:
        return -squared_norm(params)
