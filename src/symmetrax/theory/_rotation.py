"""The direction in which Algorithm 2 of arXiv:2504.15399 rotates on a quadratic of the plane.

Section 4.2 and appendix B: f(x) = ||root x||^2, a teleport x -> root^-1 R(angle) root x, and one gradient
step after it. `root` has shape (2, 2) and is invertible, angles are in radians, and all functions support
`jit` and `vmap`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from symmetrax._matrices import SLACK, floating, vector
from symmetrax._tree import safe_norm
from symmetrax.groups._matrices import matvec
from symmetrax.symmetry._maps import Affine
from symmetrax.symmetry._pullback import Pullback
from symmetrax.theory._sides import Sides, check_numbers, judged


def step_after_turn(
    root: Float[Array, "2 2"],
    x: Float[Array, "2"],
    angle: float | Float[Array, ""],
    rate: float | Float[Array, ""],
    order: int = 2,
) -> Float[Array, "2"]:
    """One step of Algorithm 2 from `x`: y = root^-1 R(angle) root x, then y - rate * gradient of f at y.

    With `order=1` the gradient counts as a constant when you differentiate the result.

    **Errors:** ValueError for a singular `root`, numbers that are not finite, and other orders than 1 and 2.

    >>> import jax.numpy as jnp
    >>> step_after_turn(jnp.eye(2), jnp.array([1.0, 0.0]), jnp.array(0.0), 0.25).tolist()
    [0.5, 0.0]
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}.")
    root, x = _check_root(root), vector("x", x, 2)
    check_numbers("angle", angle)
    # The symmetry of the library itself, so that its action is what the statement is tested on.
    symmetry = Pullback(Affine(root, jnp.zeros_like(x)))
    there = symmetry.act(symmetry.exp(jnp.reshape(floating(angle), 1)), x)
    gradient = 2 * matvec(root.T, matvec(root, there))
    return there - rate * (jax.lax.stop_gradient(gradient) if order == 1 else gradient)


def angle_slope(
    root: Float[Array, "2 2"],
    x: Float[Array, "2"],
    angle: float | Float[Array, ""],
    rate: float | Float[Array, ""],
    order: int = 2,
) -> Sides:
    """The derivative of the loss after the step with respect to `angle`: by autodiff, and in closed form.

    With root root' = Q diag(l1, l2) Q', l1 <= l2, det Q = 1, z = Q' R(angle) root x, r its length, psi its
    angle, and mu_i = (1 - 2 rate l_i)^order,

        left = d f(x+) / d angle  =  right = r^2 (mu_2 - mu_1) sin(2 psi)

    The sides are equal for every rate and every invertible root, symmetric or not (`applies`). The derivative
    is largest at psi = 45 degrees, halfway between the axes in coordinates in which level sets are circles,
    not in those of x. Appendix B omits Q and the angle, see `printed_angle_slope`. Order 1 gives
    1 / (2 - 2 rate (l1 + l2)) times the derivative of order 2, about half of it for small rates. Raises the
    errors of `step_after_turn`. Source: derived here for section 4.2 of arXiv:2504.15399.

    >>> import jax.numpy as jnp
    >>> root, x = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 1.0])
    >>> sides = angle_slope(root, x, jnp.array(0.3), 0.05)
    >>> print(f"{sides.left:.4f} {sides.right:.4f}")
    4.4026 4.4026
    """
    return _slope_and_side(root, x, angle, rate, order)[0]


def printed_angle_slope(
    root: Float[Array, "2 2"], x: Float[Array, "2"], rate: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The same derivative as printed in appendix B: 2 (root x)' diag(mu_1, mu_2) R(90 degrees) root x.

    The formula of arXiv:2504.15399 lacks the eigenbasis Q and the angle, so it is correct only if `root` is
    diagonal with ascending entries and the angle is zero; otherwise its sign is wrong in about half of all
    cases.

    >>> import jax.numpy as jnp
    >>> root, x = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0])
    >>> printed = printed_angle_slope(root, x, 0.05)
    >>> print(f"{printed:.4f} {angle_slope(root, x, jnp.array(0.0), 0.05).left:.4f}")
    -1.8000 -1.8000
    """
    root = _check_root(root)
    low, high = (1 - 2 * rate * _eigenbasis(root @ root.T)[0]) ** 2
    u = matvec(root, vector("x", x, 2))
    return 2 * (high - low) * u[0] * u[1]


def turn_to_short_axis(
    root: Float[Array, "2 2"],
    x: Float[Array, "2"],
    angle: float | Float[Array, ""],
    rate: float | Float[Array, ""],
    order: int = 2,
) -> Sides:
    """How fast a descent step on the angle rotates the point toward the short axis of its level set.

        left = rotation, by autodiff  =  right = r^2 (mu_1 - mu_2) |sin(2 psi)|

    in the notation of `angle_slope`; positive means toward the eigenvector of the larger eigenvalue, where
    gradients are large. `applies` where the rate is below `turning_threshold(root)`; both sides are then
    positive off the axes. Above the threshold the update rotates to the *long* axis: appendix B of
    arXiv:2504.15399 needs this condition but does not state it. Rates up to 1/L, L = 2 l2, satisfy it. With
    order 1 the rotation is toward the short axis at every rate.

    >>> import jax.numpy as jnp
    >>> root, x = jnp.diag(jnp.array([0.5, 3.0])), jnp.array([1.0, 1.0])
    >>> rates = turning_threshold(root) * jnp.array([0.99, 1.01])
    >>> [bool(turn_to_short_axis(root, x, jnp.array(0.0), rate).left > 0) for rate in rates]
    [True, False]
    """
    slope, toward = _slope_and_side(root, x, angle, rate, order)
    # Of order 1 the factors 1 - 2 rate l_i enter without a square, and mu_1 > mu_2 at every rate.
    below = jnp.array(True) if order == 1 else jnp.asarray(rate) < turning_threshold(root)
    return judged(-toward * slope.left, -toward * slope.right, below & slope.applies)


def turning_threshold(root: Float[Array, "2 2"]) -> Float[Array, ""]:
    """The rate below which updates of the angle rotate to the short axis: 1 / (l1 + l2).

    Here l1 and l2 are the eigenvalues of root root', and (1 - 2 rate l2)^2 < (1 - 2 rate l1)^2 if and only if
    rate (l1 + l2) < 1.

    >>> import jax.numpy as jnp
    >>> turning_threshold(jnp.diag(jnp.array([1.0, 2.0]))).item()
    0.20000000298023224
    """
    return 1 / jnp.sum(jnp.square(_check_root(root)))  # the trace of root root'


def _slope_and_side(
    root: Array, x: Array, angle: float | Array, rate: float | Array, order: int
) -> tuple[Sides, Float[Array, ""]]:
    """`angle_slope`, and the sign of a rotation to the short axis."""

    def loss(angle):
        return jnp.sum(matvec(root, step_after_turn(root, x, angle, rate, order)) ** 2)

    root, x, angle = _check_root(root), vector("x", x, 2), floating(angle)
    check_numbers("angle", angle)
    values, axes = _eigenbasis(root @ root.T)
    z = axes.T @ matvec(Pullback(Affine(root, jnp.zeros_like(x))).exp(angle[None]), matvec(root, x))
    low, high = (1 - 2 * rate * values) ** order
    sides = judged(jax.grad(loss)(angle), 2 * (high - low) * z[0] * z[1], _invertible(root))
    return sides, jnp.sign(z[0] * z[1])


def _eigenbasis(matrix: Float[Array, "2 2"]) -> tuple[Float[Array, "2"], Float[Array, "2 2"]]:
    """Eigenvalues of a symmetric 2 x 2 matrix, ascending, and a rotation whose columns are eigenvectors.

    In closed form, from half the angle of the traceless part.
    """
    (a, b), (_, d) = matrix
    middle, radius = (a + d) / 2, safe_norm(jnp.stack([(a - d) / 2, b]))
    # The direction of the larger eigenvalue. For a multiple of the identity every direction will do; the
    # added 1 keeps the derivative of arctan2 finite there.
    half = jnp.arctan2(b, (a - d) / 2 + (radius == 0)) / 2
    c, s = jnp.cos(half), jnp.sin(half)
    # The smaller eigenvalue as det / larger: the difference middle - radius would lose its digits.
    low = jnp.where(
        middle + radius == 0, 0.0, (a * d - b * b) / jnp.where(middle + radius == 0, 1.0, middle + radius)
    )
    return jnp.stack([low, middle + radius]), jnp.stack([jnp.stack([s, c]), jnp.stack([-c, s])])


def _invertible(root: Float[Array, "2 2"]) -> Bool[Array, ""]:
    # For 2 x 2 matrices the squared norm over |det| is the condition number plus its inverse.
    (a, b), (c, d) = root
    size = jnp.sum(jnp.square(root))
    return jnp.abs(a * d - b * c) > 2 * SLACK * jnp.finfo(root.dtype).eps * size


def _check_root(root: Array) -> Float[Array, "2 2"]:
    """`root` in floating point; ValueError for other shapes and, unless it is traced, for singular ones."""
    root = floating(root)
    if root.shape != (2, 2):
        raise ValueError(f"`root` must have shape (2, 2), got {root.shape}.")
    check_numbers("root", root)
    if not isinstance(root, Tracer) and not _invertible(root):
        raise ValueError(
            f"`root` must be invertible, but its condition number is {np.linalg.cond(np.asarray(root)):.1e} "
            f"in {root.dtype}: pass a root for which the level sets of ||root x||^2 are ellipses."
        )
    return root
