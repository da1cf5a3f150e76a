"""Symmetries found without being told: all that the zoo has, and none that is not there."""

import dataclasses
import json
from functools import cache

import equinox as eqx
import flax.serialization
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import symmetrax as sx
from symmetrax._tree import leaf_name

from .. import zoo
from ..zoo import ROWS, row

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)

#: Rows that every run looks at; `make test-slow` looks at all.
QUICK = [
    "squared relu",
    "grouped and depthwise CNN",
    "rotary, half",
    "gated by relu",
    "equinox GRU",
    "equinox CNN, GroupNorm",
    "mixture, experts permuted",
    "transformer, LayerNorm",
]


@cache
def discovered(name):
    """What is found of a row of the zoo, in double precision, once for all tests."""
    one = row(name)
    with jax.enable_x64(True):
        return sx.find_symmetries(one.loss, one.params(), KEY, batch=lambda key: drawn(one, key))


def drawn(one, key):
    return one.batch(int(jax.random.randint(key, (), 0, 1000)))


def arrays_of(params):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_inexact_array))
    return {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


def generic(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape) if eqx.is_inexact_array(leaf) else leaf, params
    )


def tangents(symmetry, params, idle):
    """Directions in which the group moves the parameters, one row for every coordinate of its algebra."""

    def there(coordinates):
        moved = arrays_of(symmetry.act(symmetry.exp(jnp.asarray(coordinates)), params))
        return np.concatenate([np.ravel(leaf) for path, leaf in moved.items() if path not in idle])

    steps = 1e-5 * np.eye(symmetry.zero().size)
    return [(there(step) - there(-step)) / 2e-5 for step in steps]


def is_discrete(one):
    return isinstance(one.group, sx.groups.Permutation | sx.groups.SignDiagonal)


def check_contains_lie(found, known, params):
    """The directions of a known group are combinations of those found."""
    w = generic(params)
    rows = [d for one in found.exact if not is_discrete(one) for d in tangents(one.symmetry, w, found.idle)]
    have = np.array(rows).T
    for direction in tangents(known, w, found.idle):
        rest = direction - have @ np.linalg.lstsq(have, direction, rcond=1e-9)[0]
        assert np.linalg.norm(rest) <= 1e-5 * np.linalg.norm(direction), f"not found: {known}\n{found}"


def flip(symmetry, name, unit, params):
    """Where the sign of one unit changes, as bits."""
    group = symmetry.spaces[name]
    element = symmetry.identity() | {name: group.identity().at[unit].set(-1.0)}
    before, after = arrays_of(params), arrays_of(symmetry.act(element, params))
    return np.concatenate([(before[path] * after[path] < 0).ravel() for path in before])


def rank_mod_2(rows):
    """The rank of 0-1 vectors over the field of two elements."""
    rows, rank = [row.copy() for row in rows], 0
    while rows:
        pivot = rows.pop()
        if pivot.any():
            rank, k = rank + 1, int(np.argmax(pivot))
            rows = [row ^ pivot if row[k] else row for row in rows]
    return rank


def units(group):
    return list(np.ndindex(*group.lengths, group.size))


def check_contains_signs(found, known, params):
    have = [
        flip(one.symmetry, one.name, unit, params)
        for one in found.exact
        if isinstance(one.group, sx.groups.SignDiagonal)
        for unit in units(one.group)
    ]
    ((name, group),) = known.spaces.items()
    for unit in units(group):
        wanted = flip(known, name, unit, params)
        assert rank_mod_2([*have, wanted]) == rank_mod_2(have), f"not found: {known}\n{found}"


def check_contains_permutations(found, known, params):
    """The same element of some permutation, or of a larger group that was found, moves the same."""
    ((name, group),) = known.spaces.items()
    element = group.sample(jax.random.key(5))
    wanted = arrays_of(known.act({name: element}, params))

    def moved(one):
        shapes = [one.group.algebra[:-1], known.spaces[name].algebra[:-1]]
        if type(one.group) is not type(group) or one.group.size != group.size or shapes[0] != shapes[1]:
            return None
        return arrays_of(one.symmetry.act({one.name: element}, params))

    moves = [there for one in found.exact if (there := moved(one)) is not None]
    assert any(
        all(np.array_equal(there[path], wanted[path]) for path in wanted if path not in found.idle)
        for there in moves
    ), f"not found: {known}\n{found}"


def check_row(name):
    """Every space of the row is found; every one found is a symmetry by an independent check."""
    one, found = row(name), discovered(name)
    with jax.enable_x64(True):
        params = one.params()
        known = one.symmetry(params)
        for space, group in known.spaces.items():
            alone = known.only(space)
            if isinstance(group, sx.groups.Permutation):
                check_contains_permutations(found, alone, params)
            elif isinstance(group, sx.groups.SignDiagonal):
                check_contains_signs(found, alone, params)
            else:
                check_contains_lie(found, alone, params)
        assert not found.approximate, str(found)
        for symmetry in [found.joined(discrete=True), *(x.symmetry for x in found if is_discrete(x))]:
            if symmetry is None:
                continue
            report = sx.verify(
                one.loss, params, symmetry, KEY, one.batch(0), fresh=one.batch(1), trials=1, spread=0.5
            )
            # The certificate is for the loss in double precision; this is the loss as it is written, and
            # flax takes softmax in single precision.
            written = str(jax.make_jaxpr(one.loss)(params, one.batch(0)))
            rounding = 1e-6 if "f32" in written else 1e-9
            allowed = max(rounding, found[0].certificate.tolerance)
            assert max(report.invariance, report.fresh) <= allowed, str(report)


@pytest.mark.parametrize("name", QUICK)
def test_what_the_zoo_has_is_found_and_nothing_else(name):
    check_row(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in ROWS if one.name not in QUICK])
def test_all_of_the_zoo_is_found_and_nothing_else(name):
    check_row(name)


def test_layers_that_are_scanned_have_scales_of_their_own():
    """Not one for all layers: the output of each is the input of the next."""
    scales, units = discovered("equinox MLP, scanned")
    assert scales.group == sx.groups.PositiveDiagonal(5, per={"h0": 3})
    assert scales.symmetry.specs["layers.1.weight"] == "h0 s0[1:] s0[:-1]*"
    assert units.group == sx.groups.Permutation(5, per={"h1": 3})


def test_fused_and_latent_attention_are_cut_where_they_should_be():
    """No length is told: neither that of a head nor that of a piece."""
    found = discovered("latent attention")
    said = {str(one.group): dict(one.symmetry.specs) for one in found.exact}
    assert any(specs == {"dkv": f"g{k}+4 _", "ukv": f"_ g{k}*"} for k in range(9) for specs in said.values())
    assert {"GeneralLinear", "ScaledRotation"} <= {type(one.group).__name__ for one in found}
    rotary = next(one for one in found if isinstance(one.group, sx.groups.ScaledRotation))
    assert rotary.symmetry.specs["uq"].startswith("(_ 3+(")


# Perceptrons of many shapes: table 10.1 of the catalogue of group actions.

ACTIVATIONS = {
    "relu": (jax.nn.relu, {"PositiveDiagonal", "Permutation"}),
    "leaky relu": (jax.nn.leaky_relu, {"PositiveDiagonal", "Permutation"}),
    "tanh": (jnp.tanh, {"SignDiagonal", "Permutation"}),
    "sin": (jnp.sin, {"SignDiagonal", "Permutation"}),
    "gelu": (jax.nn.gelu, {"Permutation"}),
    "softplus": (jax.nn.softplus, {"Permutation"}),
    "identity": (lambda z: z, {"GeneralLinear"}),
    "radial": (zoo.radial, {"Orthogonal"}),
}


@hypothesis.settings(max_examples=6)
@hypothesis.given(
    widths=st.sampled_from([(2, 3, 2), (3, 4, 4, 2), (4, 3, 5, 1), (3, 3, 3, 3)]),
    activations=st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=2, max_size=2),
    biases=st.booleans(),
)
def test_random_perceptrons_have_the_groups_of_their_activations(widths, activations, biases, float64):
    rng = np.random.default_rng(1)
    layers = range(len(widths) - 1)
    params = {f"w{k}": jnp.asarray(rng.normal(size=(widths[k + 1], widths[k]))) for k in layers}
    params |= {f"b{k}": jnp.asarray(rng.normal(size=widths[k + 1])) for k in layers} if biases else {}
    x, y = jnp.asarray(rng.normal(size=(9, widths[0]))), jnp.asarray(rng.normal(size=(9, widths[-1])))

    def loss(p):
        z = x
        for k in layers:
            z = z @ p[f"w{k}"].T + p.get(f"b{k}", 0.0)
            z = ACTIVATIONS[activations[k]][0](z) if k < len(layers) - 1 else z
        return jnp.mean((z - y) ** 2)

    found = sx.find_symmetries(loss, params, KEY, trials=2)
    by_hidden: dict[str, set] = {f"w{k}": set() for k in layers if k < len(layers) - 1}
    for one in found:
        assert one.certificate.outcome == "exact"
        assert one.group.lengths == ()
        first = min(one.symmetry.specs, key=lambda path: (path[1:], path[0] == "b"))
        k = int(first[1:])
        assert one.symmetry.specs.keys() == {f"w{k}", f"w{k + 1}"} | ({f"b{k}"} if biases else set()), str(
            found
        )
        by_hidden[first].add(type(one.group).__name__)
    for k, groups in enumerate(by_hidden.values()):
        assert groups == ACTIVATIONS[activations[k]][1], f"{activations[k]}: {found}"


# What holds only nearly is told with its defect.

X, Y = np.random.default_rng(3).normal(size=(2, 12, 4)).astype(np.float32)


def test_a_constant_that_breaks_a_scaling_makes_it_approximate(float64):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(5, 4)), "b": rng.normal(size=5), "out": rng.normal(size=(4, 5))}
    params = jax.tree.map(jnp.asarray, params)

    def loss(p):
        return jnp.mean((jax.nn.relu(X @ p["w"].T + p["b"] + 1e-3) @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY)
    (near,) = [one for one in found if isinstance(one.group, sx.groups.PositiveDiagonal)]
    assert near.symmetry.specs.keys() == params.keys()
    assert near.certificate.outcome == "approximate"
    assert 1e-5 < near.certificate.loss_change < 1e-2
    assert found.joined() is None
    assert [one.group for one in found.exact] == [sx.groups.Permutation(5, per=())]
    assert "approximate" in str(found)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_an_epsilon_in_a_norm_makes_a_scale_approximate(eps, float64):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(5, 4))), "out": jnp.asarray(rng.normal(size=(4, 5)))}

    def loss(p):
        return jnp.mean((jnp.tanh(zoo.normalized(X @ p["w"].T, eps=eps)) @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY)
    scales = [one for one in found if isinstance(one.group, sx.groups.PositiveDiagonal)]
    assert [dict(one.symmetry.specs).keys() for one in scales] == [{"w"}]
    assert scales[0].certificate.outcome == "approximate"
    assert eps / 100 < scales[0].certificate.loss_change < 10 * eps


def test_single_precision_finds_the_same():
    """Of a model in float32 the same spaces, judged in double precision."""
    one = row("gated by relu")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one.params())
    found = sx.find_symmetries(one.loss, params, KEY, batch=lambda key: drawn(one, key))
    exact = discovered("gated by relu")
    assert [dict(x.symmetry.specs) for x in found] == [dict(x.symmetry.specs) for x in exact]
    assert all(x.certificate.outcome == "exact" for x in found)
    assert found[0].certificate.tolerance == 1e-9
    assert found[0].certificate.loss_change < 1e-12
    searched = sx.find_symmetries(one.loss, params, KEY, batch=one.batch(0), method="gradients")
    assert searched[0].gap[0] < 1e-10 < 1e-3 < searched[0].gap[1]


def test_a_state_of_flax_is_a_tree_like_others():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)

        def __call__(self, x):
            return self.two(jax.nn.relu(self.one(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))

    def loss(state, batch):
        return jnp.mean((nnx.merge(graph, state)(batch[0]) - batch[1]) ** 2)

    batch = jnp.asarray(X), jnp.asarray(Y)
    found = sx.find_symmetries(loss, state, KEY, batch=batch, groups=[sx.groups.PositiveDiagonal])
    assert [one.symmetry.specs.keys() for one in found] == [{"one.bias", "one.kernel", "two.kernel"}]
    assert found[0].certificate.fresh is None  # there is one batch
    assert sx.verify(loss, state, found[0].symmetry, KEY, batch, trials=1).outcome == "exact"


@pytest.mark.parametrize("layout", ["(3 h d)", "(h 3 d)"])
def test_square_fused_attention_is_taken_apart(layout, float64):
    """Queries, keys and values of equal size may be turned by one rotation, but also one by one."""
    rng = np.random.default_rng(2)
    params = {"qkv": jnp.asarray(rng.normal(size=(12, 4))), "o": jnp.asarray(rng.normal(size=(4, 4)))}

    def loss(p):
        y = (X @ p["qkv"].T).reshape(len(X), *((3, 2, 2) if layout[1] == "3" else (2, 3, 2)))
        q, k, v = jnp.moveaxis(y, 1 if layout[1] == "3" else 2, 0)
        return jnp.mean((zoo.attend(q, k, v) @ p["o"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY)
    linear = [one for one in found.exact if isinstance(one.group, sx.groups.GeneralLinear)]
    assert [one.group.lengths for one in linear] == [(2,), (2,)], str(found)
    assert {len(one.symmetry.specs) for one in linear} == {1, 2}  # queries with keys, and values with outputs
    heads = [one for one in found.exact if isinstance(one.group, sx.groups.Permutation)]
    assert [one.group.size for one in heads] == [2], str(found)


def test_short_floats_are_searched_too():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(5, 4)), "out": rng.normal(size=(4, 5))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)

    def loss(p):
        return jnp.mean((jax.nn.relu(X @ p["w"].T) @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY)
    assert [type(one.group) for one in found] == [sx.groups.PositiveDiagonal, sx.groups.Permutation]
    assert not found.idle


def test_signs_among_many_single_ones_are_found(float64):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=3)) for name in "abdef"}
    params |= {"z": jnp.asarray(rng.normal(size=(3, 4))), "out": jnp.asarray(rng.normal(size=(4, 3)))}

    def loss(p):
        hidden = jnp.tanh(X @ p["z"].T) * jnp.prod(jnp.stack([jnp.cos(p[name]) for name in "abdef"]), axis=0)
        return jnp.mean((hidden @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY, groups=[sx.groups.SignDiagonal, sx.groups.Permutation])
    assert {"z": "e", "out": "e"}.keys() in [
        one.symmetry.specs.keys() for one in found if isinstance(one.group, sx.groups.SignDiagonal)
    ]


def test_odd_names_and_empty_arrays_do_no_harm(float64):
    rng = np.random.default_rng(0)
    params = {"{x}": rng.normal(size=(5, 4)), "a b.[0]*": rng.normal(size=(4, 5)), "none": np.zeros((0, 3))}
    params = jax.tree.map(jnp.asarray, params)

    def loss(p):
        return jnp.mean((jax.nn.relu(X @ p["{x}"].T) @ p["a b.[0]*"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY)
    assert [type(one.group) for one in found.exact] == [sx.groups.PositiveDiagonal, sx.groups.Permutation]
    made: dict = {}
    exec(found.text, {"sx": sx, "params": params}, made)
    assert [symmetry.specs.keys() for symmetry in made.values()] == [{"{x}", "a b.[0]*"}] * 2


# What a discovery says.


def test_the_text_makes_what_was_found():
    found = discovered("transformer, LayerNorm")
    params = row("transformer, LayerNorm").params()
    made: dict = {}
    exec(found.text, {"sx": sx, "params": params}, made)
    spaces = {name: group for symmetry in made.values() for name, group in symmetry.spaces.items()}
    specs = [spec for symmetry in made.values() for spec in symmetry.specs.items()]
    assert spaces == {one.name: one.group for one in found}
    assert sorted(specs) == sorted(spec for one in found for spec in one.symmetry.specs.items())


def test_repeated_layers_are_told_once():
    shapes = [(4, 3), (4, 4), (4, 4), (2, 4)]
    rng = np.random.default_rng(0)
    params = {"layers": [jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for shape in shapes[1:3]]}

    def loss(p):
        z = X
        for a, b in p["layers"]:
            z = z + jax.nn.relu(z @ a.T) @ b.T
        return jnp.mean((z - Y) ** 2)

    params = {"layers": [{"a": leaf[0], "b": leaf[1]} for leaf in params["layers"]]}
    found = sx.find_symmetries(
        lambda p: loss({"layers": [(layer["a"], layer["b"]) for layer in p["layers"]]}),
        params,
        KEY,
        groups=[sx.groups.PositiveDiagonal],
    )
    assert len(found) == 2
    assert str(found).count("PositiveDiagonal(4), 2 times") == 1
    assert "layers.{i}.a" in found.text
    assert "s0_{i}" in found.text
    made: dict = {}
    exec(found.text, {"sx": sx, "params": params}, made)
    (both,) = made.values()
    assert [dict(both.only(name).specs).keys() for name in both.spaces] == [
        {"layers.0.a", "layers.0.b"},
        {"layers.1.a", "layers.1.b"},
    ]


def test_json_has_everything_and_is_json():
    found = discovered("one matrix for queries and keys")
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(told["found"]) == len(found)
    assert told["found"][0]["specs"] == dict(found[0].symmetry.specs)
    assert told["evaluations"] == found.evaluations <= told["cost"]["total"]
    assert "SignDiagonal" in told["asked"]
    assert "not found" in str(found)


def test_a_restricted_search_finds_what_it_was_asked_for():
    one = row("linear")
    with jax.enable_x64(True):
        params, batch = one.params(), one.batch(0)
        found = sx.find_symmetries(one.loss, params, KEY, batch=batch, groups=[sx.groups.PositiveDiagonal])
        cost = sx.discovery.discovery_cost(params, groups=[sx.groups.PositiveDiagonal])
    assert {type(x.group) for x in found} == {sx.groups.PositiveDiagonal}
    assert len(found) == 2
    assert cost == found.cost
    assert cost.permutations == cost.signs == 0
    assert found.evaluations <= cost.total


def test_what_a_budget_does_not_buy_is_told():
    one = row("tanh")
    with jax.enable_x64(True):
        params, batch = one.params(), one.batch(0)
        cost = sx.discovery.discovery_cost(params)
        found = sx.find_symmetries(
            one.loss, params, KEY, batch=batch, budget=cost.points + 14, method="gradients"
        )
        assert found.evaluations <= cost.points + 14
        assert any("beyond the budget" in note and "permutations of 5" in note for note in found.notes)
        assert "Permutation" in found.unfinished
        assert "Permutation" not in str(found).split("not found but", 1)[-1].split("\n")[0]
        with pytest.raises(ValueError, match=rf"budget of 5 .* {cost.points} gradients .* in all\. In full"):
            sx.find_symmetries(one.loss, params, KEY, batch=batch, budget=5)


def test_special_values_are_told_and_certified_elsewhere(float64):
    """At zero biases and unit gains all kinds of relations hold: none of them is reported."""
    params = {"w": jnp.ones((5, 4)), "b": jnp.zeros(5), "out": jnp.ones((4, 5))}

    def loss(p):
        return jnp.mean((jax.nn.gelu(X @ p["w"].T + p["b"]) @ p["out"].T - Y) ** 2)

    found = sx.find_symmetries(loss, params, KEY)
    assert [(one.group, one.certificate.outcome) for one in found] == [
        (sx.groups.Permutation(5, per=()), "exact")
    ]
    assert any("special values" in note and "b, out, w" in note for note in found.notes)


def test_arrays_without_effect_are_told(float64):
    params = {"w": jnp.ones((3, 4)), "unused": jnp.ones((3, 4)), "steps": jnp.arange(3)}
    found = sx.find_symmetries(lambda p: jnp.sum((X @ p["w"].T) ** 2 * p["steps"]), params, KEY)
    assert found.idle == ("unused",)
    assert all("unused" not in one.symmetry.specs for one in found)
    assert any("steps" in note for note in found.notes)


# Bad input.

PARAMS = {"w": jnp.ones((3, 2))}


def random_loss():
    rng = np.random.default_rng(0)

    def loss(p):
        noise = jax.pure_callback(lambda: np.float32(rng.normal()), jax.ShapeDtypeStruct((), np.float32))
        return jnp.sum(p["w"]) + noise

    return loss


@pytest.mark.parametrize(
    ("loss", "params", "message"),
    [
        (lambda p: p["w"], PARAMS, r"must return one real number.* shape \(3, 2\)"),
        (lambda p: (jnp.sum(p["w"]), 0), PARAMS, r"must return one real number.* tuple"),
        (lambda p: jnp.sum(p["w"]) * jnp.inf, PARAMS, "loss at `params` is inf"),
        (lambda p: jnp.sum(p["w"]) * 0 + 3.0, PARAMS, "does not depend on `params`"),
        (lambda p: jnp.sqrt(jnp.sum(p["w"]) - 6 + 1e-9), PARAMS, "is not finite near `params`"),
        (random_loss(), PARAMS, "The loss is random: two calls"),
        (lambda p: jnp.sum(p["w"]), {"w": jnp.arange(3)}, r"floating-point arrays; `params` has none.*int32"),
        (lambda p: jnp.sum(p["w"]), {"w": jnp.array([1.0, jnp.nan])}, "not finite: see w"),
    ],
)
def test_bad_losses_and_parameters_are_refused(loss, params, message, unchecked):
    with pytest.raises(ValueError, match=message):
        sx.find_symmetries(loss, params, KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"groups": [sx.groups.NonzeroDiagonal]},
            "`groups` has 'NonzeroDiagonal'; can be found: GeneralLinear",
        ),
        ({"groups": []}, "at least one group"),
        ({"trials": 0}, "one trial"),
        ({"heads": [7]}, "`heads` has 7, which divides no axis; their lengths are"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sx.find_symmetries(lambda p: jnp.sum(p["w"]), PARAMS, KEY, **options)


# Teleporting along what is found.


def mse(params, batch=None):
    inner = jax.nn.relu(X @ params["w"].T + params["b"])
    return jnp.mean((inner @ params["out"].T - Y) ** 2)


def start():
    rng = np.random.default_rng(7)
    params = {"w": rng.normal(size=(5, 4)), "b": rng.normal(size=5), "out": rng.normal(size=(4, 5))}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def test_teleport_finds_its_symmetry():
    params, search = start(), sx.search.ClosedForm(bound=0.3)
    there, info = sx.teleport(mse, params, "auto", search=search)
    by_hand = sx.NetworkSymmetry(
        {"h": sx.groups.PositiveDiagonal(5)}, {"w": "h _", "b": "h", "out": "_ h*"}, params
    )
    other, known = sx.teleport(mse, params, by_hand, search=search)
    assert isinstance(info.found, sx.discovery.Discovery)
    assert known.found is None
    np.testing.assert_allclose(info.after, known.after, rtol=1e-4)
    for path in params:
        np.testing.assert_allclose(there[path], other[path], rtol=1e-4)


def test_teleported_finds_its_symmetry_once_at_init():
    params, search = start(), sx.search.ClosedForm(bound=0.3)
    optimizer = sx.teleported(optax.adam(1e-2), "auto", loss=mse, search=search, transport="carry")
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        return optimizer.update(jax.grad(mse)(params), state, params, value_fn=mse)

    updates, after = step(params, state)
    found = optimizer.found
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(state)
    assert optimizer.found is found
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((state, after)))
    assert [type(one.group) for one in found] == [sx.groups.PositiveDiagonal, sx.groups.Permutation]
    told = sx.teleported(optax.adam(1e-2), found.joined(compact=False), search=search, transport="carry")
    expected, _ = told.update(jax.grad(mse)(params), told.init(params), params, value_fn=mse)
    for path in params:
        np.testing.assert_allclose(updates[path], expected[path], rtol=1e-5)


def test_the_state_of_an_optimizer_that_finds_its_symmetry_can_be_saved():
    """It holds arrays alone; another process finds the symmetry by `init`, as it makes the optimizer."""
    params, options = start(), {"loss": mse, "search": sx.search.ClosedForm(bound=0.3)}

    def step(optimizer, state):
        updates, state = optimizer.update(jax.grad(mse)(params), state, params, value_fn=mse)
        return updates, state

    first = sx.teleported(optax.adam(1e-2), "auto", **options)
    _, state = step(first, first.init(params))
    saved = flax.serialization.to_bytes(state)
    other = sx.teleported(optax.adam(1e-2), "auto", **options)
    assert other.found is None
    with pytest.raises(ValueError, match=r"call init\(params\) once in this process"):
        step(other, state)
    restored = flax.serialization.from_bytes(other.init(params), saved)
    for one, two in zip(*map(jax.tree.leaves, (step(first, state), step(other, restored))), strict=True):
        np.testing.assert_array_equal(one, two)


def test_auto_refuses_what_it_cannot_do(unchecked):
    params = start()
    with pytest.raises(ValueError, match="compiled code cannot"):
        jax.jit(lambda p: sx.teleport(mse, p, "auto"))(params)
    with pytest.raises(ValueError, match="nothing to teleport along"):
        sx.teleport(
            lambda p, _: jnp.mean(jax.nn.gelu(X @ p["w"].T + p["b"]) @ p["out"].T - Y) ** 2, params, "auto"
        )
    with pytest.raises(ValueError, match="pass it"):
        sx.teleported(optax.sgd(0.1), "auto")
    with pytest.raises(ValueError, match="None or 'auto', got 'find'"):
        sx.teleported(optax.sgd(0.1), "find")


def test_elements_are_drawn_for_each_kind_of_group(float64):
    """Of groups of one size some have more elements: a certificate of one must not use those of another."""
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)))}

    def loss(p):  # rotations that keep the mean, not all
        return jnp.mean((zoo.normalized(p["w"], axes=0) ** 2).sum(axis=0) * jnp.arange(4)) + jnp.sum(
            (zoo.normalized(p["w"], axes=0).T @ (p["w"] - p["w"].mean(axis=0))) ** 3
        )

    (found,) = sx.find_symmetries(loss, params, KEY, groups=[sx.groups.Orthogonal])
    assert found.group == sx.groups.Orthogonal(6, fix="mean")
    assert found.certificate.outcome == "exact"
    assert str(found.group) == "Orthogonal(6, fix='mean')"
    assert "fix='mean'" in sx.find_symmetries(loss, params, KEY, groups=[sx.groups.Orthogonal]).text


def test_certificates_tell_outcomes_apart():
    good = sx.discovery.Certificate(
        1e-12, 1e-12, {"w": 1e-12}, trials=3, tolerance=1e-9, gradient_tolerance=1e-8
    )
    assert good.outcome == "exact"
    assert dataclasses.replace(good, fresh=1e-3).outcome == "approximate"
    assert dataclasses.replace(good, moved=0.0).outcome == "wrong"
    assert dataclasses.replace(good, leaves={"w": 0.5}).outcome == "wrong"
    assert dataclasses.replace(good, invariance=float("nan")).outcome == "wrong"
