"""Algorithm 2 as an optax transformation, against its closed form on quadratics and finite differences."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

A = np.diag([0.25, 9.0])
START = np.array([-5.0, 3.5])


@eqx.filter_jit
def run(optimizer, loss, params, steps):
    """Losses, points and coordinates of `steps` steps; the optimizer is given nothing but the gradient."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (loss(params), params, state.algebra)

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[1]


def closed_form(matrix, x, alpha, beta, steps, order=2):
    """Algorithm 2 on x'Ax in numpy, its angle by the corrected formula: f after each step, and all angles."""
    values, axes = np.linalg.eigh(matrix)
    axes[:, 1] *= np.sign(np.linalg.det(axes))
    root = (axes * np.sqrt(values)) @ axes.T
    angle, losses, angles = 0.0, [], []
    for _ in range(steps):
        angles.append(angle)
        c, s = np.cos(angle), np.sin(angle)
        u = np.array([[c, -s], [s, c]]) @ root @ x
        y = np.linalg.solve(root, u)
        x = y - 2 * alpha * matrix @ y
        z = axes.T @ u
        low, high = (1 - 2 * alpha * values) ** order
        angle -= beta * 2 * (high - low) * z[0] * z[1]
        losses.append(x @ matrix @ x)
    return np.array(losses), np.array(angles)


def quadratic(matrix):
    return lambda x: x @ jnp.asarray(matrix) @ x


def online(matrix, alpha, beta, **options):
    symmetry = sx.symmetry.QuadraticForm(jnp.asarray(matrix))
    return sx.online_teleported(optax.sgd(alpha), symmetry, beta, guard=None, **options)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("turned", [0.0, 0.7])
def test_it_is_the_closed_form_on_quadratics(order, turned):
    turn = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    matrix = turn @ np.diag([0.25, 9.0]) @ turn.T
    optimizer = online(matrix, 0.05, 0.01, order=order)
    losses, _, angles = run(optimizer, quadratic(matrix), jnp.asarray(START), 15)
    known_losses, known_angles = closed_form(matrix, START, 0.05, 0.01, 15, order)
    np.testing.assert_allclose(losses, known_losses, rtol=1e-9)
    np.testing.assert_allclose(angles[:, 0], known_angles, atol=1e-10)
    assert np.ptp(known_angles) > 0.1


@pytest.mark.parametrize(
    ("alpha", "beta", "steps"),
    [
        (1 / 18, 0.0, 194),
        (1 / 18, 1e-3, 183),
        (1 / 18, 1e-2, 24),
        (1 / 18, 1e-1, 3),
        (0.05, 1e-3, 194),
        (0.05, 1e-2, 20),
        (0.05, 1e-1, 7),
        (0.02, 1e-3, 189),
        (0.02, 1e-2, 33),
        (0.02, 1e-1, 33),
    ],
)
def test_the_published_example_is_solved_in_the_known_number_of_steps(alpha, beta, steps):
    optimizer = online(A, jnp.asarray(alpha), jnp.asarray(beta))
    losses = np.asarray(run(optimizer, quadratic(A), jnp.asarray(START), 200)[0])
    solved = losses < 1e-6 * (START @ A @ START)
    assert solved.any()
    assert abs(int(np.argmax(solved)) + 1 - steps) <= 2


def test_on_random_quadratics_it_is_nearly_always_ahead_but_does_not_align():
    """1500 draws, 30 steps, the step size in [.2, 1]/L; beta is not free of scale, beta f(x_0) is."""
    random = np.random.default_rng(0)
    roots, points = random.normal(size=(1500, 2, 2)), 3 * random.normal(size=(1500, 2))
    matrices = np.einsum("kji,kjl->kil", roots, roots) + np.eye(2) / 10
    values, axes = np.linalg.eigh(matrices)
    alphas = random.uniform(0.2, 1.0, 1500) / (2 * values[:, 1])
    starts = np.einsum("ki,kij,kj->k", points, matrices, points)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0))
    def ends(matrix, x, alpha, beta):
        losses, places, angles = run(online(matrix, alpha, beta), lambda x: x @ matrix @ x, x, 30)
        return losses[-1], places, angles[:, 0]

    def arm(beta):
        parts = ends(*map(jnp.asarray, (matrices, points, alphas, np.broadcast_to(beta, 1500))))
        losses, places, angles = map(np.asarray, parts)
        places = np.concatenate([points[:, None], places[:, :-1]], axis=1)
        c, s = np.cos(angles), np.sin(angles)
        root = np.einsum("kij,kj,klj->kil", axes, np.sqrt(values), axes)
        turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
        z = np.einsum("kmi,ktij,kjl,ktl->ktm", axes.transpose(0, 2, 1), turn, root, places)
        short = np.abs(z[:, -1, 1]) / np.linalg.norm(z[:, -1], axis=1)
        if np.any(beta):  # every update goes to the short axis, which is where the product's sign points
            toward = np.diff(angles, axis=1) * z[:, :-1, 0] * z[:, :-1, 1]
            turned = np.linalg.det(axes)[:, None] * toward
            assert np.all(
                turned[np.abs(toward) > 1e-12 * np.abs(np.diff(angles, axis=1)) * starts[:, None]] >= 0
            )
        return np.maximum(losses, 1e-12 * starts), np.degrees(np.arccos(np.minimum(short, 1)))

    plain, away = arm(0.0)
    losses, angles = arm(0.1)
    assert np.all(np.isfinite(losses))
    assert np.mean(losses <= plain * (1 + 1e-9)) > 0.95  # 96.6 %: more is known for no distribution
    assert np.median(np.log10(losses / plain)) <= -3
    assert np.median(away) >= 89
    assert np.median(angles) <= 60
    assert np.mean(angles < 5) < 0.06  # "the correct transformation" is learned by very few
    gentle, _ = arm(0.3 / starts)
    assert np.all(gentle <= plain * (1 + 1e-9))
    assert np.median(np.log10(gentle / plain)) <= -1


@pytest.mark.parametrize("n", mostly_slow([3, 5], ["3"]))
def test_in_more_dimensions_the_slope_is_that_of_finite_differences(n, central_differences):
    random = np.random.default_rng(n)
    root = random.normal(size=(n, n))
    matrix, x = root.T @ root / n + 0.1 * np.eye(n), random.normal(size=n)
    symmetry = sx.symmetry.QuadraticForm(jnp.asarray(matrix))
    start = jnp.asarray(0.3 * random.normal(size=symmetry.algebra))
    alpha = 0.1
    optimizer = online(matrix, alpha, 1.0, start=start, bound=100.0)
    _, _, algebra = run(optimizer, quadratic(matrix), jnp.asarray(x), 2)
    at = jax.jit(lambda theta: symmetry.act(symmetry.exp(theta), jnp.asarray(x)))

    def after(theta):
        y = np.asarray(at(jnp.asarray(theta)))
        end = y - 2 * alpha * matrix @ y
        return [end @ matrix @ end]

    slope = central_differences(after, np.asarray(start))[0]
    np.testing.assert_allclose(algebra[0], start)
    np.testing.assert_allclose(start - algebra[1], slope, atol=1e-6 * np.max(np.abs(slope)))


@pytest.fixture(scope="module")
def network():
    """A small ReLU network, badly scaled, and its loss on fixed data."""
    with jax.enable_x64(True):
        random = np.random.default_rng(1)
        x, y = (jnp.asarray(random.normal(size=(30, n))) for n in (4, 2))
        params = {
            "w1": jnp.asarray(random.normal(size=(6, 4))),
            "w2": jnp.asarray(random.normal(size=(2, 6))),
        }
        params = {"w1": params["w1"] * 3, "w2": params["w2"] / 3}

        def loss(p):
            return jnp.mean((jax.nn.relu(x @ p["w1"].T) @ p["w2"].T - y) ** 2)

        return sx.models.mlp_symmetry(params, ["w1", "w2"]), params, loss


@pytest.mark.parametrize(
    "make",
    [pytest.param(lambda: optax.sgd(0.01), marks=pytest.mark.slow), lambda: optax.adam(0.01)],
    ids=["sgd", "adam"],
)
def test_networks_learn_their_scales_with_any_optimizer(network, make, central_differences):
    symmetry, params, loss = network
    start = jnp.linspace(-0.1, 0.1, 6)
    learned = sx.online_teleported(make(), symmetry, 0.05, start=start)
    gradient = jax.grad(loss)
    state = learned.init(params)
    updates, state = learned.update(gradient(params), state, params, value_fn=loss)
    there = optax.apply_updates(params, updates)
    assert state.outcome == 0
    assert abs(float(state.loss_change)) < 1e-12
    _, state = learned.update(gradient(there), state, there, value_fn=loss)
    inner = make()

    @jax.jit
    def after(theta):
        y = symmetry.act(symmetry.exp(theta), params)
        step, _ = inner.update(gradient(y), inner.init(params), y)
        return loss(optax.apply_updates(y, step))

    slope = central_differences(lambda theta: [after(jnp.asarray(theta))], np.asarray(start))[0]
    np.testing.assert_allclose(state.algebra, start - 0.05 * slope, rtol=1e-6, atol=1e-9)


def test_a_rejected_teleport_stays_and_forgets_its_coordinates():
    task = sx.tasks.rosenbrock()
    x = jnp.array([-1.0, -1.0])
    optimizer = sx.online_teleported(
        optax.sgd(1e-4), task.symmetry(), 0.0, start=jnp.array([1.5]), guard=sx.Guard(jump=0.5)
    )
    gradient = jax.grad(task.loss)(x)
    updates, state = optimizer.update(gradient, optimizer.init(x), x, value_fn=task.loss)
    assert sx.teleportation.OUTCOMES[int(state.outcome)].startswith("too long")
    assert state.algebra == 0
    np.testing.assert_allclose(updates, -1e-4 * gradient, rtol=1e-12)
    with pytest.raises(ValueError, match="value_fn"):
        optimizer.update(gradient, optimizer.init(x), x)


def test_off_schedule_nothing_moves_and_nothing_is_learned():
    matrix = jnp.asarray(A)
    optimizer = online(A, 0.05, 0.01, start=jnp.array([0.2]), schedule={2})
    losses, points, angles = run(optimizer, quadratic(A), jnp.asarray(START), 4)
    plain = START.copy()
    for t in range(2):
        plain = plain - 0.1 * A @ plain
        np.testing.assert_allclose(points[t], plain, rtol=1e-12)
    np.testing.assert_allclose(angles[:3, 0], 0.2, rtol=1e-12)
    assert angles[3, 0] != angles[2, 0]  # learned from the step that teleported
    del matrix, losses


def test_a_step_off_schedule_forgets_nothing_whatever_the_loss_there():
    def loss(x):
        return x @ jnp.asarray(A) @ x

    def infinite(x):
        return jnp.inf * (1 + loss(x))

    optimizer = sx.online_teleported(
        optax.sgd(0.01),
        sx.symmetry.QuadraticForm(jnp.asarray(A)),
        0.0,
        start=jnp.array([0.2]),
        schedule={0, 3},
    )
    x = jnp.asarray(START)
    state = optimizer.init(x)
    for value_fn in (loss, infinite):
        updates, state = optimizer.update(2 * jnp.asarray(A) @ x, state, x, value_fn=value_fn)
        x = x + updates
    assert state.algebra[0] == pytest.approx(0.2)
    assert state.outcome == 0


@pytest.mark.parametrize(
    "make", [lambda: optax.adam(0.01), lambda: optax.rmsprop(0.01)], ids=["adam", "rmsprop"]
)
def test_entries_without_gradient_do_not_stop_the_learning(network, make):
    """A column of zeros in the data: the gradient of its weights is zero, and roots have no slope."""
    symmetry, params, _ = network
    random = np.random.default_rng(2)
    x, y = random.normal(size=(30, 4)), jnp.asarray(random.normal(size=(30, 2)))
    x[:, 1] = 0.0

    def loss(p):
        return jnp.mean((jax.nn.relu(jnp.asarray(x) @ p["w1"].T) @ p["w2"].T - y) ** 2)

    optimizer = sx.online_teleported(make(), symmetry, 0.1, guard=None)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert state.unlearned == 0
    assert np.all(np.abs(state.algebra) > 1e-6)


def test_large_angles_still_rotate_in_single_precision():
    matrix = jnp.asarray(A, jnp.float32)
    optimizer = sx.online_teleported(optax.sgd(1 / 18), sx.symmetry.QuadraticForm(matrix), 0.1, guard=None)
    x = jnp.array([-50.0, 35.0], jnp.float32)
    state, losses = optimizer.init(x), []
    for _ in range(4):
        updates, state = optimizer.update(2 * matrix @ x, state, x)
        x = x + updates
        losses.append(float(x @ matrix @ x))
    assert abs(state.algebra[0]) > 100
    assert state.unlearned == 0
    assert losses[-1] < 0.1 * losses[0]


def test_coordinates_of_groups_that_are_not_compact_stay_bounded(network):
    symmetry, params, loss = network
    optimizer = sx.online_teleported(optax.sgd(1e-3), symmetry, 1e6, bound=0.3)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, value_fn=loss)
        params = optax.apply_updates(params, updates)
    assert np.max(np.abs(state.algebra)) == pytest.approx(0.3)
    assert np.all(np.isfinite(jax.tree.leaves(params)[0]))


def test_an_optimizer_of_its_own_for_the_coordinates_and_a_slope_that_is_not_finite():
    optimizer = sx.online_teleported(
        optax.sgd(0.05), sx.symmetry.QuadraticForm(jnp.asarray(A)), optax.adam(0.02), guard=None
    )
    x = jnp.asarray(START)
    state = optimizer.init(x)
    updates, state = optimizer.update(2 * jnp.asarray(A) @ x, state, x)
    x = x + updates
    _, after = optimizer.update(2 * jnp.asarray(A) @ x, state, x)
    assert abs(after.algebra[0]) == pytest.approx(0.02, rel=1e-6)  # the first step of Adam has its rate
    _, after = optimizer.update(jnp.array([jnp.nan, 1.0]), state, x)
    np.testing.assert_array_equal(after.algebra, state.algebra)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_rejected():
    symmetry = sx.symmetry.QuadraticForm(jnp.asarray(A))
    with pytest.raises(ValueError, match="`order` must be 1 or 2, got 3"):
        sx.online_teleported(optax.sgd(0.1), symmetry, 0.1, order=3)
    with pytest.raises(ValueError, match="`guard` must be a Guard, None or 'default', got 'nope'"):
        sx.online_teleported(optax.sgd(0.1), symmetry, 0.1, guard="nope")
    with pytest.raises(TypeError, match="must be an AbstractLieSymmetry, got LogisticMap"):
        sx.online_teleported(optax.sgd(0.1), type("LogisticMap", (), {})(), 0.1)
    with pytest.raises(ValueError, match=r"shape of the algebra's coordinates, \(1,\), got \(2,\)"):
        sx.online_teleported(optax.sgd(0.1), symmetry, 0.1, start=jnp.zeros(2))
    optimizer = online(A, 0.1, 0.1)
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="needs params"):
        optimizer.update(x, optimizer.init(x))
