"""Teleports without a group: never a larger loss, a steeper point, and honest accounts of both."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax import lax

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

BOOTH = np.array([[1.0, 2.0], [2.0, 1.0]])  # f(x) = ||BOOTH x + b||^2


def goldstein_price(w):
    x, y = w
    a = 1 + (x + y + 1) ** 2 * (19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2)
    b = 30 + (2 * x - 3 * y) ** 2 * (18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2)
    return a * b


def booth(w):
    return sx.tasks.booth().loss(w)


def rosenbrock(w):
    return sx.tasks.rosenbrock().loss(w)


class Plane(eqx.Module):
    """One of three functions of the plane, in one program."""

    which: jax.Array

    def __call__(self, x):
        return lax.switch(self.which, [booth, rosenbrock, goldstein_price], x)


def plane(name):
    return Plane(jnp.array(["booth", "rosenbrock", "goldstein-price"].index(name)))


@eqx.filter_jit
def travel(search, f, x):
    return search(f, x)


@eqx.filter_jit
def dense(f, x):
    return f(x), jax.grad(f)(x), jax.hessian(f)(x)


def kkt(f, start, there):
    """The residual that LevelSet documents, from numpy and dense Hessians."""

    def look(x):
        value, g, hessian = (np.asarray(y) for y in dense(f, x))
        return value, g, hessian @ g / (g @ g)

    (f0, _, p0), (value, g, p) = look(start), look(there)
    m = max(0.0, p @ g) / (g @ g)
    off = p - m * g
    return max(off @ off / max(p @ p, p0 @ p0), m * max(f0 - value, 0.0))


def norm_at(f, x):
    return float(np.linalg.norm(dense(f, x)[1]))


def test_booth_reaches_the_steepest_point_of_its_level_set(float64):
    """On f = f0 the largest gradient norm of a quadratic is 2 sqrt(lambda_max f0)."""
    hessian = 2 * BOOTH.T @ BOOTH
    largest = np.linalg.eigvalsh(BOOTH.T @ BOOTH)[-1]
    for start, value, norm in (([5.0, -5.0], 144.0, 72.0), ([7.5, -4.0], 92.25, 57.6281)):
        x = jnp.array(start)
        found = travel(sx.search.LevelSet(), plane("booth"), x)
        g = np.asarray(dense(plane("booth"), found.params)[1])
        assert plane("booth")(found.params) <= value * (1 + 1e-6)
        assert np.linalg.norm(g) == pytest.approx(2 * np.sqrt(largest * value), abs=0.01)
        assert np.linalg.norm(g) == pytest.approx(norm, abs=0.01)
        newton = np.linalg.solve(hessian, g)
        assert g @ newton / np.linalg.norm(g) / np.linalg.norm(newton) >= 0.999
        assert found.converged
        assert found.residual <= 1e-6
        assert found.residual == pytest.approx(kkt(plane("booth"), x, found.params), rel=1e-3, abs=1e-12)
        assert 3 < found.evaluations <= 100
        assert found.evaluations.dtype == jnp.int32


def test_local_searches_stop_where_they_stop_and_say_how_far_from_a_solution(float64):
    """Rosenbrock's orbit has a point of norm 8686; from (-1, -1) the local search does not find it."""
    for name, start, low, high in (
        ("rosenbrock", [-1.0, -1.0], 4000, 8000),
        ("goldstein-price", [0.0, 0.0], 5800, 5815),
    ):
        f, x = plane(name), jnp.array(start)
        found = travel(sx.search.LevelSet(), f, x)
        assert low < norm_at(f, found.params) < high
        assert f(found.params) <= f(x) * (1 + 1e-6)
        assert found.residual == pytest.approx(kkt(f, x, found.params), rel=1e-3, abs=1e-12)
        assert found.converged == (found.residual <= 1e-6)


def test_the_loss_never_rises_and_the_gradient_never_falls(float64):
    """Three functions, three radii, 30 starts."""
    xs = 2 * jax.random.normal(jax.random.key(1), (30, 2))
    which, radii, starts = (
        jnp.repeat(jnp.arange(3), 90),
        jnp.tile(jnp.repeat(jnp.array([0.03, 1.0, 1e3]), 30), 3),
        jnp.tile(xs, (9, 1)),
    )

    @jax.jit
    @jax.vmap
    def cross(which, radius, x):
        f, search = Plane(which), sx.search.LevelSet(steps=12, radius=radius)
        found = search(f, x)
        return found, *(jnp.stack([f(w), jnp.linalg.norm(jax.grad(f)(w))]) for w in (x, found.params))

    found, before, after = cross(which, radii, starts)
    assert jnp.all(after[:, 0] <= before[:, 0] * (1 + 1.000001e-6))
    assert jnp.all(after[:, 1] >= before[:, 1] * (1 - 1e-12))
    assert jnp.sum(after[:, 1] > before[:, 1] * (1 + 1e-6)) >= 250
    assert jnp.all(found.evaluations <= sx.search.LevelSet(steps=12).evaluations())


def test_single_precision_reaches_the_same_maximum():
    x = jnp.array([5.0, -5.0])
    found = travel(sx.search.LevelSet(), booth, x)
    assert found.params.dtype == jnp.float32
    assert norm_at(booth, found.params) == pytest.approx(72.0, abs=0.01)
    assert booth(found.params) <= 144.0 * (1 + 2e-6)


def test_every_gradient_is_counted(float64, monkeypatch):
    """Uncompiled, a gradient calls the loss once, a Hessian-vector product once and goes through jax.jvp."""
    calls, products, real_jvp = [], [], jax.jvp

    def f(x):
        calls.append(x)
        return goldstein_price(x)

    def counting_jvp(*args):
        products.append(args)
        return real_jvp(*args)

    with jax.disable_jit():
        monkeypatch.setattr(jax, "jvp", counting_jvp)
        found = sx.search.LevelSet(steps=3, radius=10.0)(f, jnp.array([0.0, 0.0]))
    assert len(products) == 4
    assert found.evaluations == len(calls) + len(products)
    assert len(calls) > 3 + len(products)  # it did backtrack
    assert sx.search.LevelSet(steps=3).evaluations() == 3 + 3 * (25 + 2) >= found.evaluations


def test_a_failed_line_search_leaves_the_point_and_its_values(float64):
    """And a success on the last trial is a success."""
    f, x = goldstein_price, jnp.array([0.0, 0.0])
    once = travel(sx.search.LevelSet(steps=1, radius=10.0), f, x)
    trials = int(once.evaluations) - 5
    assert trials > 2
    last = travel(sx.search.LevelSet(steps=1, radius=10.0, backtracks=trials), f, x)
    assert jnp.array_equal(last.params, once.params)
    assert last.residual == once.residual == pytest.approx(kkt(f, x, once.params), rel=1e-6)
    short = travel(sx.search.LevelSet(steps=1, radius=10.0, backtracks=trials - 1), f, x)
    assert jnp.array_equal(short.params, x)
    assert short.residual == pytest.approx(kkt(f, x, x), rel=1e-6)
    assert not short.converged
    assert short.evaluations == 3 + trials - 1


def test_a_start_that_is_a_solution_stays(float64):
    """||x||^2 has the same gradient norm all over a level set."""
    x = jnp.array([3.0, -4.0])
    found = travel(sx.search.LevelSet(), lambda w: 0.5 * jnp.sum(w**2), x)
    assert jnp.array_equal(found.params, x)
    assert found.converged
    assert found.residual < 1e-20
    assert found.evaluations == 3


def test_the_steepest_point_may_lie_at_a_smaller_loss(float64):
    x = jnp.array([1.5])
    found = travel(sx.search.LevelSet(), lambda w: jnp.tanh(w[0]), x)
    assert found.params == pytest.approx(0.0, abs=1e-3)
    assert found.converged


def test_without_a_gradient_or_a_number_the_start_comes_back():
    for f, x in (
        (plane("booth"), jnp.array([1.0, 3.0])),
        (lambda w: jnp.log(w[0] - 10.0), jnp.array([1.0, 3.0])),
        (lambda w: jnp.sum(1e20 * w), jnp.array([1.0, 3.0])),  # its squared gradient overflows
        (lambda w: jnp.abs(w[0]) ** 1.5 + w[1], jnp.array([0.0, 3.0])),  # its Hessian is not finite
    ):
        found = travel(sx.search.LevelSet(), f, x)
        assert jnp.array_equal(found.params, x)
        assert not found.converged
        assert found.residual == jnp.inf
        assert found.evaluations == 3


def test_trials_that_are_not_finite_are_only_shorter_steps(float64):
    def f(w):
        """Booth's function, undefined at x <= -1: its steepest point is at x = -1.8."""
        return sx.tasks.booth().loss(w) + jnp.where(w[0] > -1.0, 0.0, jnp.nan) + 1e-9 * jnp.sqrt(w[0] + 1.0)

    x = jnp.array([5.0, -5.0])
    found = travel(sx.search.LevelSet(radius=10.0), f, x)
    assert found.params[0] > -1.0
    assert f(found.params) <= 144.0 * (1 + 1e-6)
    assert norm_at(f, found.params) > 65.0
    assert jnp.isfinite(found.residual)


def test_derivatives_see_a_constant_jump(float64):
    def end(x, weight):
        return travel(sx.search.LevelSet(steps=5), lambda w: weight * sx.tasks.booth().loss(w), x).params

    by_x, by_weight = jax.jacrev(end, (0, 1))(jnp.array([5.0, -5.0]), jnp.array(2.0))
    assert jnp.array_equal(by_x, jnp.eye(2))
    assert not jnp.any(by_weight)


def test_arguments_must_be_positive():
    for name, bad in {"steps": 0, "radius": 0.0, "tolerance": -1e-6, "backtracks": 0}.items():
        with pytest.raises(ValueError, match=re.escape(f"LevelSet needs {name} > 0, got {name}={bad}")):
            sx.search.LevelSet(**{name: bad})
    for name, bad in {"steps": 0, "rate": 0.0, "energy": -1.0, "max_norm": 0.0}.items():
        with pytest.raises(ValueError, match=re.escape(f"NullSpace needs {name} > 0, got {name}={bad}")):
            sx.search.NullSpace(mlp_inputs, **{name: bad})
    with pytest.raises(ValueError, match=r"at most 1, got 1\.5"):
        sx.search.NullSpace(mlp_inputs, energy=1.5)
    with pytest.raises(ValueError, match=r"not finite: a\.0 is"):
        sx.search.LevelSet()(lambda w: w["a"][0], {"a": [jnp.array(jnp.nan)]})


def test_a_network_of_any_structure_gets_steeper_at_no_larger_loss(float64):
    params, batch = mlp(8)

    def f(w):
        return jnp.mean((mlp_layers(w, batch)[1] - batch["y"]) ** 2)

    found = travel(sx.search.LevelSet(steps=10), f, params)
    before, after = (
        np.sqrt(sum(np.sum(g**2) for g in by_path(jax.grad(f)(w)).values())) for w in (params, found.params)
    )
    assert f(found.params) <= f(params) * (1 + 1e-6)
    assert after > 2 * before
    moves = by_path(jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), found.params, params))
    assert all(move > 1e-3 for move in moves.values())
    assert not found.converged


# Null spaces: networks with fewer samples than inputs in each layer named. Each `*_layers` returns the
# layers' inputs by path, and the outputs.


def normals(*shape, fan=None):
    """Fixed for a shape; of variance 1 / fan, by default the size of all axes but the first."""
    fan = np.prod(shape[1:]) if fan is None else fan
    return jnp.array(np.random.default_rng(shape).normal(size=shape) / np.sqrt(fan))


def mlp(samples):
    params = {
        "first": {"weight": normals(16, 20), "bias": normals(16, fan=9)},
        "second": {"weight": normals(12, 16), "bias": normals(12, fan=9)},
        "third": {"weight": normals(3, 12), "bias": normals(3, fan=9)},
    }
    return params, {"x": normals(samples, 20, fan=1), "y": normals(samples, 3, fan=1)}


def mlp_layers(params, batch):
    inputs, h = {}, batch["x"]
    for name in ("first", "second", "third"):
        inputs[f"{name}.weight"] = h
        h = h @ params[name]["weight"].T + params[name]["bias"]
        h = h if name == "third" else jnp.tanh(h)
    return inputs, h


def mlp_inputs(params, batch):
    return mlp_layers(params, batch)[0]


def convolve(x, kernel):
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME")


def cnn():
    params = {"conv1": normals(8, 2, 3, 3), "bias": normals(8, fan=9), "conv2": normals(6, 8, 3, 3)}
    params["head"] = normals(3, 24)
    return params, {"x": normals(2, 2, 6, 6, fan=1), "y": normals(2, 3, fan=1)}


def cnn_layers(params, batch):
    h = jnp.tanh(convolve(batch["x"], params["conv1"]) + params["bias"][:, None, None])
    rows = sx.search.patches(h, (3, 3), strides=(2, 2), padding="SAME")
    flat = jnp.tanh(convolve(h, params["conv2"])).reshape(len(h), -1)
    return {"conv2": rows, "head": flat}, flat @ params["head"].T


def transformer():
    """Kernels as in Flax: inputs first, then heads."""
    params = {"embed": normals(5, 16), "out": normals(2, 8, 16, fan=16), "head": normals(16, 3)}
    params |= {name: normals(16, 2, 8) for name in "qkv"}
    return params, {"x": normals(2, 4, 5, fan=1), "y": normals(2, 4, 3, fan=1)}


def transformer_layers(params, batch):
    x = jnp.tanh(batch["x"] @ params["embed"])
    q, k, v = (jnp.einsum("btd,dha->btha", x, params[n]) for n in "qkv")
    attention = jax.nn.softmax(jnp.einsum("btha,bsha->bhts", q, k) / np.sqrt(8))
    mixed = jnp.einsum("bhts,bsha->btha", attention, v)
    y = x + jnp.einsum("btha,had->btd", mixed, params["out"])
    inputs = {"q": x, "k": x, "v": x, "out": mixed.reshape(8, 16), "head": y}
    return inputs, y @ params["head"]


def cnn_inputs(params, batch):
    return cnn_layers(params, batch)[0]


def transformer_inputs(params, batch):
    return transformer_layers(params, batch)[0]


NETWORKS = {
    "mlp": lambda: (*mlp(8), mlp_layers, mlp_inputs),
    "cnn": lambda: (*cnn(), cnn_layers, cnn_inputs),
    "transformer": lambda: (*transformer(), transformer_layers, transformer_inputs),
}


def search_with(inputs, *, rate=0.01, energy=1.0, max_norm=np.inf, **static):
    """All numbers as arrays: one compiled search for a network."""
    return sx.search.NullSpace(
        inputs, rate=jnp.array(rate), energy=jnp.array(energy), max_norm=jnp.array(max_norm), **static
    )


@eqx.filter_jit
def drift(search, layers, params, batch):
    """An arrival, and the losses, outputs and gradient norms before and after."""

    def value_fn(w):
        outputs = layers(w, batch)[1]
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    def look(w):
        (value, outputs), g = jax.value_and_grad(value_fn, has_aux=True)(w)
        return value, outputs, jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))

    found = search(lambda w: value_fn(w)[0], params, batch)
    return found, *jax.lax.map(look, jax.tree.map(lambda *x: jnp.stack(x), params, found.params))


def by_path(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): np.asarray(x) for p, x in pairs}


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, ["transformer"]))
def test_a_null_space_keeps_the_batch_and_raises_the_gradient(float64, name):
    params, batch, layers, inputs = NETWORKS[name]()
    named, start = inputs(params, batch), by_path(params)
    layout = "in out" if name == "transformer" else "out in"
    for rate in (0.03, 1.0):  # steps of any size: up to the norm of all weights, ten times
        search = search_with(inputs, rate=rate, layout=layout)
        found, losses, outputs, norms = drift(search, layers, params, batch)
        assert abs(losses[1] / losses[0] - 1) <= 1e-10
        np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-10)
        assert found.residual <= 1e-12
        assert found.converged
        assert norms[1] > (1.2 if rate < 1 else 30) * norms[0]
        assert found.evaluations == search.evaluations() == 31
        moves = {path: np.linalg.norm(w - start[path]) for path, w in by_path(found.params).items()}
        assert all(moves[path] == 0 for path in moves if path not in named)
        assert moves[list(named)[-1]] > 0.01


def test_one_step_is_the_projected_derivative(float64, central_differences):
    """Against central differences of ||g||^2 / 2 in one layer, and SciPy's null space of its inputs."""
    params, batch, layers, inputs = NETWORKS["mlp"]()
    weight = params["second"]["weight"]

    @jax.jit
    def half_square(w):
        there = {**params, "second": {**params["second"], "weight": w.reshape(weight.shape)}}
        gradient = jax.grad(lambda p: jnp.mean((layers(p, batch)[1] - batch["y"]) ** 2))(there)
        return 0.5 * sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    derivative = central_differences(half_square, np.asarray(weight).ravel()).reshape(weight.shape)
    free = scipy.linalg.null_space(np.asarray(inputs(params, batch)["second.weight"]))
    expected = derivative @ free @ free.T
    search = search_with(only_second, rate=0.1, steps=1, normalize=False)
    moved = drift(search, layers, params, batch)[0].params["second"]["weight"] - weight
    np.testing.assert_allclose(moved, 0.1 * expected, atol=1e-7 * float(np.linalg.norm(expected)))


def only_second(params, batch):
    return {"second.weight": mlp_inputs(params, batch)["second.weight"]}


def only_first(params, batch):
    return {"first.weight": mlp_inputs(params, batch)["first.weight"]}


def test_less_energy_gives_more_room_and_changes_the_loss(float64):
    params, batch, layers, inputs = NETWORKS["mlp"]()
    changes, residuals = [], []
    for energy in (1.0, 0.99, 0.9, 0.6):
        found, losses, _, _ = drift(search_with(inputs, energy=energy), layers, params, batch)
        changes.append(abs(float(losses[1] / losses[0]) - 1))
        residuals.append(float(found.residual))
        assert found.converged
    assert changes[0] <= 1e-10
    assert 1e-4 < changes[1] < 1e-2 < changes[2] < 0.1 < changes[3] < 1
    assert residuals[0] <= 1e-12
    assert 1e-3 < residuals[1] < 0.05 < residuals[2] < residuals[3] < 0.5


def test_a_jump_is_no_longer_than_its_bound(float64):
    params, batch, layers, inputs = NETWORKS["mlp"]()
    for bound in (0.05, 0.5):
        search = search_with(inputs, rate=0.1, max_norm=bound)
        found, losses, _, norms = drift(search, layers, params, batch)
        jump = jax.tree.map(lambda a, b: jnp.ravel(a - b), found.params, params)
        assert jnp.linalg.norm(jnp.concatenate(jax.tree.leaves(jump))) == pytest.approx(bound, rel=1e-9)
        assert abs(losses[1] / losses[0] - 1) <= 1e-10
        assert norms[1] > norms[0]


def test_without_a_null_space_nothing_moves(float64):
    """More samples than inputs, unless they repeat; and the first layer: no gradient is behind it."""
    params, few = mlp(8)
    _, many = mlp(32)
    repeated = {name: jnp.tile(x, (4, 1)) for name, x in few.items()}
    for inputs, batch, moves in (
        (mlp_inputs, many, False),
        (mlp_inputs, repeated, True),
        (only_first, few, False),
    ):
        found, losses, _, norms = drift(search_with(inputs), mlp_layers, params, batch)
        assert found.converged == moves
        assert eqx.tree_equal(found.params, params) != moves
        assert abs(losses[1] / losses[0] - 1) <= 1e-10
        assert (norms[1] > 1.05 * norms[0]) == moves
        assert found.residual <= 1e-12
    found, losses, _, _ = drift(search_with(mlp_inputs, energy=0.9), mlp_layers, params, many)
    assert found.converged
    assert 1e-4 < abs(losses[1] / losses[0] - 1) < 0.5


def test_single_precision_and_vmap():
    """One step of each of two rates, in units of the norm of the weights that are named."""
    params, batch, layers, inputs = NETWORKS["mlp"]()
    rates = jnp.array([0.01, 0.1])

    @jax.jit
    def arrive(rates, params):
        return jax.vmap(arrive_at, in_axes=(0, None))(rates, params)

    def arrive_at(rate, params):
        search = sx.search.NullSpace(inputs, rate=rate, steps=1)
        return search(lambda w: jnp.mean((layers(w, batch)[1] - batch["y"]) ** 2), params, batch)

    found = arrive(rates, params)
    outputs = jax.vmap(lambda w: layers(w, batch)[1])(found.params)
    np.testing.assert_allclose(outputs, jnp.stack(2 * [layers(params, batch)[1]]), atol=1e-5)
    assert jnp.all(found.converged)
    assert jnp.all(found.residual < 1e-6)
    before, after = by_path(params), by_path(found.params)
    assert all(leaf.dtype == np.float32 for leaf in after.values())
    named = list(inputs(params, batch))
    square = sum(np.sum((after[path] - before[path]) ** 2, axis=(1, 2)) for path in named)
    size = np.sqrt(sum(np.sum(before[path] ** 2) for path in named))
    np.testing.assert_allclose(np.sqrt(square), rates * size, rtol=1e-4)


def test_patches_are_what_a_kernel_meets(float64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 7, 6)), rng.normal(size=(4, 3, 3, 2))
    options = {"strides": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (2, 1)}
    rows = sx.search.patches(jnp.array(x), (3, 2), **options)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 1)))
    expected = [
        padded[n, :, i : i + 5 : 2, j : j + 2].ravel() for n in range(2) for i in (0, 2, 4) for j in range(6)
    ]
    np.testing.assert_array_equal(rows, expected)
    last = sx.search.patches(jnp.moveaxis(jnp.array(x), 1, -1), (3, 2), layout="in out", **options)
    flat = np.moveaxis(kernel, (0, 1), (-1, -2)).reshape(-1, 4)  # height, width, in, out
    np.testing.assert_allclose(last @ flat, rows @ kernel.reshape(4, -1).T, atol=1e-12)


def test_inputs_that_do_not_fit_are_named():
    params, batch, layers, _ = NETWORKS["mlp"]()

    def named(**paths):
        search = sx.search.NullSpace(
            lambda params, batch: {k.replace("_", "."): jnp.zeros(v) for k, v in paths.items()}
        )
        return search(lambda w: jnp.mean(layers(w, batch)[1]), params, batch)

    with pytest.raises(
        ValueError, match=r"names 'second\.wieght', which is not a leaf; did you mean 'second\.weight'"
    ):
        named(second_wieght=(8, 16))
    with pytest.raises(
        ValueError, match=r"'first\.weight' have width 13 \(shape \(8, 13\)\).* \(16, 20\) needs 20"
    ):
        named(first_weight=(8, 13))
    with pytest.raises(ValueError, match=r"width 12 .* a leaf of shape \(3, 12\)"):
        sx.search.NullSpace(lambda params, batch: {"third.weight": jnp.zeros((8, 12))}, layout="in out")(
            lambda w: 0.0 * w["third"]["bias"][0], params
        )
    with pytest.raises(ValueError, match=r"width 16 .*It would fit layout='in out'"):
        named(first_weight=(8, 16))
    with pytest.raises(ValueError, match=r"leaf of shape \(16,\) needs two axes or more"):
        named(first_bias=(8, 16))
    with pytest.raises(
        ValueError, match=r"at least one layer, got none; the leaves are first\.bias, first\.weight"
    ):
        named()
    with pytest.raises(ValueError, match=r"kernel of shape \(3, 3\) needs images with 4 axes"):
        sx.search.patches(jnp.zeros((8, 6, 6)), (3, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda layout: sx.search.NullSpace(mlp_inputs, layout=layout),
        lambda layout: sx.search.patches(jnp.ones((1, 1, 2)), (1,), layout=layout),
    ],
)
def test_an_unknown_layout_is_named(unchecked, make):
    with pytest.raises(ValueError, match=r"one of \('out in', 'in out'\), got 'oi'"):
        make("oi")
