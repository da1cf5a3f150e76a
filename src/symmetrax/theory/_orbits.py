"""Effects of a teleport on all later steps: flows, lasting gains, teleporting once, unbounded orbits.

These are the statements of arXiv:2205.10637, proposition 3.4 of arXiv:2305.13404 and proposition B.2 of
arXiv:2403.03362, for any loss and any symmetry of this package.
"""

from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from symmetrax._matrices import symmetric, vector
from symmetrax._tree import safe_norm, squared_norm
from symmetrax.symmetry._base import AbstractSymmetry
from symmetrax.theory._sides import Sides, check_numbers, judged, over, projection

Loss = Callable[[PyTree], Float[Array, ""]]


def flow_acceleration(
    loss: Loss, params: PyTree, symmetry: AbstractSymmetry, element: PyTree, rates: PyTree | None = None
) -> Sides:
    """How fast gradient flow lowers the loss after a group element acts, predicted before it acts.

    With J the Jacobian of w -> a . w at `params`, g the gradient there, and `rates` the optimizer's step
    sizes, one for each parameter (default: ones),

        left = d loss / dt at a . w along -rates * gradient  =  right = -sum rates * (J^-T g)^2

    so an element accelerates the flow if and only if J^-T g is longer than g in the metric of `rates`.
    `applies` where the symmetry preserves the loss, to half the digits. J is formed as a dense matrix, of n^2
    entries for n parameters.

    **Errors:** ValueError for parameters that are not finite. Source: arXiv:2205.10637, section 4.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> x, symmetry = jnp.array([5.0, -5.0]), task.symmetry()
    >>> sides = flow_acceleration(task.loss, x, symmetry, symmetry.exp(jnp.array([0.5])))
    >>> print(f"{sides.left:.1f} {sides.right:.1f}")
    -4818.7 -4818.8
    """
    check_numbers("params", params)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    weights = jnp.ones_like(flat) if rates is None else jax.flatten_util.ravel_pytree(rates)[0]
    there = symmetry.act(element, params)
    downhill = jax.tree.map(lambda r, g: -r * g, unflatten(weights), jax.grad(loss)(there))
    # The time derivative along the flow is a directional derivative.
    value, left = jax.jvp(loss, (there,), (downhill,))
    carried = _carried_gradient(loss, params, symmetry, element)
    return judged(left, -jnp.sum(weights * carried**2), _kept(value, loss(params)))


def norm_kept(loss: Loss, params: PyTree, symmetry: AbstractSymmetry, element: PyTree) -> Sides:
    """An element that moves parameters by an orthogonal matrix preserves the gradient norm.

        left = ||grad loss(a . w)||  =  right = ||grad loss(w)||

    `applies` where the symmetry preserves the loss and the Jacobian of w -> a . w is orthogonal, to half the
    digits: rotations of hidden features and permutations of units, not scalings. Such elements do not help
    gradient descent. Source: arXiv:2205.10637.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.generalized_booth([[2.0, 0.0], [0.0, 2.0]])
    >>> x, symmetry = jnp.array([5.0, -5.0]), task.symmetry()
    >>> sides = norm_kept(task.loss, x, symmetry, symmetry.exp(jnp.array([0.5])))
    >>> print(f"{sides.left:.2f} {sides.right:.2f} {sides.applies}")
    56.57 56.57 True
    """
    check_numbers("params", params)
    jacobian = _jacobian(symmetry, element, params)
    # The Jacobian decides, not the group: an orthogonal element may act by a Jacobian that is not.
    deviation = jnp.max(jnp.abs(jacobian.T @ jacobian - jnp.eye(len(jacobian))))
    there, left = jax.value_and_grad(loss)(symmetry.act(element, params))
    here, right = jax.value_and_grad(loss)(params)
    straight = deviation <= jnp.sqrt(jnp.finfo(jacobian.dtype).eps)
    return judged(safe_norm(left), safe_norm(right), straight & _kept(there, here))


def persistence(
    loss: Loss,
    x: PyTree,
    there: PyTree,
    rate: float | Float[Array, ""],
    smoothness: float | Float[Array, ""],
    steps: int,
) -> Sides:
    """A gain in gradient norm decays no faster than geometrically along gradient descent.

    One step changes the gradient norm by a factor between 1 - rate L and 1 + rate L, with L = `smoothness`.
    Hence, after t = 0, ..., `steps` steps from both points,

        left = ||g_t from there|| / ||g_t from x||
             >=  right = ((1 - rate L) / (1 + rate L))^t ||g_0 from there|| / ||g_0 from x||

    Both are arrays of shape (steps + 1,). A gain of at least ((1 + rate L) / (1 - rate L))^T therefore lasts
    T steps. `applies` where rate L < 1 and the gradient at `x` is not zero.

    **Errors:** ValueError for points that are not finite. Source: arXiv:2205.10637.

    >>> import jax.numpy as jnp
    >>> def loss(x): return x[0] ** 2 / 2 + 2 * x[1] ** 2
    >>> sides = persistence(loss, jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0]), 0.1, 4.0, 2)
    >>> print([f"{v:.2f}" for v in sides.left], [f"{v:.2f}" for v in sides.right])
    ['2.00', '1.33', '0.89'] ['2.00', '0.86', '0.37']
    """
    check_numbers("x", x)
    check_numbers("there", there)

    def norms(point):
        def step(w, _):
            gradient = jax.grad(loss)(w)
            return jax.tree.map(lambda w, g: w - rate * g, w, gradient), safe_norm(gradient)

        return jax.lax.scan(step, point, None, length=steps + 1)[1]

    plain, moved = norms(x), norms(there)  # of shape (steps + 1,), the norms before each step and after all
    left = moved / jnp.where(plain == 0, 1.0, plain)
    bend = jnp.asarray(rate) * smoothness
    right = ((1 - bend) / (1 + bend)) ** jnp.arange(steps + 1) * left[0]
    return judged(left, right, (bend >= 0) & (bend < 1) & (plain > 0))


def teleport_once(
    matrix: Float[Array, "n n"], x: Float[Array, " n"], rate: float | Float[Array, ""], steps: int
) -> Sides:
    """On a positive definite quadratic, one teleport to the largest gradient is as good as one per step.

    The loss is f(x) = x' A x with A = `matrix`. The largest gradient of a level set is on the short axis, and
    gradient descent stays there, so the two trajectories are equal:

        left = points after one teleport at the start  =  right = points with a teleport before every step

    Both have shape (steps + 1, n), including the point after the first teleport. `applies` where A is
    positive definite and its largest eigenvalue simple. Both ends of the axis have the largest gradient; this
    function chooses the nearer one.

    **Errors:** ValueError as in `newton_parts`. Source: arXiv:2205.10637; see `leaves_critical` for other
    losses.

    >>> import jax.numpy as jnp
    >>> sides = teleport_once(jnp.diag(jnp.array([1.0, 3.0])), jnp.array([2.0, 1.0]), 0.1, 5)
    >>> bool(jnp.allclose(sides.left, sides.right))
    True
    """
    matrix = symmetric("matrix", matrix, invertible=True)
    x = vector("x", x, len(matrix))
    values, axes = jnp.linalg.eigh(matrix)

    def path(every: bool):
        def step(x, _):
            there = _steepest(values, axes, x) if every else x
            after = there - 2 * rate * matrix @ there
            return after, after

        start = _steepest(values, axes, x)
        return jnp.concatenate([start[None], jax.lax.scan(step, start, None, length=steps)[1]])

    # With a double eigenvalue the short axis is a plane, and the direction of a teleport is arbitrary.
    gap = values[-1] - values[-2] if len(values) > 1 else values[-1]
    simple = gap > jnp.sqrt(jnp.finfo(x.dtype).eps) * values[-1]
    left = path(every=False)
    return judged(left, path(every=True), jnp.broadcast_to((values[0] > 0) & simple, left.shape))


def steepest_point(matrix: Float[Array, "n n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """The point with the largest gradient on the level set of a positive definite form f(x) = x' matrix x.

    It lies on the short axis, at distance sqrt(f(x) / largest eigenvalue) from the optimum: no point of the
    level set is nearer. Of the two ends of the axis, it is the one on the side of `x`.

    **Errors:** ValueError as in `newton_parts`, and for a matrix that is not positive definite; inside a
    compiled program the point is then NaN. Source: arXiv:2205.10637.

    >>> import jax.numpy as jnp
    >>> steepest_point(jnp.diag(jnp.array([1.0, 4.0])), jnp.array([2.0, 0.0])).tolist()
    [0.0, 1.0]
    """
    matrix = symmetric("matrix", matrix, invertible=True)
    x = vector("x", x, len(matrix))
    values, axes = jnp.linalg.eigh(matrix)
    if not isinstance(values, Tracer) and values[0] < 0:
        raise ValueError(
            f"`matrix` must be positive definite, but its least eigenvalue is {values[0]}, so its level "
            "sets are unbounded and have no largest gradient: pass a matrix with positive eigenvalues."
        )
    return _steepest(values, axes, x)


def leaves_critical(loss: Loss, x: Float[Array, " n"]) -> Float[Array, ""]:
    """How fast gradient flow leaves the points where the gradient norm is critical on its level set.

    At such a point hessian @ gradient = mu gradient. The flow preserves this equation to first order if and
    only if the third derivative T of the loss, applied to the gradient g twice, is parallel to g. The result
    is the part of T(g, g) orthogonal to g, relative to ||T(g, g)|| + ||hessian hessian g||: the rate at which
    the equation is violated. The flow stays at critical points only if it is zero along the whole trajectory,
    as for quadratics (where one teleport is enough) and on the axes of separable losses; elsewhere,
    teleporting at every step leads to other points than teleporting once. At a minimum it is zero, without
    meaning. It is defined at any x, but meaningful at critical points only.

    **Errors:** ValueError for a point that is not finite. Source: definition 3.3 and proposition 3.4 of
    arXiv:2305.13404, in a form that can be evaluated at one point.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> leaves_critical(sx.tasks.booth().loss, jnp.array([-5.0, 3.0])).item()
    0.0
    """
    check_numbers("x", x)
    gradient = jax.grad(loss)(x)

    def curved(x, v):
        return jax.jvp(jax.grad(loss), (x,), (v,))[1]

    # T(g, g) is the derivative of x -> hessian(x) g along g: three nested derivatives, and no third-order
    # tensor.
    third = jax.jvp(lambda x: curved(x, gradient), (x,), (gradient,))[1]
    whole = safe_norm(third) + safe_norm(curved(x, curved(x, gradient)))
    return over(safe_norm(third - projection(third, gradient)), whole)


def norm_at_scale(
    loss: Callable[[Array, Array], Float[Array, ""]],
    first: Float[Array, "h i"],
    second: Float[Array, "o h"],
    scale: float | Float[Array, ""],
) -> Sides:
    """On the orbit of a positively homogeneous network the gradient norm has no largest value.

    If `loss(first, second)` is unchanged by first -> scale first, second -> second / scale,

        left  = ||gradient at that scale||^2
              =  right = ||d loss / d first||^2 / scale^2 + scale^2 ||d loss / d second||^2

    with the derivatives at scale 1. Where they are not zero, the norm is unbounded as the scale grows and as
    it vanishes. So "the largest gradient" does not exist on such level sets, and searches need a bound.
    `applies` where scale > 0 and the loss is preserved, to half the digits.

    Source: the phenomenon of proposition B.2 of arXiv:2403.03362, on an orbit.

    >>> import jax.numpy as jnp
    >>> def loss(v, u): return jnp.sum((u @ jnp.maximum(v, 0) - 1.0) ** 2)
    >>> sides = norm_at_scale(loss, jnp.ones((2, 1)), jnp.ones((1, 2)), 10.0)
    >>> print(f"{sides.left:.2f} {sides.right:.2f} {sides.applies}")
    800.08 800.08 True
    """
    scale = jnp.asarray(scale, first.dtype)
    both = jax.value_and_grad(loss, argnums=(0, 1))
    here, (along_first, along_second) = both(first, second)
    value, there = both(scale * first, second / scale)
    right = squared_norm(along_first) / scale**2 + scale**2 * squared_norm(along_second)
    return judged(squared_norm(there), right, _kept(value, here) & (scale > 0))


def _steepest(
    values: Float[Array, " n"], axes: Float[Array, "n n"], x: Float[Array, " n"]
) -> Float[Array, " n"]:
    """`steepest_point` from the eigenvalues and eigenvectors of its matrix."""
    side = jnp.where(axes[:, -1] @ x < 0, -1.0, 1.0)
    # NaN for a form that is not positive definite, since a compiled program cannot raise.
    distance = safe_norm(jnp.sqrt(jnp.where(values[0] > 0, values, jnp.nan)) * (axes.T @ x))
    return side * distance / jnp.sqrt(values[-1]) * axes[:, -1]


def _kept(there: Float[Array, ""], here: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether two losses are equal to half the digits."""
    return jnp.abs(there - here) <= jnp.sqrt(jnp.finfo(here.dtype).eps) * jnp.abs(here)


def _jacobian(symmetry: AbstractSymmetry, element: PyTree, params: PyTree) -> Float[Array, "n n"]:
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def moved(w):
        return jax.flatten_util.ravel_pytree(symmetry.act(element, unflatten(w)))[0]

    return jax.jacfwd(moved)(flat)


def _carried_gradient(
    loss: Loss, params: PyTree, symmetry: AbstractSymmetry, element: PyTree
) -> Float[Array, " n"]:
    """The gradient at the moved point, J^-T g."""
    # By a dense solve, not by `transport_gradient`: the statement must not be tested by its own
    # implementation.
    gradient = jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0]
    return jnp.linalg.solve(_jacobian(symmetry, element, params).T, gradient)
