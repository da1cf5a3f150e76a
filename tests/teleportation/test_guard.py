"""When a jump is rejected, and that a rejected one leaves no trace in the values and the gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symmetrax as sx

# One jump by a given element: what all teleports do, without a search that chooses it.
from symmetrax.teleportation._step import jump, shortened

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

POINT = (5.0, -5.0)
NOT_FINITE, TOO_LONG, NOT_INVARIANT = 1, 2, 3


class Turn(sx.search.AbstractSearch):
    """Always the same coordinates."""

    angle: float

    def __call__(self, orbit):
        return jnp.full(orbit.symmetry.algebra, self.angle)

    def evaluations(self, symmetry):
        return 0


class Overflows(sx.symmetry.Pullback):
    """A rotation, and where it turns, infinitely far."""

    worst: float = np.inf

    def act(self, a, params, batch=None):
        turned = super().act(a, params, batch)
        return turned + jnp.where(a[1, 0] == 0, 0.0, self.worst) * params


def cases():
    """Task, symmetry, guard and code: one jump for each reason to reject it."""
    booth = sx.tasks.booth()
    tiny = 1e-200 if jax.config.jax_enable_x64 else 1e-30
    steep = sx.symmetry.Triangular(
        jnp.array(tiny), jnp.array(0.0), jnp.array([1.0]), jnp.array([1.0, 0.0, 0.0])
    )
    cliff = eqx.tree_at(lambda task: task.map, sx.tasks.rosenbrock(), steep)
    return {
        "infinite": (booth, Overflows(booth.map), sx.Guard(), NOT_FINITE),
        "NaN": (booth, Overflows(booth.map, np.nan), sx.Guard(), NOT_FINITE),
        "overflow": (cliff, cliff.symmetry(), sx.Guard(), NOT_FINITE),
        "long": (booth, booth.symmetry(), sx.Guard(jump=0.1), TOO_LONG),
        "moved": (booth, sx.tasks.rosenbrock().symmetry(), sx.Guard(jump=1e9), NOT_INVARIANT),
    }


@pytest.mark.parametrize("name", cases())
def test_each_reason_to_reject_has_its_code_and_the_point_stays(name):
    task, symmetry, guard, code = cases()[name]
    x = jnp.array(POINT)
    there, info = sx.teleport(task.loss, x, symmetry, search=Turn(0.5), guard=guard)
    assert info.outcome == code
    assert jnp.array_equal(there, x)
    assert (
        sx.teleportation.OUTCOMES[code].split(":")[0]
        == {1: "not finite", 2: "too long", 3: "not invariant"}[code]
    )
    assert info.after == info.before
    taken, info = sx.teleport(task.loss, x, symmetry, search=Turn(0.5), guard=None)
    assert info.outcome == 0
    assert info.loss_change == -1.0
    assert not jnp.array_equal(taken, x)


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rejected_jump_has_zero_and_finite_gradients(name, double):
    with jax.enable_x64(double):
        task, symmetry, guard, code = cases()[name]

        @eqx.filter_jit
        def displacement(coordinates, x, fallback):
            found = jump(
                symmetry, symmetry.exp(coordinates), x, guard=guard, value_fn=task.loss, fallback=fallback
            )
            return jnp.sum(jnp.sin(found.displacement)), found

        for fallback in (None, jnp.array([0.5, 0.5])):
            derivative = eqx.filter_jit(jax.grad(displacement, argnums=(0, 1), has_aux=True))
            gradients, found = derivative(jnp.array([0.5]), jnp.array(POINT), fallback)
            assert found.outcome == code
            assert not jnp.any(found.displacement)
            for gradient in gradients:
                assert jnp.array_equal(gradient, jnp.zeros_like(gradient))


def test_gradients_through_a_rejected_teleport_are_those_of_staying():
    x = jnp.array(POINT)
    for name, (task, symmetry, guard, _) in cases().items():
        there = lambda x: sx.teleport(task.loss, x, symmetry, search=Turn(0.5), guard=guard)[0]  # noqa: B023, E731
        stay = jax.jit(jax.jacobian(there))(x)
        assert jnp.array_equal(stay, jnp.eye(2)), name


def test_an_element_that_is_not_a_number_is_rejected_with_zero_gradients():
    task = sx.tasks.booth()

    def end(element, x):
        found = jump(task.symmetry(), element, x, guard=sx.Guard(), value_fn=task.loss)
        return jnp.sum(x + found.displacement), found.outcome

    derivative = jax.jit(jax.grad(end, (0, 1), has_aux=True))
    for bad in (jnp.nan, jnp.inf):
        gradients, outcome = derivative(jnp.full((2, 2), bad), jnp.array(POINT))
        assert outcome == NOT_FINITE
        assert jnp.array_equal(gradients[0], jnp.zeros((2, 2)))
        assert jnp.array_equal(gradients[1], jnp.ones(2))


def test_an_accepted_jump_has_the_gradients_of_the_action(float64):
    task, x, xi = sx.tasks.booth(), jnp.array(POINT), jnp.array([0.1])
    symmetry = task.symmetry()

    def end(guard):
        def moved(xi, x):
            return x + jump(symmetry, symmetry.exp(xi), x, guard=guard, value_fn=task.loss).displacement

        return jax.jit(jax.jacobian(moved, (0, 1)))(xi, x)

    expected = jax.jit(jax.jacobian(lambda xi, x: symmetry.act(symmetry.exp(xi), x), (0, 1)))(xi, x)
    for guard in (None, sx.Guard(jump=10.0)):
        for found, right in zip(end(guard), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guard", [None, sx.Guard()])
def test_zero_coordinates_displace_by_exactly_nothing_but_have_a_derivative(guard):
    """A branch on a zero angle would kill the gradient of a head that starts at zero."""
    task = sx.tasks.rosenbrock()
    symmetry = task.symmetry()

    def displacement(xi, x):
        found = jump(symmetry, symmetry.exp(xi), x, guard=guard, value_fn=task.loss)
        return found.displacement, found.displacement

    derivative = jax.jit(jax.jacobian(displacement, has_aux=True))
    for x in jax.random.normal(jax.random.key(0), (20, 2)):
        slope, moved = derivative(jnp.zeros(1), x)
        assert jnp.array_equal(moved, jnp.zeros(2))
        assert jnp.linalg.norm(slope) > 1e-3


judge = jax.jit(lambda guard, move, here, there: guard.judge({"p": move[:1], "q": move[1:]}, here, there))


@settings(max_examples=200)
@given(
    move=st.lists(st.floats(-4, 4) | st.sampled_from([np.nan, np.inf]), min_size=2, max_size=2),
    here=st.floats(-10, 10) | st.sampled_from([0.0, 1e-8]),
    change=st.floats(-1e-2, 1e-2) | st.sampled_from([np.nan, np.inf, 1e-12]),
    bounds=st.tuples(st.floats(1, 6), st.floats(1e-5, 1e-1), st.floats(1e-8, 1e-2)),
)
def test_the_guard_rejects_what_its_bounds_say(float64, move, here, change, bounds):
    """Not finite comes before too long, too long before not invariant; `floor` keeps small losses jumping."""
    there, (longest, tolerance, floor) = here + change, bounds
    guard = sx.Guard(*(jnp.array(b) for b in bounds))
    loss_change, code = judge(guard, np.array(move), here, there)
    if not np.all(np.isfinite([*move, there])):
        assert code == NOT_FINITE
    elif np.hypot(*move) > longest:
        assert code == TOO_LONG
    else:
        allowed = tolerance * max(abs(here), floor)
        assert code == (NOT_INVARIANT if abs(there - here) > allowed else 0)
        assert loss_change == pytest.approx(abs(there - here) / max(abs(here), floor), rel=1e-12)


def test_bounds_must_be_positive():
    for name in ("jump", "tolerance", "floor", "relative"):
        for value in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=f"Guard needs {name} > 0, got {name}={value}"):
                sx.Guard(**{name: value})


def test_a_guard_without_a_loss_says_what_to_pass():
    symmetry = sx.tasks.booth().symmetry()
    with pytest.raises(ValueError, match=r"pass value_fn=.*or guard=None"):
        jump(symmetry, symmetry.identity(), jnp.zeros(2), guard=sx.Guard())


def test_the_longest_jump_is_relative_to_place_and_step():
    """min(jump, relative (||w|| + ||u||)); at the origin, without a step, nothing may move."""
    w, u = {"p": jnp.array([3.0]), "q": jnp.array([4.0])}, {"p": jnp.array([0.0]), "q": jnp.array([-2.0])}
    for relative, step, longest in ((0.1, None, 0.5), (0.1, u, 0.7), (10.0, u, 3.0), (np.inf, None, 3.0)):
        assert float(sx.Guard(relative=relative).longest(w, step)) == pytest.approx(longest)
    assert float(sx.Guard(relative=0.5).longest(jnp.zeros(2))) == 0.0
    assert float(sx.Guard(jump=jnp.inf).longest(jnp.zeros(2))) == np.inf


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_relative_bound_rejects_the_same_turns_in_any_unit(float64, scale):
    start = jnp.array(POINT) / scale
    task = sx.tasks.generalized_booth(scale * np.array([[1.0, 2.0], [2.0, 1.0]]), [-7.0, -5.0])
    guard = sx.Guard(jump=np.inf, relative=0.5)
    codes = [
        int(sx.teleport(task.loss, start, task.symmetry(), search=Turn(t), guard=guard)[1].outcome)
        for t in (0.01, 0.2, 1.0)
    ]
    assert codes == [0, 0, TOO_LONG]


def test_a_learned_step_counts_in_the_scale():
    """From the origin every jump is too long by itself; a step of length 1 allows one of relative * 2."""
    task = sx.tasks.generalized_booth(np.eye(2), [1.0, 0.0], start=[0.0, 0.0])
    step = jnp.array([0.0, 1.0])
    far = {}
    for relative in (0.1, 2.0):
        found = jump(
            task.symmetry(),
            task.symmetry().exp(jnp.array([0.3])),
            step,
            guard=sx.Guard(relative=relative),
            value_fn=task.loss,
            step=step,
        )
        far[relative] = int(found.outcome)
    assert far == {0.1: TOO_LONG, 2.0: 0}


@pytest.mark.parametrize("angle", mostly_slow([0.05, 0.5, -2.0], ("0.05", "-2.0")))
def test_shortening_halves_the_coordinates_until_the_jump_fits(float64, angle):
    task, x = sx.tasks.booth(), jnp.array(POINT)
    guard = sx.Guard(jump=1.0, shorten=True)
    there, info = sx.teleport(task.loss, x, task.symmetry(), search=Turn(angle), guard=guard)
    assert info.outcome == 0
    halvings = np.log2(angle / float(info.algebra[0]))
    assert halvings == pytest.approx(round(halvings), abs=1e-12)
    length = float(jnp.linalg.norm(there - x))
    assert 0 < length <= 1.0
    if halvings > 0:
        twice = task.symmetry().act(task.symmetry().exp(2 * info.algebra), x)
        assert float(jnp.linalg.norm(twice - x)) > 1.0
    np.testing.assert_allclose(task.loss(there), task.loss(x), rtol=1e-12)


def test_what_cannot_be_shortened_enough_is_rejected_as_it_was():
    task, x = sx.tasks.booth(), jnp.array(POINT)
    there, info = sx.teleport(
        task.loss, x, task.symmetry(), search=Turn(1.0), guard=sx.Guard(jump=1e-4, shorten=True)
    )
    assert info.outcome == TOO_LONG
    assert float(info.algebra[0]) == 1.0
    assert jnp.array_equal(there, x)


def test_shortened_jumps_have_the_derivative_of_a_constant_share(float64):
    """d act(exp(share xi), x) / d xi, with the share that was found."""
    task, x = sx.tasks.booth(), jnp.array(POINT)
    symmetry, guard, xi = task.symmetry(), sx.Guard(jump=1.0, shorten=True), jnp.array([0.5])

    @eqx.filter_jit
    def end(xi):
        short = shortened(symmetry, symmetry.exp, xi, x, guard=guard)
        found = jump(symmetry, symmetry.exp(short), x, guard=guard, value_fn=task.loss)
        return found.displacement, short

    slope, short = jax.jit(jax.jacobian(end, has_aux=True))(xi)
    share = short / xi
    expected = jax.jacobian(lambda xi: symmetry.act(symmetry.exp(share * xi), x))(xi)
    assert float(share[0]) < 1
    np.testing.assert_allclose(slope, expected, rtol=1e-10)


def perceptron(depth, activation, kind):
    """A loss of a perceptron without output bias, and the scalings of its units."""
    sizes = [5] + [12] * depth + [3]
    like = {f"w{k}": np.zeros((sizes[k + 1], sizes[k]), np.float32) for k in range(depth + 1)}
    like |= {f"b{k}": np.zeros(sizes[k + 1], np.float32) for k in range(depth)}

    def loss(params, batch):
        x, y = batch
        x = x.astype(params["w0"].dtype)
        for k in range(depth):
            x = activation(x @ params[f"w{k}"].T + params[f"b{k}"])
        out = (x @ params[f"w{depth}"].T).astype(jnp.float32)
        if kind == "squares":
            return jnp.mean((out - y) ** 2)
        return jnp.mean(jax.nn.logsumexp(out, axis=1) - jnp.sum(out * y, axis=1))

    names = [f"w{k}" for k in range(depth + 1)]
    return loss, like, sx.models.mlp_symmetry(like, names, [f"b{k}" for k in range(depth)])


def rescalings(depth, activation, kind, dtype, size, count, known=True):
    """Loss changes and codes that the default guard finds for random scalings, log scales up to `size`."""
    loss, like, symmetry = perceptron(depth, activation, kind)
    rng = np.random.default_rng(0)

    @jax.jit
    def judged(params, batch, xi):
        value_fn = lambda w: loss(w, batch)  # noqa: E731
        gradient = jax.grad(value_fn)(params) if known else None
        found = jump(
            symmetry,
            symmetry.exp(xi),
            params,
            guard=sx.Guard(jump=np.inf),
            value_fn=value_fn,
            gradient=gradient,
        )
        return found.loss_change, found.outcome

    rows = []
    for _ in range(count):
        params = {
            name: rng.normal(size=leaf.shape) * (leaf.shape[-1] / 2) ** -0.5 for name, leaf in like.items()
        }
        params = {name: jnp.asarray(leaf, dtype) for name, leaf in params.items()}
        batch = (
            jnp.asarray(rng.normal(size=(16, 5)), jnp.float32),
            jnp.asarray(rng.random((16, 3)), jnp.float32),
        )
        xi = jnp.asarray(size * rng.uniform(-1, 1, symmetry.algebra), jnp.float32)
        rows.append(judged(params, batch, xi))
    return np.array(rows, float).T


# Every precision at one depth, and the deep network in the coarsest.
NETWORKS = [(5, "bfloat16"), (1, "float32"), (1, "float16"), (1, "bfloat16"), (5, "float32"), (5, "float16")]


@pytest.mark.parametrize(("depth", "dtype"), mostly_slow(NETWORKS, NETWORKS[:3], unpack=True))
def test_exact_rescalings_are_accepted_in_every_precision(dtype, depth):
    for known in (True, False):
        loss_changes, codes = rescalings(depth, jax.nn.relu, "squares", dtype, 1.0, 30, known)
        assert np.all(codes == 0), (loss_changes, codes)


@pytest.mark.parametrize("kind", mostly_slow(["squares", "entropy"], ["squares"]))
def test_scalings_of_a_gelu_network_are_rejected_as_soon_as_rounding_is_exceeded(kind):
    seen = 0
    for size in (1e-3, 1e-2, 1e-1):
        loss_changes, codes = rescalings(1, jax.nn.gelu, kind, "float32", size, 30)
        wrong = loss_changes > 1e-5
        assert np.all(codes[wrong] == NOT_INVARIANT), (loss_changes, codes)
        seen += np.sum(wrong & (loss_changes < 3e-4))
    assert seen > 20


def test_the_tolerance_knows_mixed_precision():
    """Products in bfloat16 of float32 parameters: a rescaling is exact to bfloat16."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    w = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in (("w1", (3, 4)), ("w2", (2, 3)))
    }

    def loss(params, batch):
        short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        hidden = jax.nn.relu(batch.astype(jnp.bfloat16) @ short["w1"].T)
        return jnp.sum((hidden @ short["w2"].T).astype(jnp.float32) ** 2)

    symmetry = sx.models.mlp_symmetry(w, ["w1", "w2"])
    found = [sx.teleport(loss, w, symmetry, x, search=Turn(angle))[1] for angle in (0.1, 0.3, -0.7)]
    assert max(float(info.loss_change) for info in found) > 1e-4
    assert all(info.outcome == 0 for info in found)


def test_a_tolerance_that_you_give_is_the_one_that_counts():
    loss, like, symmetry = perceptron(1, jax.nn.gelu, "squares")
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in like.items()}
    batch = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32), jnp.ones((16, 3))
    for tolerance, code in ((10.0, 0), (jnp.array(10.0), 0), (1e-9, NOT_INVARIANT), (None, NOT_INVARIANT)):
        guard = sx.Guard(tolerance=tolerance, jump=np.inf)
        _, info = sx.teleport(loss, params, symmetry, batch, search=Turn(0.3), guard=guard)
        assert info.outcome == code, (tolerance, info)


def test_where_an_action_is_not_linear_the_loss_may_move_by_a_thousandth():
    task, x = sx.tasks.booth(), jnp.array(POINT)
    nearly = sx.symmetry.Pullback(
        sx.symmetry.Affine(task.map.matrix * (1 + 1e-4 * jnp.eye(2)), task.map.offset)
    )
    _, info = sx.teleport(task.loss, x, nearly, search=Turn(0.1), guard=sx.Guard(jump=np.inf))
    assert 1e-6 < info.loss_change < 1e-3
    assert info.outcome == 0


def test_lengths_of_large_and_of_half_floats_are_finite():
    guard = sx.Guard(jump=np.inf, relative=0.5)
    assert float(guard.longest(jnp.full(4, 1e30))) == pytest.approx(1e30)
    assert float(guard.longest(jnp.full(4, 6e4, jnp.float16))) == pytest.approx(6e4, rel=1e-3)
    assert float(guard.longest(jnp.full(4, 3e30 + 4e30j))) == pytest.approx(5e30)
    loss_change, code = sx.Guard(jump=1e31).judge(jnp.full(4, 1e30), jnp.array(1e30), jnp.array(1e30))
    assert (float(loss_change), int(code)) == (0.0, 0)
