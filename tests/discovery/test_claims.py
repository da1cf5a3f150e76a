"""Whatever the precision, nothing is called exact that double precision refutes: every claim is checked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.discovery._double import DOUBLE, InDouble
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._leaves import noise_sizes
from symmetrax.discovery._loss import Loss
from symmetrax.discovery._plan import Plan
from symmetrax.discovery._scope import GROUPS
from symmetrax.discovery._segments import Segments

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
X, Y = np.random.default_rng(3).normal(size=(2, 12, 4)).astype(np.float32)


def in_double(tree):
    """Floating-point arrays in double precision; call it where that is enabled."""
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def check_claims(loss, params, found, batch):
    """Everything called exact keeps the loss, at the parameters and at noise around them.

    `loss` must compute in double precision if its parameters are. What counts as a change is measured by how
    much the loss varies.
    """
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        value, start = jax.jit(loss), in_double(params)

        def noisy(spread):
            return jax.tree.map(lambda x: x + spread * max(np.std(x), 0.02) * rng.normal(size=x.shape), start)

        varies = np.std([value(noisy(0.5), batch) for _ in range(5)])
        for number, point in enumerate([start, noisy(0.02), noisy(0.5)]):
            here = value(point, batch)
            for one in found.exact:
                for draw in range(2):
                    element = one.symmetry.sample(jax.random.key(10 * number + draw))
                    there = value(one.symmetry.act(element, point), batch)
                    said = f"{one.group} {dict(one.symmetry.specs)} at point {number}"
                    assert abs(there - here) <= 1e-8 * varies, f"{said}: {there - here}, varies by {varies}"


# A decoder as they are started: small weights, no biases, one embedding for words in and words out.


def decoder(width, heads, layers, words, length, seed=0):
    """The loss of a decoder, its parameters in single precision, and a function that draws tokens."""
    rng = np.random.default_rng(seed)

    def linear(*shape):
        return {"w": jnp.asarray(0.02 * rng.normal(size=shape), jnp.float32), "b": jnp.zeros(shape[1])}

    def norm():
        return {"gain": jnp.ones(width), "bias": jnp.zeros(width)}

    params = {
        "words": linear(words, width)["w"],
        "places": linear(length, width)["w"],
        "last": norm(),
        "blocks": [
            {
                "norm": norm(),
                "qkv": linear(width, 3 * width),
                "out": linear(width, width),
                "mid": norm(),
                "up": linear(width, 4 * width),
                "down": linear(4 * width, width),
            }
            for _ in range(layers)
        ],
    }

    def normalized(x, p):
        x = x - x.mean(axis=-1, keepdims=True)
        return x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * p["gain"] + p["bias"]

    def apply(x, p):
        return x @ p["w"] + p["b"]

    def loss(p, tokens):
        x = p["words"][tokens] + p["places"]
        mask = jnp.tril(jnp.ones((length, length), bool))
        for block in p["blocks"]:
            qkv = jnp.split(apply(normalized(x, block["norm"]), block["qkv"]), 3, axis=-1)
            q, k, v = (y.reshape(*tokens.shape, heads, -1) for y in qkv)
            scores = jnp.einsum("bthe,bshe->bhts", q, k) / (width / heads) ** 0.5
            weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.bfloat16).min))
            x = x + apply(jnp.einsum("bhts,bshe->bthe", weights, v).reshape(x.shape), block["out"])
            x = x + apply(jax.nn.gelu(apply(normalized(x, block["mid"]), block["up"])), block["down"])
        said = jax.nn.log_softmax(normalized(x, p["last"]) @ p["words"].T)
        return -jnp.mean(jnp.take_along_axis(said[:, :-1], tokens[:, 1:, None], axis=-1))

    return loss, params, lambda key: jax.random.randint(key, (4, length), 0, words)


def check_decoder(groups, wanted, **sizes):
    loss, params, batch = decoder(**sizes)
    found = sx.find_symmetries(loss, params, KEY, batch=batch, groups=groups)
    assert found.evaluations <= found.cost.total
    kinds = [(type(one.group).__name__, one.group.size, one.group.lengths) for one in found.exact]
    for kind in wanted:
        assert kinds.count(kind) == wanted[kind], f"{kind}: {found}"
    assert not any("computed" in note for note in found.notes)  # the mask sets no precision
    check_claims(loss, params, found, batch(jax.random.key(7)))


def test_no_false_claim_about_a_small_decoder():
    """In single precision the scale of the whole stream cannot be told from one: an epsilon breaks it."""
    check_decoder(
        [sx.groups.PositiveDiagonal, sx.groups.SignDiagonal],
        {("PositiveDiagonal", 8, ()): 3, ("PositiveDiagonal", 4, (2,)): 2, ("PositiveDiagonal", 1, ()): 0},
        width=8,
        heads=2,
        layers=1,
        words=12,
        length=5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_false_claim_about_decoders(seed):
    check_decoder(
        GROUPS,
        {("GeneralLinear", 4, (4,)): 4, ("Permutation", 64, ()): 2, ("PositiveDiagonal", 1, ()): 0},
        width=16,
        heads=4,
        layers=2,
        words=24,
        length=8,
        seed=seed,
    )


@pytest.mark.slow
def test_no_false_claim_about_a_decoder_of_a_million_parameters():
    check_decoder(
        GROUPS,
        {("GeneralLinear", 32, (4,)): 8, ("Permutation", 512, ()): 4, ("PositiveDiagonal", 1, ()): 0},
        width=128,
        heads=4,
        layers=4,
        words=1000,
        length=32,
    )


# Losses in every precision.


def perceptron(dtypes, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (5, 4), "b": (5,), "out": (4, 5)}
    return {path: jnp.asarray(rng.normal(size=shapes[path]), d) for path, d in dtypes.items()}


SINGLE = dict.fromkeys(("w", "b", "out"), jnp.float32)
DTYPES = {
    "single": SINGLE,
    "bfloat16": dict.fromkeys(SINGLE, jnp.bfloat16),
    "float16": dict.fromkeys(SINGLE, jnp.float16),
    "mixed": {"w": jnp.bfloat16, "b": jnp.float32, "out": jnp.float16},
}


def outputs(p, x, broken=0.0):
    """A perceptron whose scalings `broken` breaks."""
    return jax.nn.relu(x @ p["w"].T + p["b"] + broken) @ p["out"].T


def cast_twice(p, broken):
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p)
    return jnp.mean((outputs(short, jnp.bfloat16(X), broken).astype(jnp.float32) - Y) ** 2)


@jax.jit
def compiled(p, broken):
    return jnp.mean((outputs(p, X, broken) - Y) ** 2)


def mse(p, batch=None):
    return compiled(p, 0.0)


def random_inside(p, broken):
    x = (
        X
        + jax.random.normal(jax.random.key(1), X.shape)
        + jax.random.bernoulli(jax.random.key(2), 0.5, X.shape)
    )
    return jnp.mean((outputs(p, x, broken) - Y) ** 2)


def in_a_loop(p, broken):
    def step(total, row):
        kept = jax.lax.cond(row[0] > 0, lambda y: y, lambda y: 2 * y, outputs(p, row, broken))
        return total + jnp.sum(kept**2), jnp.sum(kept)

    total, each = jax.lax.scan(jax.checkpoint(step), jnp.float32(0), X)
    return total + jnp.max(each) + jax.lax.fori_loop(0, 3, lambda _, y: y + total / 3, total)


def masked(p, broken):
    scores = jnp.where(X > 0, outputs(p, X, broken), jnp.finfo(jnp.bfloat16).min)
    return jnp.sum(jax.nn.softmax(scores) ** 2)


LOSSES = {f.__name__: f for f in (cast_twice, random_inside, in_a_loop, masked)}
CASES = [("compiled", kind) for kind in DTYPES] + [(name, "single") for name in LOSSES]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scalings_are_exact_in_every_precision_and_broken_ones_in_none(name, kind):
    """Also beside an offset that hides the break, and in units that overflow."""
    loss, params = {"compiled": compiled, **LOSSES}[name], perceptron(DTYPES[kind])
    found = sx.find_symmetries(
        lambda p: 1e-30 * loss(p, 0.0), params, KEY, groups=[sx.groups.PositiveDiagonal]
    )
    assert [(one.group.size, one.certificate.outcome) for one in found] == [(5, "exact")], str(found)
    assert found[0].certificate.loss_change <= 1e-9
    assert not any("computed" in note or "double" in note for note in found.notes)
    broken = sx.find_symmetries(
        lambda p: loss(p, 1e-3) + 1e4, params, KEY, groups=[sx.groups.PositiveDiagonal]
    )
    assert not broken.exact, str(broken)
    assert all(one.certificate.loss_change > 1e-7 for one in broken)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_units_do_not_matter(factor):
    params = perceptron(SINGLE)
    plain, other = (
        sx.find_symmetries(lambda p, s=scale: s * compiled(p, 1e-3), params, KEY) for scale in (1.0, factor)
    )
    assert plain == other
    for one, two in zip(plain, other, strict=True):
        np.testing.assert_allclose(
            one.certificate.loss_change, two.certificate.loss_change, rtol=1e-3, atol=1e-12
        )


def test_what_code_outside_of_jax_computes_is_no_more_than_single_precision():
    @jax.custom_vjp
    def outside(z):
        return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(z.shape, z.dtype), z)

    outside.defvjp(lambda z: (outside(z), outside(z)), lambda y, g: (g * (1 - y**2),))

    def loss(p):
        return jnp.mean((outside(X @ p["w"].T + p["b"]) @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(
        loss, perceptron(SINGLE), KEY, groups=[sx.groups.SignDiagonal, sx.groups.Permutation]
    )
    assert {type(one.group) for one in found} == {sx.groups.SignDiagonal, sx.groups.Permutation}
    assert {one.certificate.outcome for one in found} == {"single precision"}
    assert not found.exact
    assert any("outside of JAX, to 1e-07" in note for note in found.notes)
    assert "single precision" in str(found)

    def drawn_outside(p):  # what depends on data only is data
        x = jax.pure_callback(lambda: X, jax.ShapeDtypeStruct(X.shape, X.dtype))
        return jnp.mean((jnp.tanh(x @ p["w"].T + p["b"]) @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(drawn_outside, perceptron(SINGLE), KEY, groups=[sx.groups.Permutation])
    assert [one.certificate.outcome for one in found] == ["exact"]


def test_a_loss_that_double_precision_cannot_run_is_judged_in_its_own(monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(InDouble, "_equation", refuse)
    found = sx.find_symmetries(mse, perceptron(SINGLE), KEY, groups=[sx.groups.PositiveDiagonal])
    assert [one.certificate.outcome for one in found] == ["single precision"]
    assert any("NotImplementedError: no such kernel" in note for note in found.notes)
    assert found.evaluations <= found.cost.total


def test_a_program_in_double_precision_is_that_of_numpy():
    """Constants, casts, loops and compiled parts are widened; integers and random numbers are as given."""
    key = jax.random.key(3)

    def fun(arrays, rest, batch):
        w, x, k = *arrays, *batch
        z = jnp.tanh((x @ w).astype(jnp.bfloat16)).astype(jnp.float32) + jax.random.uniform(k, (4,))
        z = jax.lax.fori_loop(0, rest, lambda i, y: y * jnp.float32(0.1) + i, z)
        return jnp.sum(z * jnp.argsort(x[0])) + jnp.sum(z.at[jnp.array([0, 0])].add(1.0))

    w = np.random.default_rng(0).normal(size=(4, 4))
    noise = np.asarray(jax.random.uniform(key, (4,)), float)
    with jax.enable_x64(True):
        program = InDouble(fun, [jnp.float32], x64=False)
        value = jax.jit(program, static_argnums=1)([jnp.asarray(w)], 3, (jnp.asarray(X), key))
    z = np.tanh(X.astype(float) @ w) + noise
    for i in range(3):
        z = z * float(np.float32(0.1)) + i
    expected = np.sum(z * np.argsort(X[0])) + np.sum(z) + 2 * z.shape[1]
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    assert value.dtype == np.float64
    assert program.precision == DOUBLE


def test_integers_longer_than_the_mode_are_taken_as_it_takes_them():
    """NumPy's data have 64 bits, which a loss in single precision never sees."""
    tokens = np.arange(4)
    params = {"e": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
    found = sx.find_symmetries(
        lambda p, t: jnp.sum(jnp.tanh(p["e"][t[0]] * t[1]) ** 2), params, KEY, batch=(tokens, np.float64(2.0))
    )
    assert found.exact


# Exact ones come first.


def test_a_group_that_nearly_holds_hides_no_exact_one_inside():
    """Almost linear units: any matrix nearly, positive scales and permutations exactly."""

    def loss(p):
        z = X @ p["w"].T
        return jnp.mean(((z + 1e-4 * jax.nn.relu(z)) @ p["out"].T - Y) ** 2)

    params = {path: leaf for path, leaf in perceptron(SINGLE).items() if path != "b"}
    found = sx.find_symmetries(loss, params, KEY)
    assert [type(one.group) for one in found.exact] == [sx.groups.PositiveDiagonal, sx.groups.Permutation], (
        str(found)
    )
    assert [str(one.group) for one in found.approximate] == ["GeneralLinear(5)"], str(found)
    assert found.joined() is not None


# Words that must be true.


def test_arrays_with_an_effect_but_no_gradient_are_not_called_idle():
    params = perceptron(SINGLE) | {"jump": jnp.full(5, 0.3), "frozen": jnp.ones(4), "none": jnp.ones(3)}
    params["tiny"] = jnp.asarray([0.5, 2.0])

    def loss(p):
        z = X @ p["w"].T + p["b"]
        out = jnp.where(z > p["jump"], z, 0.0) @ p["out"].T + jax.lax.stop_gradient(p["frozen"])
        return jnp.mean((out - Y) ** 2) + 1e-7 * jnp.sum(jnp.sin(p["tiny"]))

    found = sx.find_symmetries(loss, params, KEY, groups=[sx.groups.PositiveDiagonal])
    assert found.idle == ("none",)
    assert set(found.steep) == {"jump", "frozen"}
    assert "No effect on the loss: none." in str(found)
    assert "no gradient (jumps, `stop_gradient`)" in str(found)
    assert found.to_json()["steep"] == list(found.steep)
    # The program shows what no gradient does: thresholds move with the units that they are compared with.
    assert [dict(one.symmetry.specs) for one in found.exact] == [
        {"b": "s0", "jump": "s0", "out": "_ s0*", "w": "s0 _"}
    ]
    with pytest.raises(ValueError, match=r"zero at all generic points .* although it changes with w"):
        sx.find_symmetries(lambda p: jnp.sum(jnp.round(9 * p["w"])), {"w": params["w"]}, KEY)


def test_what_was_tried_in_part_is_not_called_absent():
    rng = np.random.default_rng(0)
    params = {f"v{k}": jnp.asarray(rng.normal(size=3), jnp.float32) for k in range(15)}
    params["out"] = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    def loss(p):
        return jnp.mean((sum(jnp.sin(k + 1 + p[f"v{k}"]) for k in range(15)) * p["out"] - Y[:4, :1]) ** 2)

    found = sx.find_symmetries(loss, params, KEY, groups=[sx.groups.Permutation, sx.groups.SignDiagonal])
    assert "SignDiagonal" in found.unfinished
    assert any("signs on 16 specs of Permutation(3): on all of them" in note for note in found.notes)
    assert "not found" not in str(found)


def test_small_models_have_room_for_all_questions():
    """On pieces of fused axes there are hundreds of words for matrices of size 2."""
    loss, params, batch = decoder(width=8, heads=2, layers=1, words=12, length=5)
    with jax.enable_x64(True):
        plan = Plan.of(params, GROUPS, None, 1)
        problem = Loss(loss, params, KEY, batch, None, x64=False)
        rng = np.random.default_rng(0)
        evidence = Evidence(problem, plan.scope, rng, points=plan.cost.points, kept=plan.whole)
        next(Segments().answers(evidence))
    assert len(evidence.measured.points) <= plan.whole + plan.cost.segments
    assert not evidence.unasked


def test_statistics_stay_positive_and_what_cannot_be_moved_is_named():
    params = {"w": jnp.asarray(X[:5]), "var": jnp.asarray([1e-3, 1.0, 2.0, 1.0, 0.2]), "mean": jnp.zeros(5)}

    def loss(p):
        z = X @ p["w"].T
        return jnp.mean(jax.nn.gelu((z - p["mean"]) / jnp.sqrt(p["var"])) @ jnp.asarray(X[:5])) ** 2

    found = sx.find_symmetries(loss, params, KEY, groups=[sx.groups.PositiveDiagonal])
    scale = {"w": 1.0, "mean": 1.0, "var": 2.0}
    assert [one.certificate.outcome for one in found] == ["exact"]
    assert found[0].symmetry.specs.keys() == scale.keys()
    bad = params | {"angle": jnp.asarray([-0.4])}
    with pytest.raises(ValueError, match=r"not finite near `params` .*noise on angle alone is enough"):
        sx.find_symmetries(lambda p: loss(p) + jnp.arccos(2 * p["angle"][0] - 0.19), bad, KEY)


def test_noise_is_of_the_size_of_what_is_beside():
    leaves = {
        "embed": np.full((9, 4), 0.02),
        "layer.w": np.full((4, 4), 0.5),
        "layer.b": np.zeros(4),
        "norm.gain": np.ones(4),
        "norm.bias": np.zeros(4),
        "small": np.full((4, 4), 1e-3),
    }
    sizes = noise_sizes(leaves)
    assert sizes["layer.b"] == 0.5
    assert sizes["norm.bias"] == 1.0
    assert sizes["embed"] == pytest.approx(0.02)
    assert sizes["small"] == pytest.approx(1e-3)
    assert noise_sizes({"a": np.zeros((9, 4))}) == {"a": 1 / 3}


def test_certificates_are_at_the_parameters_too():
    """A loss that is symmetric everywhere but near the parameters, as where noise drowns a part of it."""
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)}

    def loss(p):
        z = X @ p["w"].T
        near = jnp.exp(-1e4 * jnp.sum((p["w"] - params["w"]) ** 2))
        return jnp.mean(jnp.abs(z)) + near * jnp.mean(z**3)

    found = sx.find_symmetries(loss, params, KEY, groups=[sx.groups.Permutation, sx.groups.SignDiagonal])
    assert not any(isinstance(one.group, sx.groups.SignDiagonal) for one in found.exact), str(found)
    plain = sx.find_symmetries(
        lambda p: jnp.mean(jnp.abs(X @ p["w"].T)),
        params,
        KEY,
        groups=[sx.groups.Permutation, sx.groups.SignDiagonal],
    )
    assert any(isinstance(one.group, sx.groups.SignDiagonal) for one in plain.exact), str(plain)


def test_a_loss_without_a_gradient_at_the_parameters_is_judged_near_them():
    params = {"w": jnp.zeros((3, 2))}
    found = sx.find_symmetries(lambda p: jnp.sum(jnp.sqrt(jnp.sum(p["w"] ** 2, axis=1))), params, KEY)
    assert found.exact
    assert any("gradient at `params` itself is not finite" in note for note in found.notes)


# What is found automatically must be of use.


def test_auto_looks_for_what_the_state_can_be_carried_along(monkeypatch):
    """Squares of gradients go along scalings, not along matrices; of an unknown state nothing is known."""
    asked = []
    real = sx.find_symmetries

    def spy(*args, **kwargs):
        asked.append(kwargs["groups"])
        return real(*args, **kwargs)

    monkeypatch.setattr("symmetrax.teleportation._teleport.find_symmetries", spy)
    params = perceptron(SINGLE)
    for inner in (optax.adam(1e-2), optax.sgd(1e-2, momentum=0.9)):
        optimizer = sx.teleported(
            inner, "auto", loss=mse, search=sx.search.ClosedForm(bound=0.3), transport="carry"
        )
        state = optimizer.init(params)
        optimizer.update(jax.grad(mse)(params), state, params, value_fn=mse)
    assert [sx.groups.GeneralLinear in groups for groups in asked] == [False, True]
    unknown = optax.GradientTransformation(
        lambda params: {"odd": params}, lambda updates, state, params=None: (updates, state)
    )
    asked.clear()
    optimizer = sx.teleported(unknown, "auto", loss=mse, transport="carry")
    with pytest.raises(ValueError, match="transport='keep' or 'reset'"):
        optimizer.init(params)
    assert not asked


def test_budgets_and_costs_hold_in_all_modes():
    params = perceptron(SINGLE)
    cost = sx.discovery.discovery_cost(params)
    found = sx.find_symmetries(mse, params, KEY)
    assert found.cost == cost
    assert found.evaluations <= cost.total
    budget = cost.checks + cost.points + cost.idle + 9
    some = sx.find_symmetries(mse, params, KEY, budget=budget)
    assert some.evaluations <= budget


def test_outcomes_of_all_precisions():
    best = sx.discovery.Certificate(
        1e-12, None, {"w": 1e-12}, trials=3, tolerance=1e-9, gradient_tolerance=1e-8
    )
    single = dataclasses.replace(best, tolerance=1e-5, gradient_tolerance=1e-2)
    half = dataclasses.replace(best, tolerance=3e-2, gradient_tolerance=0.3)
    assert [one.outcome for one in (best, single, half)] == ["exact", "single precision", "half precision"]
    assert all(one.holds for one in (best, single, half))
    assert not dataclasses.replace(single, leaves={"w": 0.05}).holds


def test_losses_are_compared_by_how_much_they_vary():
    params = {"w": jnp.asarray([1.0, 2.0, -1.0])}
    with jax.enable_x64(True):
        problem = Loss(lambda p: jnp.sum(p["w"] ** 2) + 1e4, params, KEY, None, None, x64=False)
        problem.variation = 2.0
        assert problem.apart(1e4 + 1e-3, 1e4) == pytest.approx(5e-4)
        assert problem.apart(1e12 + 1e-3, 1e12) < 1e-9  # rounding hides it
