"""Symmetries read off programs: those known by hand in architectures of many kinds, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.discovery._trace._laws import Laws, Operation
from symmetrax.discovery._trace._rules import rule_of
from symmetrax.discovery._trace._values import constant

from .. import zoo
from ..architectures import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def found_in(name, params=None, **options):
    one = ARCHITECTURES[name]
    options = {"batch": one.batch, "method": "program"} | options
    return sx.find_symmetries(one.loss, one.params if params is None else params, KEY, **options)


def listed(found):
    return {
        (type(one.group).__name__, one.group.size, one.group.lengths, frozenset(one.symmetry.specs))
        for one in found
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_spaces_known_by_hand_are_found_and_hold_far_away(name):
    one, found = ARCHITECTURES[name], found_in(name)
    expected = {(group, size, per, frozenset(arrays.split())) for group, size, per, arrays in one.spaces}
    assert expected <= listed(found), f"{expected - listed(found)}\n{found}"
    assert all(symmetry.certificate.outcome == "exact" for symmetry in found)
    # An oracle of its own: elements far from the identity, other data, other parameters, plain evaluation.
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        params = {name: jnp.asarray(rng.normal(size=leaf.shape)) for name, leaf in one.params.items()}
        batch = jax.tree.map(lambda x: x.astype(float) if x.dtype.kind == "f" else x, one.batch(KEY))
        here = one.loss(params, batch)
        for k, symmetry in enumerate(found):
            element = {symmetry.name: symmetry.group.sample(jax.random.key(k))}
            there = symmetry.symmetry.act(element, params)
            assert abs(one.loss(there, batch) - here) < 1e-9 * (1 + abs(here)), symmetry


@pytest.mark.parametrize("name", ["vision_transformer", "stacked_keys_and_values", "gemma"])
def test_short_floats_have_the_same_symmetries(name):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ARCHITECTURES[name].params)
    assert listed(found_in(name, params)) == listed(found_in(name))


def test_few_evaluations_are_made_and_none_for_what_follows():
    found = found_in("vision_transformer")
    assert found.evaluations < 40
    assert found.cost.total / 3 < found.evaluations < 3 * found.cost.total
    assert f"foreseen: about {found.cost.total}, of which" in str(found)
    assert not found.rejected
    # Scales, signs and permutations of a head follow from its general linear group.
    assert not any(
        one.group.size == 3 and not isinstance(one.group, sx.groups.GeneralLinear) for one in found
    )


def test_operations_without_a_rule_are_named_and_let_nothing_act_on_what_they_read():
    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((3, 5)), "out": jnp.ones((5, 3))}

    def loss(p, x):
        return jnp.sum(jnp.sort(x @ p["w"], axis=1)[:, 0]) + jnp.mean(jax.nn.relu(x @ p["v"]) @ p["out"])

    batch = ARCHITECTURES["nerf"].batch
    found = sx.find_symmetries(loss, params, KEY, batch=batch, method="program")
    assert any("sort" in note for note in found.notes)
    assert all("w" not in one.symmetry.specs for one in found)
    assert {str(one.group) for one in found} >= {"PositiveDiagonal(5)", "Permutation(5)"}


def test_a_cache_that_is_written_in_a_loop_keeps_the_groups_of_heads():
    """Keys and values of one token after the other are written into arrays of zeros."""
    params = {name: jax.random.normal(jax.random.fold_in(KEY, k), (4, 4)) for k, name in enumerate("qkvo")}

    def loss(p, x):
        def step(cache, token):
            keys, values, at = cache
            keys, values = (
                jax.lax.dynamic_update_slice(old, (token @ p[name])[None], (at, 0))
                for old, name in ((keys, "k"), (values, "v"))
            )
            weights = jax.nn.softmax(keys @ (token @ p["q"]))
            return (keys, values, at + 1), (weights @ values) @ p["o"]

        empty = jnp.zeros_like(x)
        return jnp.mean((jax.lax.scan(step, (empty, empty, 0), x)[1] - jnp.roll(x, 1, 0)) ** 2)

    found = sx.find_symmetries(
        loss, params, KEY, batch=lambda key: jax.random.normal(key, (5, 4)), method="program"
    )
    assert listed(found) == {
        ("GeneralLinear", 4, (), frozenset("qk")),
        ("GeneralLinear", 4, (), frozenset("vo")),
    }


def test_an_index_needs_elements_that_differ():
    """The columns of a readout may be exchanged, but not in one row alone: two elements are few."""
    params = {"w": jnp.ones((4, 2))}

    def loss(p, x):
        return jnp.mean((x @ p["w"][:3] - 1) ** 2)

    x = ARCHITECTURES["nerf"].batch(KEY)
    rows = sx.NetworkSymmetry({"p": sx.groups.Permutation(2, per={"h": 4})}, {"w": "h p"}, params)
    assert sx.verify(loss, params, rows, KEY, x).outcome == "wrong"
    columns = sx.NetworkSymmetry({"p": sx.groups.Permutation(2)}, {"w": "_ p"}, params)
    assert sx.verify(loss, params, columns, KEY, x).outcome == "exact"


def test_large_models_are_read_and_small_ones_also_searched():
    small, large = {"w": jnp.ones((3, 4))}, {"w": jnp.ones((600, 600))}
    assert sx.discovery.discovery_cost(small).points > 1
    assert sx.discovery.discovery_cost(large).points == 1
    assert sx.discovery.discovery_cost(large, method="gradients").points > 1


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"'auto', 'program', 'gradients', got 'gradient'. Did you mean"):
        found_in("nerf", method="gradient")


def test_progress_is_told_line_by_line():
    lines = []
    found = found_in("u_net", progress=lines.append)
    assert lines[0].startswith("question 1 of 1 (Program): asked; 0 found")
    assert any(
        "certify 3 candidates, Permutation(4), Permutation(5), Permutation(6)" in line for line in lines
    )
    assert f"{found.evaluations - 3} evaluations" in lines[-1]  # before the last certificate


def test_an_interrupted_search_returns_what_is_certified():
    def interrupt(line):
        if "Permutation" in line:
            raise KeyboardInterrupt

    found = found_in("u_net", progress=interrupt)
    assert {type(one.group) for one in found} == {sx.groups.PositiveDiagonal}
    assert "interrupted" in str(found)
    assert "Looked for" not in str(found)


def test_no_evaluation_starts_after_the_time_is_over():
    lines = []
    found = found_in("vision_transformer", seconds=1e-9, progress=lines.append, method="auto")
    assert not found.found
    assert found.evaluations < 15
    assert any("no time was left" in note for note in found.notes)
    assert "Looked for" not in str(found)
    with pytest.raises(ValueError, match="positive number, or None for no limit; got 0"):
        found_in("nerf", seconds=0)


def test_symmetries_are_explained_in_words():
    text = found_in("stacked_keys_and_values").explain()
    assert "4 units may be mixed by any invertible matrix, differently for each of 2 h0 and 2 i0." in text
    assert (
        "axis 3 of kv; its inverse transpose on axis 2 of q (element 0) and axis 1 of out (element 1)" in text
    )
    assert "From this follow rotations, scales, signs and permutations" in text
    assert text.count("may be permuted") == 1


def test_points_of_large_models_are_drawn_again_and_are_the_same(monkeypatch):
    kept = found_in("u_net")
    monkeypatch.setattr("symmetrax.discovery._memory.KEPT", 0)
    drawn = found_in("u_net")
    assert [dict(one.symmetry.specs) for one in drawn] == [dict(one.symmetry.specs) for one in kept]
    assert [one.certificate for one in drawn] == [one.certificate for one in kept]
    assert drawn.evaluations == kept.evaluations + 3 * 2  # one more for each trial of two certificates


def test_arrays_without_an_effect_do_not_hide_what_the_others_have():
    """A bias of keys adds the same to all scores of a query, which the softmax removes."""
    params = {"q": jnp.ones((3, 4)), "k": jnp.ones((3, 4)), "bias": jnp.ones(4)}

    def loss(p, x):
        scores = (x @ p["q"]) @ (x @ p["k"] + p["bias"]).T
        return jnp.mean((jax.nn.softmax(scores) @ x - x) ** 2)

    found = sx.find_symmetries(loss, params, KEY, batch=ARCHITECTURES["nerf"].batch, method="program")
    assert found.idle == ("bias",)
    assert [(str(one.group), dict(one.symmetry.specs)) for one in found] == [
        ("GeneralLinear(4)", {"k": "_ g0", "q": "_ g0*"})
    ]


@pytest.mark.parametrize("name", ["LSTM, signs", "normalized with gains"])
def test_signs_found_in_two_ways_are_told_once(name, float64):
    one = zoo.row(name)
    found = sx.find_symmetries(one.loss, one.params(), KEY, batch=one.batch(0))
    read = sx.find_symmetries(one.loss, one.params(), KEY, batch=one.batch(0), method="program")
    signs = [[x for x in each if isinstance(x.group, sx.groups.SignDiagonal)] for each in (found, read)]
    assert len(signs[0]) == len(signs[1])


def test_a_fourier_transform_keeps_the_other_axes():
    rule = rule_of("fft")
    assert rule is not None
    assert rule(Operation(Laws(), [constant((2, 5, 4))], {"fft_lengths": (4,)}, (2, 5, 3))).shape == (2, 5, 3)
