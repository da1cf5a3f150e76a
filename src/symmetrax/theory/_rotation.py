"""Which way Algorithm 2 turns on a quadratic of the plane.

Section 4.2 and appendix B of arXiv:2504.15399: f(x) = ||root x||^2, teleported by x -> root^-1 R(angle) root
x and followed by one gradient step. `root` has shape (2, 2) and is invertible, angles are in radians, and
everything runs under `jit` and `vmap`.
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

    With order 1 the gradient is a constant for whoever differentiates.

    **Errors:** ValueError for a singular `root`, numbers that are not finite, and other orders.

    >>> import jax.numpy as jnp
    >>> step_after_turn(jnp.eye(2), jnp.array([1.0, 0.0]), jnp.array(0.0), 0.25).tolist()
    [0.5, 0.0]
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}.")
    root, x = _check_root(root), vector("x", x, 2)
    check_numbers("angle", angle)
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
    """The derivative by `angle` of the loss after the step: by autodiff, and in closed form.

    With root root' = Q diag(l1, l2) Q', l1 <= l2, det Q = 1, z = Q' R(angle) root x, r its length, psi its
    angle, and mu_i = (1 - 2 rate l_i)^order,

        left = d f(x+) / d angle  =  right = r^2 (mu_2 - mu_1) sin(2 psi)

    Equal for every rate and every invertible root, symmetric or not (`applies`). It is largest at psi = 45
    degrees: half way between the axes in coordinates where level sets are circles, not in those of x.
    Appendix B has neither Q nor the angle: `printed_angle_slope`. Order 1 gives 1 / (2 - 2 rate (l1 + l2))
    times order 2: half for small rates. Errors as in `step_after_turn`. Source: derived here for section 4.2
    of arXiv:2504.15399.

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
    """The same derivative as it is printed: 2 (root x)' diag(mu_1, mu_2) R(90 degrees) root x.

    Appendix B of arXiv:2504.15399. It lacks the eigenbasis Q and the angle, so it is right only if `root` is
    diagonal with ascending entries and the angle zero; elsewhere its sign is wrong about half of the time.

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
    """How fast a descent step on the angle turns the point toward the short axis of its level set.

        left = turn, by autodiff  =  right = r^2 (mu_1 - mu_2) |sin(2 psi)|

    in the words of `angle_slope`; positive means toward the eigenvector of the larger eigenvalue, where
    gradients are large. `applies` where the rate is below `turning_threshold(root)`, and there both are
    positive off the axes. Above it the update turns to the *long* axis: appendix B of arXiv:2504.15399 needs
    this condition and does not have it. Rates up to 1/L, L = 2 l2, satisfy it. With order 1 the turn is to
    the short axis at every rate.

    >>> import jax.numpy as jnp
    >>> root, x = jnp.diag(jnp.array([0.5, 3.0])), jnp.array([1.0, 1.0])
    >>> rates = turning_threshold(root) * jnp.array([0.99, 1.01])
    >>> [bool(turn_to_short_axis(root, x, jnp.array(0.0), rate).left > 0) for rate in rates]
    [True, False]
    """
    slope, toward = _slope_and_side(root, x, angle, rate, order)
    below = jnp.array(True) if order == 1 else jnp.asarray(rate) < turning_threshold(root)
    return judged(-toward * slope.left, -toward * slope.right, below & slope.applies)


def turning_threshold(root: Float[Array, "2 2"]) -> Float[Array, ""]:
    """1 / (l1 + l2), for the eigenvalues of root root': the rate below which angles turn to the short axis.

    (1 - 2 rate l2)^2 < (1 - 2 rate l1)^2 exactly if rate (l1 + l2) < 1.

    >>> import jax.numpy as jnp
    >>> turning_threshold(jnp.diag(jnp.array([1.0, 2.0]))).item()
    0.20000000298023224
    """
    return 1 / jnp.sum(jnp.square(_check_root(root)))


def _slope_and_side(
    root: Array, x: Array, angle: float | Array, rate: float | Array, order: int
) -> tuple[Sides, Float[Array, ""]]:
    """`angle_slope`, and the sign of a turn to the short axis."""

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

    A closed form: the long axis is at half the angle of the deviator, turned by 90 degrees.
    """
    (a, b), (_, d) = matrix
    middle, radius = (a + d) / 2, safe_norm(jnp.stack([(a - d) / 2, b]))
    half = jnp.arctan2(b, (a - d) / 2 + (radius == 0)) / 2  # the direction of the larger one
    c, s = jnp.cos(half), jnp.sin(half)
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
            f"in {root.dtype}: level sets of ||root x||^2 are then no ellipses, and nothing can be learned."
        )
    return root
