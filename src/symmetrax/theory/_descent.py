"""Guarantees from a larger gradient, for one step, many steps and Newton's step, with and without teleports.

Losses are functions of a pytree `x`; `smoothness` is L, a Lipschitz constant of the gradient; `convexity` is
mu of strong convexity; `rate` is the step size. Conditions on the loss itself cannot be checked at a single
point, so you are responsible for them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._tree import safe_norm, squared_norm
from symmetrax.theory._newton import critical
from symmetrax.theory._sides import Sides, check_numbers, judged

Loss = Callable[[PyTree], Float[Array, ""]]
Number = float | Float[Array, ""]


def descent_lemma(loss: Loss, x: PyTree, rate: Number, smoothness: Number) -> Sides:
    """A short gradient step lowers the loss by at least rate / 2 times the squared gradient norm.

        left = loss(x - rate grad loss(x))  <=  right = loss(x) - rate / 2 ||grad loss(x)||^2

    for every L-smooth loss, convex or not, where rate <= 1 / smoothness (`applies`). The sides are equal for
    a quadratic along its steepest axis at rate 1/L. Source: section 3.1 of arXiv:2504.15399, after
    arXiv:2301.11235.

    >>> import jax.numpy as jnp
    >>> sides = descent_lemma(lambda x: jnp.sum(x**2), jnp.array([1.0, 2.0]), 0.5, 2.0)
    >>> sides.left.item(), sides.right.item()
    (0.0, 0.0)
    """
    return decrease_after_teleport(loss, x, x, rate, smoothness)


def decrease_after_teleport(loss: Loss, x: PyTree, there: PyTree, rate: Number, smoothness: Number) -> Sides:
    """After a teleport, the guaranteed decrease of a gradient step is that of the gradient at the new point.

        left = loss(there - rate grad loss(there))  <=  right = loss(x) - rate / 2 ||grad loss(there)||^2

    where rate <= 1 / smoothness and loss(there) <= loss(x) (`applies`). Only the *guarantee* grows with the
    gradient norm, not necessarily the true decrease. On a positive definite quadratic the decrease is largest
    at the largest gradient, but in three dimensions or more a merely larger gradient may decrease the loss
    less. On a loss that is not convex, even the largest gradient may, and after a longer step the loss may
    rise.

    **Errors:** ValueError for points that are not finite. Source: section 3.1 of arXiv:2504.15399.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> x, there = jnp.array([5.0, -5.0]), jnp.array([-5.0, -3.0])
    >>> sides = decrease_after_teleport(task.loss, x, there, 1 / 18, 18.0)
    >>> bool(sides.applies)  # the loss there is larger than at x
    False
    """
    check_numbers("x", x)
    check_numbers("there", there)
    here = loss(x)
    value, gradient = jax.value_and_grad(loss)(there)
    step = optax.tree.add_scale(there, -jnp.asarray(rate), gradient)
    # One part in a thousand of half the digits: an exact teleport changes the loss by less than this.
    slack = 1e-3 * jnp.sqrt(jnp.finfo(here.dtype).eps) * jnp.abs(here)
    applies = (jnp.asarray(rate) * smoothness <= 1) & (value <= here + slack)
    return judged(loss(step), here - rate / 2 * squared_norm(gradient), applies)


def damped_newton(
    loss: Loss,
    x: Float[Array, " n"],
    optimum: Float[Array, " n"],
    rate: Number,
    convexity: Number,
    hessian_lipschitz: Number,
) -> Sides:
    """From the largest gradient of a level set, a gradient step is a damped Newton step.

    At such a point hessian @ gradient = lambda gradient, so rate * gradient = (rate lambda) hessian^-1
    gradient, and with M = `hessian_lipschitz`, mu = `convexity`,

        left  = ||x - rate gradient - optimum||
              <=  right = (1 - rate lambda) ||x - optimum|| + rate lambda M / (2 mu) ||x - optimum||^2

    `applies` where the gradient is an eigenvector (to half the digits) and 0 <= rate lambda <= 1. The error
    is purely quadratic only at rate = 1 / lambda, which the method does not know. Raises ValueError for
    points that are not finite. Source: proposition 3.2 of arXiv:2305.13404; the constants are derived here.

    >>> import jax.numpy as jnp
    >>> def loss(x): return jnp.sum(jnp.log(jnp.cosh(x)) + 0.1 * x**2)
    >>> sides = damped_newton(loss, jnp.array([0.5, 0.0]), jnp.zeros(2), 0.5, 0.2, 0.77)
    >>> print(f"{sides.left:.3f} {sides.right:.3f} {sides.applies}")
    0.219 0.491 True
    """
    check_numbers("x", x)
    check_numbers("optimum", optimum)
    gradient, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    curvature = gradient @ hessian @ gradient / jnp.maximum(gradient @ gradient, jnp.finfo(x.dtype).tiny)
    newton = rate * curvature  # rate lambda, by the Rayleigh quotient of the gradient
    distance = safe_norm(x - optimum)
    left = safe_norm(x - rate * gradient - optimum)
    right = (1 - newton) * distance + newton * hessian_lipschitz / (2 * convexity) * distance**2
    return judged(left, right, critical(gradient, hessian) & (newton >= 0) & (newton <= 1))


def teleported_sgd(
    inputs: Float[Array, "m n"],
    targets: Float[Array, " m"],
    start: Float[Array, " n"],
    steps: int,
    keys: Key[Array, " repetitions"],
) -> Sides:
    """SGD that teleports before every step reaches a point whose whole orbit is nearly stationary.

    The loss is least squares, loss(w) = ||inputs w - targets||^2 / (2 m), with one sample per step; the group
    consists of the rotations of the fitted residual, which preserve the loss. With beta the largest squared
    row of `inputs`, `loss*` the least loss, rate = 1 / (beta sqrt(steps - 1)), and means over repetitions
    with one key each,

        left  = min_t mean max_a ||grad loss(a . w_t)||^2
              <=  right = (2 beta (loss(w_0) - loss*) + beta loss*) / sqrt(steps - 1)

    since the least loss of one sample is 0. The statement is about expectations: with few keys the left side
    is an estimate, which may exceed the bound. Every sample's loss must be beta-smooth and bounded below, and
    the orbit must have a largest gradient; convexity is not needed. The rate in `steps` is that of SGD
    without teleports. `applies` where the inputs are not zero. Raises ValueError for steps < 2.

    Source: theorem 3.1 of arXiv:2305.13404. Its constants can be proved: with delta_t the expected gap and
    r_t the expected squared norm, smoothness gives delta_{t+1} <= (1 + 1/(T-1)) delta_t - rate r_t +
    loss*/(T-1); weighting step t by (1 + 1/(T-1))^-t gives 1/(1 - 1/e) = 1.58 in place of 2.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.random.normal(jax.random.key(0), (4, 6))
    >>> sides = teleported_sgd(x, x[:, 0], jnp.zeros(6), 50, jax.random.split(jax.random.key(1), 8))
    >>> bool(sides.left <= sides.right)
    True
    """
    if steps < 2:
        raise ValueError(f"The bound divides by sqrt(steps - 1), so it needs steps >= 2, got {steps}.")
    for name, value in (("inputs", inputs), ("targets", targets), ("start", start)):
        check_numbers(name, value)
    left_axes, sizes, axes = jnp.linalg.svd(inputs, full_matrices=False)
    # Directions that the inputs do not determine, to rounding, carry no part of the residual.
    kept = sizes > jnp.finfo(inputs.dtype).eps * max(inputs.shape) * sizes[0]
    fitted = left_axes.T @ targets
    best = axes.T @ jnp.where(kept, fitted / jnp.where(kept, sizes, 1.0), 0.0)
    least = _least_squares(inputs, targets, best)
    beta = jnp.max(jnp.sum(inputs**2, axis=1))
    rate = 1 / (beta * jnp.sqrt(steps - 1.0))

    def largest(w):
        """The largest squared gradient norm on the orbit of w: all of the gap on the steepest axis."""
        return 2 * sizes[0] ** 2 / len(targets) * jnp.maximum(_least_squares(inputs, targets, w) - least, 0.0)

    def teleport(w):
        """Rotates the residual to the nearer end of the steepest axis."""
        seen = jnp.where(kept, axes @ (w - best), 0.0)
        side = jnp.where(seen[0] < 0, -1.0, 1.0)  # not `sign`, which is 0 at 0
        unseen = w - best - axes.T @ seen
        return best + unseen + side * safe_norm(sizes * seen) / sizes[0] * axes[0]

    def repetition(key):
        def step(w, key):
            there = teleport(w)
            i = jax.random.randint(key, (), 0, len(targets))
            return there - rate * (inputs[i] @ there - targets[i]) * inputs[i], largest(w)

        return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

    # First the mean over repetitions, then the minimum over steps, as in the theorem.
    left = jnp.min(jnp.mean(jax.vmap(repetition)(keys), axis=0))
    gap = _least_squares(inputs, targets, start) - least
    right = (2 * beta * gap + beta * least) / jnp.sqrt(steps - 1.0)
    return judged(left, right, sizes[0] > 0)


def isotropic_contraction(
    x: Float[Array, " n"],
    rotation: Float[Array, "n n"],
    rate: Number,
    convexity: Number,
    smoothness: Number,
) -> Sides:
    """No teleport improves, or worsens, the worst case of smooth, strongly convex losses.

    Among the mu-strongly convex, L-smooth losses on which gradient descent is slowest is one with constant
    ||gradient|| on level sets: f = c/2 ||x||^2, with c = mu for rates up to 2 / (mu + L), and c = L above.
    For every teleport `rotation`,

        left = f(y - rate grad f(y)) / f(x), y = rotation x  =  right = max(|1 - rate mu|, |1 - rate L|)^2

    which is the worst factor of gradient descent over the class. `applies` where 0 < mu <= L, rate >= 0, x is
    not zero and `rotation` is orthogonal.

    **Errors:** ValueError for a point that is not finite. Source: proposition 2.6 of arXiv:2403.03362.

    >>> import jax.numpy as jnp
    >>> quarter_turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    >>> sides = isotropic_contraction(jnp.array([1.0, 2.0]), quarter_turn, 0.1, 1.0, 10.0)
    >>> print(f"{sides.left:.2f} {sides.right:.2f} {sides.applies}")
    0.81 0.81 True
    """
    check_numbers("x", x)
    low, high = jnp.asarray(convexity, x.dtype), jnp.asarray(smoothness, x.dtype)
    slowest = jnp.where(rate * (low + high) <= 2, low, high)
    there = rotation @ x

    def loss(x):
        return slowest / 2 * jnp.sum(x**2)

    left = loss(there - rate * jax.grad(loss)(there)) / loss(x)
    right = jnp.maximum(jnp.abs(1 - rate * low), jnp.abs(1 - rate * high)) ** 2
    # The statement holds for rotations only; a teleport that changes the distance would change the loss.
    straight = jnp.max(jnp.abs(rotation.T @ rotation - jnp.eye(len(x))))
    orthogonal = straight <= jnp.sqrt(jnp.finfo(x.dtype).eps)
    return judged(left, right, orthogonal & (low > 0) & (low <= high) & (jnp.asarray(rate) >= 0))


def _least_squares(inputs: Array, targets: Array, w: Array) -> Float[Array, ""]:
    return jnp.sum((inputs @ w - targets) ** 2) / (2 * len(targets))
