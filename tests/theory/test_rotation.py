"""Which way Algorithm 2 turns, against finite differences in numpy and scans over angles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symmetrax import theory

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

DRAWS = 1000


@pytest.fixture(scope="module")
def random_steps():
    """Roots (symmetric or not), points, angles, and rates that are a share of 1/(l1 + l2)."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(4 * DRAWS, 2, 2))
    roots = roots[np.linalg.cond(roots) < 1e3][:DRAWS]
    roots[: DRAWS // 2] = np.einsum("kji,kjl->kil", roots[: DRAWS // 2], roots[: DRAWS // 2])
    points, angles = random.normal(size=(DRAWS, 2)), random.uniform(-3, 3, DRAWS)
    return roots, points, angles, 1 / np.sum(roots**2, axis=(1, 2))


@functools.cache
def compiled(name, order):
    statement = functools.partial(getattr(theory, name), order=order)
    return jax.jit(jax.vmap(statement))


def over(name, *arrays, order=2):
    return jax.tree.map(np.asarray, compiled(name, order)(*map(jnp.asarray, arrays)))


def loss_after(roots, points, angles, rates, fixed=None):
    """f(x+) in numpy, with the inverse of the root; the gradient of another angle if `fixed` is given."""

    def there(angles):
        c, s = np.cos(angles), np.sin(angles)
        turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
        return np.einsum("kij,kjl,klm,km->ki", np.linalg.inv(roots), turn, roots, points)

    forms = np.einsum("kji,kjl->kil", roots, roots)
    y = there(angles)
    held = y if fixed is None else there(fixed)
    after = y - 2 * rates[:, None] * np.einsum("kij,kj->ki", forms, held)
    return np.einsum("ki,kij,kj->k", after, forms, after)


@pytest.mark.parametrize("order", [1, 2])
def test_autodiff_the_closed_form_and_differences_agree(random_steps, order):
    roots, points, angles, threshold = random_steps
    rates = threshold * np.random.default_rng(1).uniform(0.05, 1.5, DRAWS)
    sides = over("angle_slope", roots, points, angles, rates, order=order)
    scale = np.sum(np.einsum("kij,kj->ki", roots, points) ** 2, axis=1)
    # Relative to the loss: at a crossing of zero nothing else is meaningful.
    assert np.max(np.abs(sides.left - sides.right) / scale) < 1e-8
    fixed = angles if order == 1 else None
    up = loss_after(roots, points, angles + 1e-5, rates, fixed)
    down = loss_after(roots, points, angles - 1e-5, rates, fixed)
    gentle = np.linalg.cond(roots) < 30  # differences lose digits with the condition number
    assert np.max(np.abs((up - down) / 2e-5 - sides.right)[gentle] / scale[gentle]) < 1e-7


def test_the_printed_formula_is_wrong_in_size_and_sign(random_steps):
    roots, points, _, threshold = random_steps
    roots, points, threshold = (x[: DRAWS // 2] for x in (roots, points, threshold))  # symmetric, as printed
    angles = np.random.default_rng(2).uniform(-np.pi, np.pi, len(roots))
    rates = 0.5 * threshold
    right = over("angle_slope", roots, points, angles, rates).right
    printed = jax.vmap(theory.printed_angle_slope)(*map(jnp.asarray, (roots, points, rates)))
    error = np.abs(printed - right) / np.abs(right)
    assert 1.0 < np.median(error) < 2.0
    assert 0.45 < np.mean(np.sign(printed) != np.sign(right)) < 0.55
    diagonal = np.stack([np.diag(np.sort(d)) for d in np.random.default_rng(3).uniform(0.5, 3, (100, 2))])
    right = over("angle_slope", diagonal, points[:100], np.zeros(100), np.full(100, 0.02)).right
    printed = jax.vmap(theory.printed_angle_slope)(
        *map(jnp.asarray, (diagonal, points[:100], np.full(100, 0.02)))
    )
    np.testing.assert_allclose(printed, right, rtol=1e-10)  # where both its omissions change nothing


@pytest.mark.parametrize(("factor", "share"), [(0.99, 1.0), (1.01, 0.0)])
def test_below_the_threshold_every_update_turns_to_the_short_axis_and_above_none(random_steps, factor, share):
    roots, points, angles, threshold = random_steps
    np.testing.assert_allclose(
        jax.vmap(theory.turning_threshold)(jnp.asarray(roots)),
        1 / np.linalg.eigvalsh(np.einsum("kij,klj->kil", roots, roots)).sum(axis=1),
        rtol=1e-10,
    )
    rates = factor * threshold
    sides = over("turn_to_short_axis", roots, points, angles, rates)
    assert np.mean(sides.left > 0) == share
    assert np.mean(sides.right > 0) == share
    assert np.all(sides.applies == (factor < 1))
    # Which axis is which, by numpy: a small turn along the update makes the share on the top axis grow.
    _, axes = np.linalg.eigh(np.einsum("kij,klj->kil", roots, roots))
    slope = over("angle_slope", roots, points, angles, rates).left

    def steep(angles):
        c, s = np.cos(angles), np.sin(angles)
        turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
        u = np.einsum("kij,kjl,kl->ki", turn, roots, points)
        return np.sum(u * axes[:, :, 1], axis=1) ** 2 / np.sum(u**2, axis=1)

    toward = steep(angles - 1e-6 * np.sign(slope)) > steep(angles)
    assert np.mean(toward) == pytest.approx(share, abs=2e-3)  # within 1e-6 of an axis a turn may pass it
    first = over("turn_to_short_axis", roots, points, angles, rates, order=1)
    assert np.all(first.left > 0)
    assert np.all(first.applies)


def test_the_update_is_fastest_half_way_in_coordinates_where_level_sets_are_circles():
    random = np.random.default_rng(4)
    for _ in range(5):
        root = random.normal(size=(2, 2))
        root = root.T @ root + 0.1 * np.eye(2)
        values, axes = np.linalg.eigh(root @ root.T)
        psi = np.linspace(0, np.pi / 2, 4001)
        points = np.linalg.solve(root, axes @ np.stack([np.cos(psi), np.sin(psi)])).T
        rates = np.full(len(psi), 0.3 / values.sum())
        slopes = over("angle_slope", np.tile(root, (len(psi), 1, 1)), points, np.zeros(len(psi)), rates).left
        top = np.argmax(np.abs(slopes))
        near = slice(top - 3, top + 4)  # a parabola through the largest values: beyond the grid's step
        a, b, _ = np.polyfit(psi[near] - psi[top], np.abs(slopes[near]), 2)
        assert psi[top] - b / (2 * a) == pytest.approx(np.pi / 4, abs=1e-6)


def test_the_first_order_slope_is_a_half_of_the_second_for_small_rates_and_more_for_larger(random_steps):
    roots, points, angles, threshold = random_steps
    first, second = (
        over("angle_slope", roots, points, angles, 1e-3 * threshold, order=order).right for order in (1, 2)
    )
    np.testing.assert_allclose(first / second, 0.5 / (1 - 1e-3), rtol=1e-9)
    first, second = (
        over("angle_slope", roots, points, angles, 0.8 * threshold, order=order).left for order in (1, 2)
    )
    assert np.median(np.abs(first / second - 2.5)) < 1e-9


def test_the_teleport_keeps_the_loss_to_twelve_digits(random_steps):
    roots, points, angles, _ = random_steps
    there = over("step_after_turn", roots, points, angles, np.zeros(DRAWS))
    before, after = (np.sum(np.einsum("kij,kj->ki", roots, x) ** 2, axis=1) for x in (points, there))
    gentle = np.linalg.cond(roots) < 30
    np.testing.assert_allclose(after[gentle], before[gentle], rtol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_bad_roots_and_orders_are_rejected():
    x, angle = jnp.ones(2), jnp.array(0.0)
    with pytest.raises(ValueError, match=r"must have shape \(2, 2\), got \(3, 3\)"):
        theory.angle_slope(jnp.eye(3), x, angle, 0.1)
    with pytest.raises(ValueError, match=r"condition number is (inf|nan)"):
        theory.angle_slope(jnp.ones((2, 2)) * 0, x, angle, 0.1)
    with pytest.raises(ValueError, match="`root` must be invertible"):
        theory.turning_threshold(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="`order` must be 1 or 2, got 3"):
        theory.angle_slope(jnp.eye(2), x, angle, 0.1, order=3)
    assert theory.angle_slope(np.array([[2, 1], [0, 1]]), np.array([1, 1]), 0.3, 0.05).applies  # integers
    singular = jax.jit(lambda root: theory.turn_to_short_axis(root, x, angle, 0.1).applies)
    assert not singular(jnp.ones((2, 2)))
    assert not theory.angle_slope(jnp.eye(2), x, jnp.array(0.1), jnp.nan).applies
    with pytest.raises(ValueError, match="use as `angle` a point"):
        theory.angle_slope(jnp.eye(2), x, jnp.array(jnp.nan), 0.1)
    with pytest.raises(ValueError, match="use as `x` a point that is not finite"):
        theory.angle_slope(jnp.eye(2), jnp.array([jnp.nan, 1.0]), angle, 0.1)
