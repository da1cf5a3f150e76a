"""The examples do what they say; and the symmetry that softmax forgets."""

import importlib.util
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import symmetrax as sx

# `carry` is what `transport="carry"` does to a state, here with an element that no search finds.
from symmetrax.teleportation._transport import carry

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_here():
    source = Path(__file__).read_text()
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names
    assert all(f'example("{name}")' in source for name in names)


@pytest.mark.slow
def test_study(tmp_path):
    study = example("study").STUDY
    assert len([line for line in (EXAMPLES / "study.py").read_text().splitlines() if line]) <= 40
    path = sx.studies.run_experiment(study, "quick", tmp_path / "run", quiet=True)
    arms = json.loads((path / "results.json").read_text())["groups"]["fits"]["arms"]
    assert list(arms) == ["plain", "teleporting", "switched-off"]


def test_equinox_mlp(capsys):
    report, before, after = example("equinox_mlp").main()
    assert report.outcome == "exact"
    assert after < before / 4
    printed = capsys.readouterr().out
    assert "layers.1.weight  hidden2 hidden1*" in printed
    assert f"loss {before:.4f} -> {after:.4f} in 100 steps" in printed


def test_flax_mlp(capsys):
    report, before, after, teleports = example("flax_mlp").main()
    assert report.outcome == "exact"
    assert after < before / 4
    assert 0 < teleports < 50
    printed = capsys.readouterr().out
    assert "inner.kernel  _ hidden1" in printed
    assert f"{teleports} teleports in 100 steps" in printed


def test_plain_dict(capsys):
    here, steep, balanced, info, less = example("plain_dict").main()
    np.testing.assert_allclose([steep, balanced], here, rtol=1e-4)
    assert info.after > 2 * info.before
    assert -less.after < -less.before
    assert info.evaluations == 1
    assert "for 1 gradient\n" in capsys.readouterr().out


def test_new_symmetry(capsys):
    module = example("new_symmetry")
    reports, elsewhere, info, losses = module.main()
    assert [report.outcome for report in reports] == ["exact", "exact"]
    assert elsewhere.code == 1
    assert elsewhere.residual == pytest.approx(1, rel=1e-5)
    assert info.after > info.before
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert "on other data: the inputs of this batch do not sum to one" in capsys.readouterr().out


def test_transformer(capsys):
    symmetry, right, wrong = example("transformer").main()
    assert symmetry.specs["blocks.1.o"] == "stream (kv vo1*)"
    assert right.outcome == "exact"
    assert wrong.outcome == "wrong"
    assert ("blocks.1.down", 1, "up1", "up1*") in [(s.path, s.axis, s.wrong, s.right) for s in wrong.suspects]
    assert {s.path for s in wrong.suspects} <= {"blocks.1.down", "blocks.1.up"}
    assert "suspect: blocks.1.down, axis 1: 'up1*' instead of 'up1'" in capsys.readouterr().out


def test_match_mlps(capsys):
    barriers = example("match_mlps").main()
    assert barriers["all groups"] < barriers["permutations"] < barriers["as trained"]
    assert "barrier, all groups:" in capsys.readouterr().out


# LogitShift


def classifier(bias=True, layout="out in"):
    """A classifier of 4 inputs, 5 hidden units and 3 classes, with its loss and a batch."""
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(5, 4)), "last": rng.normal(size=(3, 5))}
    if bias:
        params["bias"] = rng.normal(size=3)
    if layout == "in out":
        params["last"] = params["last"].T

    def loss(params, batch):
        x, y = batch
        matrix = params["last"].T if layout == "out in" else params["last"]
        logits = jnp.tanh(x @ params["first"].T) @ matrix + params.get("bias", 0.0)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    batch = jnp.asarray(rng.normal(size=(7, 4))), jnp.asarray(rng.integers(0, 3, size=7))
    return loss, jax.tree.map(jnp.asarray, params), batch


CASES = [(True, "out in"), (True, "in out"), (False, "out in")]


@pytest.mark.parametrize(("bias", "layout"), mostly_slow(CASES, CASES[1:2], unpack=True))
def test_a_logit_shift_obeys_all_laws_and_its_orbit_is_orthogonal_to_the_gradient(float64, bias, layout):
    loss, params, batch = classifier(bias, layout)
    symmetry = sx.symmetry.LogitShift("last", "bias" if bias else None, like=params, layout=layout)
    assert symmetry.algebra == (5 + bias,)
    report = sx.verify(loss, params, symmetry, jax.random.key(0), batch, trials=3)
    assert report.outcome == "exact"
    assert report.worst < 1e-12
    assert report.moved > 0.1
    assert symmetry.holds(params).code == 0

    a = symmetry.sample(jax.random.key(1))
    there, gradient = symmetry.act(a, params), jax.grad(loss)(params, batch)
    moved = optax.tree.sub(there, params)
    assert optax.tree.norm(moved) > 1
    product = optax.tree.vdot(moved, gradient)
    assert abs(product) < 1e-12 * optax.tree.norm(moved) * optax.tree.norm(gradient)
    for x, y in zip(*map(jax.tree.leaves, (jax.grad(loss)(there, batch), gradient)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-13)


def test_a_logit_shift_moves_every_logit_of_a_sample_by_the_same_number(float64):
    """In NumPy, with SciPy's softmax."""
    _, params, (x, _) = classifier()
    symmetry = sx.symmetry.LogitShift("last", "bias", like=params)
    a = np.asarray(symmetry.sample(jax.random.key(2)))
    there = symmetry.act(jnp.asarray(a), params)
    h = np.tanh(np.asarray(x) @ np.asarray(params["first"]).T)
    before, after = (h @ np.asarray(p["last"]).T + np.asarray(p["bias"]) for p in (params, there))
    np.testing.assert_allclose(after - before, np.tile((h @ a[:5] + a[5])[:, None], 3), rtol=1e-12)
    np.testing.assert_allclose(
        scipy.special.softmax(after, axis=1), scipy.special.softmax(before, axis=1), rtol=1e-12
    )
    assert jnp.array_equal(there["first"], params["first"])


def test_a_logit_shift_is_found_where_the_parameters_are_least(float64):
    """Minus the squared norm is a parabola with second derivative -2 * classes: one step goes to its top."""
    loss, params, batch = classifier()
    symmetry = sx.symmetry.LogitShift("last", "bias", like=params)
    search = sx.search.Ascent(steps=1, rate=1 / 6, bound=10.0)
    there, info = sx.teleport(
        loss, params, symmetry, batch, objective=sx.objectives.NegativeParameterNorm(), search=search
    )
    assert info.outcome == 0
    for name in ("last", "bias"):
        np.testing.assert_allclose(np.mean(there[name], axis=0), 0, atol=1e-14)
        np.testing.assert_allclose(there[name], params[name] - np.mean(params[name], axis=0), rtol=1e-12)
    np.testing.assert_allclose(loss(there, batch), loss(params, batch), rtol=1e-13)
    steepest, same = sx.teleport(loss, params, symmetry, batch)  # nothing to gain for the gradient
    np.testing.assert_allclose(same.after, same.before, rtol=1e-12)
    assert optax.tree.norm(optax.tree.sub(steepest, params)) < 1e-12


def test_optimizer_states_do_not_change_under_a_logit_shift(float64):
    loss, params, batch = classifier()
    symmetry, optimizer = sx.symmetry.LogitShift("last", "bias", like=params), optax.adam(0.1)
    _, state = optimizer.update(jax.grad(loss)(params, batch), optimizer.init(params), params)
    carried = carry(state, symmetry, symmetry.sample(jax.random.key(0)), params)
    assert eqx.tree_equal(carried, state)
    assert optax.tree.norm(optax.tree.get(carried, "nu")) > 0


def test_a_logit_shift_of_a_model_keeps_types_and_other_leaves():
    """Single precision, a model with functions in it, bfloat16."""
    model = eqx.nn.MLP(3, 4, width_size=5, depth=1, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.layers[1].bias, model, replace_fn=lambda bias: bias.astype(jnp.bfloat16))
    symmetry = sx.symmetry.LogitShift("layers.1.weight", "layers.1.bias", like=model)
    there = symmetry.act(jnp.arange(6.0), model)
    assert there.activation is model.activation
    assert there.layers[1].bias.dtype == jnp.bfloat16
    np.testing.assert_allclose(there.layers[1].weight, model.layers[1].weight + jnp.arange(5.0), rtol=1e-6)
    assert eqx.tree_equal(there.layers[0], model.layers[0])


def test_a_logit_shift_says_what_does_not_fit(unchecked):
    params = {"w": jnp.ones((3, 5)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"No array is called 'weight'"):
        sx.symmetry.LogitShift("weight", like=params)
    with pytest.raises(ValueError, match=r"needs a matrix, but b has shape \(3,\)"):
        sx.symmetry.LogitShift("b", like=params)
    with pytest.raises(ValueError, match=r"w, stored 'in out', has 5 logits, but b has shape \(3,\)"):
        sx.symmetry.LogitShift("w", "b", like=params, layout="in out")
    with pytest.raises(ValueError, match=r"`layout` must be 'out in' or 'in out', got 'heads'"):
        sx.symmetry.LogitShift("w", "b", like=params, layout="heads")
