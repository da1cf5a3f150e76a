"""Newton's step, split into a part along the gradient and a part along the level set.

These are the statements of section 4.1 and appendix A of arXiv:2504.15399, with the conditions that they
need. All functions take a gradient of shape (n,) and a Hessian of shape (n, n), and support `jit` and `vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from symmetrax._matrices import floating, regular, symmetric, vector
from symmetrax._tree import safe_norm
from symmetrax.theory._sides import Sides, judged, over, projection


class NewtonParts(NamedTuple):
    """Newton's step `newton` = `parallel` + `symmetry`, each of shape (n,).

    `parallel` is its projection on the gradient, and `symmetry` the rest: a displacement along the level set.

    >>> parts = newton_parts(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, 2.0])))
    >>> bool(jnp.allclose(parts.newton, parts.parallel + parts.symmetry))
    True
    """

    newton: Float[Array, " n"]
    parallel: Float[Array, " n"]
    symmetry: Float[Array, " n"]


def newton_parts(gradient: Float[Array, " n"], hessian: Float[Array, "n n"]) -> NewtonParts:
    """Newton's step -hessian^-1 gradient, and its components along the gradient and along the level set.

        parallel = (newton . gradient) gradient / ||gradient||^2,    symmetry = newton - parallel

    On a positive definite quadratic x' A x, A = B' B, `symmetry` is also the direction in which the gradient
    norm rises fastest along the orbit x -> B^-1 R B x (rotations R measured by their angle).

    **Errors:** ValueError for a Hessian that is not square, not symmetric, not finite or singular to working
    precision, and for a gradient that is not finite or of another size; inside a compiled program the result
    is NaN instead. At a zero gradient all three are zero.

    Source: section 4.1 of arXiv:2504.15399.

    >>> import jax.numpy as jnp
    >>> parts = newton_parts(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0])))
    >>> print([f"{v:.2f}" for v in parts.newton], [f"{v:.2f}" for v in parts.symmetry])
    ['-1.00', '1.50'] ['-1.35', '0.45']
    """
    hessian = symmetric("hessian", hessian, invertible=True)
    gradient = vector("gradient", gradient, len(hessian))
    newton = _newton(gradient, hessian, *jnp.linalg.eigh(hessian))
    parallel = projection(newton, gradient)
    return NewtonParts(newton, parallel, newton - parallel)


def saddle_free(gradient: Float[Array, " n"], hessian: Float[Array, "n n"]) -> Float[Array, " n"]:
    """The step -|hessian|^-1 gradient, with the absolute values of the eigenvalues.

    It is Newton's step where the Hessian is positive definite, and a descent direction everywhere, so it
    leaves saddles instead of approaching them. Raises the errors of `newton_parts`. Source: arXiv:1406.2572.

    >>> import jax.numpy as jnp
    >>> saddle_free(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0]))).tolist()
    [-1.0, -1.5]
    """
    values, axes = jnp.linalg.eigh(symmetric("hessian", hessian, invertible=True))
    # No division by values: the sizes make every component a descent direction.
    step = -axes @ ((axes.T @ vector("gradient", gradient, len(axes))) / jnp.abs(values))
    return jnp.where(regular(values), step, jnp.nan)


def norm_slope(
    gradient: Float[Array, " n"], hessian: Float[Array, "n n"], direction: Float[Array, " n"]
) -> Float[Array, ""]:
    """The derivative of ||gradient||^2 along the part of `direction` that is orthogonal to the gradient.

        2 (hessian gradient) . (direction - projection of direction on gradient)

    For an arbitrary direction it can have either sign. Raises the errors of `newton_parts`, except that
    singular Hessians are allowed. Source: the remark after proposition 4.1 of arXiv:2504.15399.

    >>> import jax.numpy as jnp
    >>> slope = norm_slope(jnp.array([1.0, 1.0]), jnp.diag(jnp.array([1.0, 3.0])), jnp.array([1.0, 0.0]))
    >>> print(f"{slope:.2f}")
    -2.00
    """
    hessian = symmetric("hessian", hessian)
    gradient = vector("gradient", gradient, len(hessian))
    along = vector("direction", direction, len(hessian))
    return 2 * (hessian @ gradient) @ (along - projection(along, gradient))


def norm_growth(gradient: Float[Array, " n"], hessian: Float[Array, "n n"]) -> Sides:
    """The rate of change of the squared gradient norm along the symmetry component of Newton's step.

    With eigenvalues d and components g of the gradient in the eigenbasis,

        left  = symmetry . grad ||gradient||^2
        right = 2 / ||gradient||^2 sum_{i<j} (d_i - d_j)^2 / (d_i d_j) g_i^2 g_j^2

    The sides are equal for every invertible Hessian. `applies` where the Hessian is definite, positive or
    negative: both sides are then at least zero, and zero only if the gradient lies in one eigenspace. This is
    proposition 4.1 of arXiv:2504.15399, which states it for convex functions. In two dimensions the sign is
    that of det(hessian), so the norm decreases at every point with an indefinite Hessian whose gradient has
    both components. At a zero gradient both sides are zero. Raises the errors of `newton_parts`. The right
    side has no derivative with respect to the Hessian where eigenvalues coincide.

    >>> import jax.numpy as jnp
    >>> sides = norm_growth(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0])))
    >>> print(f"{sides.left:.4f} {sides.right:.4f} {sides.applies}")
    -8.1000 -8.1000 False
    """
    hessian = symmetric("hessian", hessian, invertible=True)
    gradient = vector("gradient", gradient, len(hessian))
    values, axes = jnp.linalg.eigh(hessian)
    left = norm_slope(gradient, hessian, _newton(gradient, hessian, values, axes))
    # A negative definite Hessian qualifies too: the products d_i d_j are positive.
    definite = jnp.all(values > 0) | jnp.all(values < 0)
    return judged(left, _growth(gradient, values, axes), definite & regular(values))


def damped_norm_growth(
    gradient: Float[Array, " n"], hessian: Float[Array, "n n"], shift: float | Float[Array, ""]
) -> Sides:
    """The gradient norm rises along the symmetry component of a damped Newton step, for any loss.

    The step is -(hessian + shift I)^-1 gradient, as in trust regions. With s its part orthogonal to the
    gradient,

        left = s . grad ||gradient||^2  =  right = the right side of `norm_growth` for hessian + shift I

    since grad ||g||^2 = 2 hessian g = 2 (hessian + shift I) g - 2 shift g, and s is orthogonal to g.
    `applies` where hessian + shift I is positive definite: both sides are then at least zero. So proposition
    4.1 of arXiv:2504.15399 holds without convexity for damped steps. Raises the errors of `newton_parts`, for
    hessian + shift I. Source: derived here.

    >>> import jax.numpy as jnp
    >>> sides = damped_norm_growth(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0])), 3.0)
    >>> print(f"{sides.left:.2f} {sides.right:.2f} {sides.applies}")
    4.05 4.05 True
    """
    hessian = symmetric("hessian", hessian)
    shift = jnp.asarray(shift, hessian.dtype)
    shifted = symmetric("hessian + shift I", hessian + shift * jnp.eye(len(hessian)), invertible=True)
    gradient = vector("gradient", gradient, len(hessian))
    values, axes = jnp.linalg.eigh(shifted)
    # The slope is that of the loss itself; only the step uses the shifted Hessian.
    left = norm_slope(gradient, hessian, _newton(gradient, shifted, values, axes))
    return judged(left, _growth(gradient, values, axes), (values[0] > 0) & regular(values))


def power_inequality(
    w: Float[Array, " n"],
    matrix: Float[Array, "n n"],
    alpha: float | Float[Array, ""],
    beta: float | Float[Array, ""],
) -> Sides:
    """left = (w' A^alpha w)^2  <=  right = (w' A^(alpha + beta) w)(w' A^(alpha - beta) w), for A > 0.

    A is `matrix`. The lemma is stated for integer powers, and true for real ones. For an A that is not
    positive definite (`applies` is False) it fails: w = (1, 3), A = diag(1, -2), alpha = 0, beta = 1 give 100
    on the left and 59.5 on the right. Powers of negative eigenvalues must be integers, otherwise they are
    NaN. Raises the errors of `newton_parts`. Source: lemma A.1 of arXiv:2504.15399.

    >>> import jax.numpy as jnp
    >>> sides = power_inequality(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, -2.0])), 0.0, 1.0)
    >>> print(f"{sides.left:.1f} {sides.right:.1f} {sides.applies}")
    100.0 59.5 False
    """
    values, axes = jnp.linalg.eigh(symmetric("matrix", matrix, invertible=True))
    # In the eigenbasis every form is a sum of powers of eigenvalues, so the powers may be real.
    squares = (axes.T @ vector("w", w, len(axes))) ** 2

    def form(power) -> Array:
        return jnp.sum(values ** jnp.asarray(power, values.dtype) * squares)

    left, right = form(alpha) ** 2, form(alpha + beta) * form(alpha - beta)
    return judged(left, right, jnp.all(values > 0) & regular(values))


def newton_cosine(gradient: Float[Array, " n"], hessian: Float[Array, "n n"]) -> Sides:
    """The cosine of the angle between -gradient and Newton's step, and Kantorovich's product.

    With eigenvalues d, components g in the eigenbasis, and shares p_i proportional to g_i^2 / d_i,

        left = cos(-gradient, newton)  =  right = (sum_i p_i d_i  sum_i p_i / d_i)^(-1/2)

    for positive definite Hessians (`applies`). On f(x) = x' A x the shares are those of the loss in the
    eigenbasis. The cosine is 1 in every eigenspace, on the short axis of the level set as well as on the long
    one, so a larger gradient norm does not mean a better direction. At a zero gradient both sides are zero.
    Raises the errors of `newton_parts`.

    >>> import jax.numpy as jnp
    >>> sides = newton_cosine(jnp.array([1.0, 1.0]), jnp.diag(jnp.array([1.0, 3.0])))
    >>> print(f"{sides.left:.4f} {sides.right:.4f}")
    0.8944 0.8944
    """
    hessian = symmetric("hessian", hessian, invertible=True)
    gradient = vector("gradient", gradient, len(hessian))
    values, axes = jnp.linalg.eigh(hessian)
    left = _cosine(-gradient, _newton(gradient, hessian, values, axes))
    sizes = jnp.abs(values)  # keeps the right side finite where the statement does not apply
    shares = (axes.T @ gradient) ** 2 / sizes
    right = over(jnp.sum(shares), jnp.sqrt(jnp.sum(shares * sizes) * jnp.sum(shares / sizes)))
    return judged(left, right, jnp.all(values > 0) & regular(values))


def newton_cosine_on_ellipse(
    angle: float | Float[Array, ""], low: float | Float[Array, ""], high: float | Float[Array, ""]
) -> Sides:
    """The same cosine on the level set of low x^2 + high y^2, where it depends only on an angle.

        left = cos(-gradient, newton)  =  right = (1 + sin(2 angle)^2 (high - low)^2 / (4 low high))^(-1/2)

    `angle`, in radians, is that of (sqrt(low) x, sqrt(high) y), 0 on the long axis. The minimum is at 45
    degrees: from the long axis to there, a teleport increases the gradient but worsens the direction; from
    there to the short axis, it improves both. `applies` where 0 < low <= high.

    >>> import jax.numpy as jnp
    >>> sides = newton_cosine_on_ellipse(jnp.array(jnp.pi / 4), 1.0, 3.0)
    >>> print(f"{sides.left:.4f} {sides.right:.4f}")
    0.8660 0.8660
    """
    angle = floating(jnp.asarray(angle))
    values = jnp.stack([jnp.asarray(low, angle.dtype), jnp.asarray(high, angle.dtype)])
    # On the level set low x^2 + high y^2 = 1, the gradient is proportional to (low x, high y).
    point = jnp.stack([jnp.cos(angle), jnp.sin(angle)]) / jnp.sqrt(values)
    left = _cosine(values * point, point)
    right = (1 + jnp.sin(2 * angle) ** 2 * (values[1] - values[0]) ** 2 / (4 * values[0] * values[1])) ** -0.5
    return judged(left, right, (values[0] > 0) & (values[0] <= values[1]))


def alignment_change(
    gradient: Float[Array, " n"], hessian: Float[Array, "n n"], direction: Float[Array, " n"]
) -> Float[Array, ""]:
    """The derivative of cos(-gradient, newton) along `direction`, normalized, with the Hessian constant.

    It is positive where a small displacement brings the gradient step closer to Newton's. It need not be
    positive along the symmetry component of Newton's step, where the gradient norm rises: with log-normal
    eigenvalues (sigma = 1.5) and a uniform direction of A^(1/2) x, it is positive at 50 % of points in two
    dimensions, and at 46, 38, 22 and 0.8 % in 3, 5, 10 and 50. Along the steepest rise of the norm in the
    tangent space it is positive even less often, in three dimensions or more. At a zero gradient or direction
    it is zero. Raises the errors of `newton_parts`.

    Source: section 4.1 of arXiv:2504.15399 suggests that it is positive, without a proof.

    >>> import jax.numpy as jnp
    >>> gradient, hessian = jnp.array([2.0, 0.5]), jnp.diag(jnp.array([1.0, 3.0]))
    >>> bool(alignment_change(gradient, hessian, newton_parts(gradient, hessian).symmetry) < 0)
    True
    """
    hessian = symmetric("hessian", hessian, invertible=True)
    gradient = vector("gradient", gradient, len(hessian))
    along = vector("direction", direction, len(hessian))

    values, axes = jnp.linalg.eigh(hessian)

    def cosine(g):
        return _cosine(-g, _newton(g, hessian, values, axes))

    # Along a displacement d the gradient changes by hessian @ d; the Hessian is held constant.
    return jax.jvp(cosine, (gradient,), (hessian @ over(along, safe_norm(along)),))[1]


def collinearity(gradient: Float[Array, " n"], hessian: Float[Array, "n n"]) -> Sides:
    """At a critical point of ||gradient|| on its level set the gradient is Newton's direction.

    At such a point hessian @ gradient = mu gradient, hence hessian^-1 gradient = gradient / mu, and

        left = |cos(gradient, hessian^-1 gradient)|  =  right = 1

    `applies` where `hessian @ gradient` is parallel to the gradient, to half the digits, and not zero: at the
    end of a complete teleport, not of a small one. Raises the errors of `newton_parts`. Source:
    arXiv:2205.10637.

    >>> import jax.numpy as jnp
    >>> sides = collinearity(jnp.array([0.0, 2.0]), jnp.diag(jnp.array([1.0, 3.0])))
    >>> sides.left.item(), bool(sides.applies)
    (1.0, True)
    """
    hessian = symmetric("hessian", hessian, invertible=True)
    gradient = vector("gradient", gradient, len(hessian))
    left = jnp.abs(_cosine(gradient, _newton(gradient, hessian, *jnp.linalg.eigh(hessian))))
    return judged(left, jnp.ones_like(left), critical(gradient, hessian))


def critical(gradient: Float[Array, " n"], hessian: Float[Array, "n n"]) -> Bool[Array, ""]:
    """Whether `hessian @ gradient` is parallel to the gradient, to half the digits, and not zero.

    >>> bool(critical(jnp.array([0.0, 2.0]), jnp.diag(jnp.array([1.0, 3.0]))))
    True
    """
    # To half the digits: a search cannot locate a maximum more precisely than that.
    turned = hessian @ gradient
    rest = safe_norm(turned - projection(turned, gradient))
    small = jnp.sqrt(jnp.finfo(gradient.dtype).eps) * safe_norm(turned)
    return (rest <= small) & (safe_norm(turned) > 0)


def _newton(
    gradient: Float[Array, " n"],
    hessian: Float[Array, "n n"],
    values: Float[Array, " n"],
    axes: Float[Array, "n n"],
) -> Float[Array, " n"]:
    """-hessian^-1 gradient from eigenvalues and eigenvectors, NaN if singular."""
    # The callers decompose once: two batched decompositions that do not wait for each other can block all
    # threads of a small machine. The linear solve is differentiated instead of the eigenvectors, which have
    # no derivative where eigenvalues coincide.
    values, axes = jax.lax.stop_gradient((values, axes))

    def solve(_, right):
        return axes @ ((axes.T @ right) / values)

    step = -jax.lax.custom_linear_solve(lambda x: hessian @ x, gradient, solve, symmetric=True)
    return jnp.where(regular(values), step, jnp.nan)


def _growth(
    gradient: Float[Array, " n"], values: Float[Array, " n"], axes: Float[Array, "n n"]
) -> Float[Array, ""]:
    """The right side of `norm_growth`."""
    # The double sum counts every pair twice, which is the factor 2, and its diagonal is zero.
    squares = (axes.T @ gradient) ** 2
    ratio = jnp.square(values[:, None] - values) / (values[:, None] * values)
    return over(squares @ ratio @ squares, jnp.sum(squares))


def _cosine(a: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, ""]:
    """The cosine of the angle between two vectors; zero if one is zero."""
    return over(a, safe_norm(a)) @ over(b, safe_norm(b))
