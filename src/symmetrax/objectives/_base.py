"""Objectives on an orbit: scalar functions of a point, where larger is better."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import conjugate, safe_norm, squared_norm, total, widened
from symmetrax.objectives._nuclear import nuclear_norm
from symmetrax.symmetry._base import AbstractLieSymmetry

#: An objective: `(value_fn, params) -> scalar`, larger is better. Plain functions qualify.
Objective = Callable[[Callable[[PyTree], Float[Array, ""]], PyTree], Float[Array, ""]]


class AbstractObjective(eqx.Module):
    """Abstract base class of objectives that a search increases along the orbit, with their cost.

    `value_fn` maps parameters to the loss; use `negate` to minimize an objective instead. Derivatives with
    respect to `params` must be finite wherever the loss has them, including where its gradient is zero.

    >>> import symmetrax as sx
    >>> isinstance(sx.objectives.GradientNorm(), AbstractObjective), sx.objectives.GradientNorm().cost
    (True, 1.0)
    """

    @property
    @abstractmethod
    def cost(self) -> float:
        """Cost of one evaluation in gradients of the loss, known before anything is computed.

        An evaluation of the loss counts 1/3, a Hessian-vector product 2.
        """

    @abstractmethod
    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        """Evaluates the point `params`; larger is better."""


class AbstractGradientObjective(AbstractObjective):
    """An objective of the gradient alone: `measure(grad value_fn(params))`.

    If a symmetry carries gradients exactly (`symmetry.transport_gradient`), one gradient determines this
    objective on the whole orbit: a search can call `measure` at no further gradient cost.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> float(sx.objectives.GradientNorm().measure({"w": jnp.array([3.0, 4.0])}))
    25.0
    """

    @property
    def cost(self) -> float:
        return 1.0

    @abstractmethod
    def measure(self, gradient: PyTree) -> Float[Array, ""]:
        """Evaluates a point with this gradient; larger is better."""

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        return self.measure(jax.grad(value_fn)(params))


class AbstractOrbitObjective(AbstractObjective):
    """An objective with a cheaper formula along the orbits of some symmetry.

    >>> import symmetrax as sx
    >>> issubclass(sx.objectives.FeatureGradientNorm, AbstractOrbitObjective)
    True
    """

    @abstractmethod
    def along(
        self, symmetry: AbstractLieSymmetry, params: PyTree, batch: PyTree
    ) -> Callable[[Array], Float[Array, ""]]:
        """Returns the objective at `act(exp(xi), params, batch)` as a function of xi."""


class GradientNorm(AbstractGradientObjective):
    """Norm of the gradient g, in the metric that bounds the gain of a first step.

    A step u of size ||u|| <= s lowers the loss, to first order, by at most s times the dual norm of g. So
    each kind of optimizer has its own metric:

    - `metric="squared"`: ||g||^2, for gradient steps. By the descent lemma, a step of size alpha <= 1/L
      lowers the loss by at least alpha/2 times this, if L bounds the curvature.
    - `metric="l1"`: sum |g_i|, for steps of equal size in every coordinate: sign descent, Adam.
    - `metric="nuclear"`: the sum of the singular values of every matrix in g, for Muon. Leaves with more
      axes are matrices of shape (first, rest); all others count with their Euclidean norm. Singular values
      are computed from matrix products alone, and the derivative is finite for matrices of any rank, and zero
      at zero.

    Source: arXiv:2205.10637 for "squared"; section 2 of arXiv:2409.20325 for the duality.

    >>> import jax.numpy as jnp
    >>> gradient = {"w": jnp.array([[3.0, 0.0], [0.0, -4.0]]), "b": jnp.array([3.0, 4.0])}
    >>> [round(float(GradientNorm(metric).measure(gradient)), 4) for metric in ("squared", "l1", "nuclear")]
    [50.0, 14.0, 12.0]
    """

    metric: Literal["squared", "l1", "nuclear"] = eqx.field(static=True, default="squared")

    def __check_init__(self):
        if self.metric not in ("squared", "l1", "nuclear"):
            raise ValueError(f"GradientNorm needs metric 'squared', 'l1' or 'nuclear', got {self.metric!r}.")

    def measure(self, gradient: PyTree) -> Float[Array, ""]:
        if self.metric == "squared":
            return squared_norm(gradient)
        # Each of these is the dual of the norm that bounds the optimizer's step, so it is the largest
        # decrease that a step of length 1 can promise to first order.
        size = _magnitude if self.metric == "l1" else _spectral_dual
        return total([jnp.sum(size(widened(x))) for x in jax.tree.leaves(gradient)])


#: ||grad value_fn(params)||^2, the objective of arXiv:2205.10637 and the default everywhere.
squared_gradient_norm = GradientNorm()


class LookaheadLoss(AbstractObjective):
    """Minus the loss after `steps` virtual steps of `optimizer`, starting from a fresh state.

    This measures the goal of teleportation directly, accounting for step size, momentum and curvature, at the
    cost of `steps` gradients. `optimizer` is any optax optimizer; it is initialized at the point and receives
    `value_fn`, as line searches and `teleported` require. Every step uses the same batch. Raises ValueError
    if `steps` < 1: without a step, all points of an orbit are equally good.

    Adam and related optimizers have no derivative where a gradient has always been zero (the weights of a
    dead input). There the optimizer is differentiated at a tiny nonzero gradient instead. This computes its
    update twice, but its steps are unaffected.

    >>> import jax.numpy as jnp, optax
    >>> value_fn = lambda x: jnp.sum(x**2)
    >>> float(LookaheadLoss(optax.sgd(0.25), steps=2)(value_fn, jnp.array([4.0])))  # 4, 2, 1
    -1.0
    """

    optimizer: optax.GradientTransformation = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"LookaheadLoss needs at least one step, got steps={self.steps}.")

    @property
    def cost(self) -> float:
        return self.steps + 1 / 3

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        # Line searches and `teleported` need the loss itself; other optimizers ignore these arguments.
        stepper = optax.with_extra_args_support(self.optimizer)

        def step(carry, _):
            w, state = carry
            value, gradient = jax.value_and_grad(value_fn)(w)

            def propose(gradient):
                return stepper.update(gradient, state, w, value=value, grad=gradient, value_fn=value_fn)

            # Adam divides by sqrt(v), whose derivative at v = 0 is infinite: take the value from the exact
            # gradient, but the derivative from one that is nowhere zero.
            exact, nearby = propose(gradient), propose(jax.tree.map(_off_zero, gradient))
            updates, state = jax.tree.map(_with_derivative_of, exact, nearby)
            return (optax.apply_updates(w, updates), state), None

        (last, _), _ = jax.lax.scan(step, (params, stepper.init(params)), None, length=self.steps)
        return -value_fn(last)


class Negated(AbstractObjective):
    """The negative of another objective; created by `negate`.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> flat = Negated(sx.objectives.GuaranteedDecrease())
    >>> flat.cost, float(flat(lambda x: jnp.sum(x**2) / 2, jnp.array([3.0])))
    (3.0, -9.0)
    """

    objective: Objective

    @property
    def cost(self) -> float:
        return cost_of(self.objective)

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        return -self.objective(value_fn, params)


class NegatedGradient(AbstractGradientObjective):
    """The negative of another objective of the gradient alone; created by `negate`.

    Unlike `Negated` it has a `measure`, so that a search still needs a single gradient for a whole orbit.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> float(NegatedGradient(sx.objectives.GradientNorm()).measure(jnp.array([3.0, 4.0])))
    -25.0
    """

    objective: AbstractGradientObjective

    @property
    def cost(self) -> float:
        return self.objective.cost

    def measure(self, gradient: PyTree) -> Float[Array, ""]:
        return -self.objective.measure(gradient)


def negate(objective: Objective) -> AbstractObjective:
    """Negates `objective`, to minimize it: for flatter points, less curvature or a smaller gradient.

    The result costs as much as `objective`, and depends on the gradient alone if `objective` does.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> flattest = negate(sx.objectives.GradientNorm())
    >>> float(flattest(sx.tasks.booth().loss, jnp.array([5.0, -5.0])))
    -2880.0
    """
    return (
        NegatedGradient(objective) if isinstance(objective, AbstractGradientObjective) else Negated(objective)
    )


def cost_of(objective: Objective) -> float:
    """Cost of one evaluation in gradients of the loss: `objective.cost`, or 1 for a plain function.

    >>> import symmetrax as sx
    >>> cost_of(sx.objectives.GuaranteedDecrease()), cost_of(lambda value_fn, params: value_fn(params))
    (3.0, 1.0)
    """
    return objective.cost if isinstance(objective, AbstractObjective) else 1.0


def orbit_derivative(
    value_fn: Callable, params: PyTree, symmetry: AbstractLieSymmetry, batch: PyTree = None
) -> Float[Array, "..."]:
    """Derivative of ||grad value_fn(exp(xi) . params)||^2 in the algebra coordinates xi, at xi = 0.

    It equals 2 (H g) . V, where g and H are the gradient and Hessian at `params` and V is the derivative of
    the action. It costs one Hessian-vector product and one vector-Jacobian product, independent of the
    dimension of the algebra. Its shape is `symmetry.algebra`. Source: the optional input of the code behind
    arXiv:2504.15399.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> orbit_derivative(task.loss, jnp.array([5.0, -5.0]), task.symmetry()).shape
    (1,)
    """
    gradient = jax.grad(value_fn)(params)
    # Contract with H g before differentiating the action: one vector-Jacobian product then serves all algebra
    # coordinates, where the obvious derivative of the norm along the orbit would take one pass for each.
    _, curved = jax.jvp(jax.grad(value_fn), (params,), (conjugate(gradient),))
    _, transposed = jax.vjp(lambda xi: symmetry.act(symmetry.exp(xi), params, batch), symmetry.zero())
    (derivative,) = transposed(jax.tree.map(lambda x: 2 * x, curved))
    return jnp.asarray(derivative)


class OrbitDerivatives(NamedTuple):
    """First and second derivatives of log J along an orbit, in each algebra coordinate.

    >>> OrbitDerivatives._fields
    ('first', 'second')
    """

    first: Float[Array, "..."]
    second: Float[Array, "..."]

    @property
    def relative(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """J' / J and J'' / J.

        >>> [float(x) for x in OrbitDerivatives(jnp.array(3.0), jnp.array(-2.0)).relative]
        [3.0, 7.0]
        """
        return self.first, self.second + self.first**2

    @property
    def peak(self) -> Float[Array, "..."]:
        """The peak t* of the sinusoid c + d cos(2 (t - t*)) with these derivatives at t = 0.

        That is atan2(2 J', -J'') / 2, per coordinate, between -pi/2 and pi/2; 0 where both vanish.

        >>> print(OrbitDerivatives(jnp.array([2.0]), jnp.array([-4.0])).peak * 8 / jnp.pi)
        [2.]
        """
        # J' / J and J'' / J have the same signs and ratio as J' and J'', and arctan2 needs only those.
        first, second = self.relative
        flat = (first == 0) & (second == 0)
        return 0.5 * jnp.arctan2(jnp.where(flat, 0.0, 2 * first), jnp.where(flat, 1.0, -second))


def slopes(along: Callable[[Array], Float[Array, ""]], zero: Float[Array, "..."]) -> OrbitDerivatives:
    """First and second derivatives of log(along(xi)) in each coordinate of xi, at xi = zero.

    If `along` is a squared gradient norm on an orbit, their only units are those of the coordinates: they
    depend neither on the scale of the parameters nor on the scale of the loss. Each coordinate costs two
    nested Jacobian-vector products of `along`. Where `along` is zero, both are zero.

    >>> import jax.numpy as jnp
    >>> found = slopes(lambda xi: jnp.exp(3 * xi[0] + xi[1] ** 2), jnp.zeros(2))
    >>> print(found.first, found.second)
    [3. 0.] [0. 2.]
    """

    def both(direction: Array) -> tuple[Array, Array]:
        def value_and_slope(t: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda t: along(zero + t * direction), (t,), (jnp.ones_like(t),))

        t = jnp.zeros((), zero.dtype)
        (value, slope), (_, curvature) = jax.jvp(value_and_slope, (t,), (jnp.ones_like(t),))
        # Divide numbers of similar size; differentiating the logarithm would square the smallest.
        positive = value > jnp.finfo(value.dtype).tiny
        first, relative = (
            jnp.where(positive, x, 0.0) / jnp.where(positive, value, 1.0) for x in (slope, curvature)
        )
        return first, relative - first**2

    directions = jnp.eye(zero.size, dtype=zero.dtype).reshape(zero.size, *zero.shape)
    first, second = jax.vmap(both)(directions)
    return OrbitDerivatives(first.reshape(zero.shape), second.reshape(zero.shape))


def _spectral_dual(leaf: Array) -> Float[Array, ""]:
    """The nuclear norm of a matrix, the Euclidean norm of anything smaller."""
    return nuclear_norm(leaf.reshape(len(leaf), -1)) if leaf.ndim > 1 else safe_norm(leaf)


def _magnitude(x: Array) -> Float[Array, "..."]:
    """|x| with derivative 0 at 0, where `jnp.abs` has derivative 1."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.abs(jnp.where(zero, 1.0, x)))


def _off_zero(x: Array) -> Array:
    """Replaces zeros in `x` by a tiny number whose square is not zero, so that its root is differentiable."""
    # tiny ** 0.5 would do in exact arithmetic; the decay rates of Adam make the square smaller still.
    return x + jnp.where(x == 0, jnp.finfo(x.dtype).tiny ** 0.4, 0).astype(x.dtype)


def _with_derivative_of(exact, nearby):
    """Returns the value of `exact` with the derivative of `nearby`, for leaves that have a derivative."""
    if not eqx.is_inexact_array(exact):
        return exact
    return jax.lax.stop_gradient(exact) + (nearby - jax.lax.stop_gradient(nearby))
