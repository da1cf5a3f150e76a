"""The league of transformers at its smallest size, and its optimizers against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.studies import _transformer_arms as arms
from symmetrax.studies import transformer_league
from symmetrax.studies._transformer_optimizers import aro, in_shapes, orthonormal, soap
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

STUDY = transformer_league.STUDIES["transformer-league"]
SMALL = sx.tasks.Architecture(width=8, layers=1, heads=2, kv_heads=2, hidden=8, context=8)
TINY = dataclasses.replace(
    STUDY,
    seeds=2,
    settings=transformer_league.Settings((("small", SMALL),), steps=10, points=2, rates=(0.01,), more=False),
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "l", "transformer-league", "tiny", TINY.identity())
    return folder.path, run_study(TINY, folder, Reporter(quiet=True))


def test_all_arms_are_compared_on_the_same_starts(ran):
    path, results = ran
    group = results["groups"]["small"]["arms"]
    assert list(group) == [arm.name for arm in arms.MAIN]
    held = np.load(path / "small-held-out-loss.npz")
    ends = {name: held[name][:, -1] for name in held.files}
    gap = group["teleport"]["difference"]["adamw"]
    np.testing.assert_allclose(gap["mean"], np.mean(ends["teleport"] - ends["adamw"]), rtol=1e-5)
    assert gap["low"] < gap["mean"] < gap["high"]
    assert group["random"]["rate"] == group["teleport"]["rate"]
    assert {row["outcome"] for row in results["verdicts"]} <= {"reproduced", "reversed", "inconclusive"}


def test_its_tables_and_pictures(ran, capsys):
    path, results = ran
    show_study(TINY, results, Reporter())
    printed = capsys.readouterr().out
    assert "held-out loss after 10 steps" in printed
    assert (path / "transformer-league.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", mostly_slow([arm.name for arm in arms.MORE], ["teleport-88", "aro"]))
def test_every_other_arm_trains(name):
    (arm,) = [arm for arm in arms.MORE if arm.name == name]
    task = sx.tasks.LanguageModel(sx.tasks.standard_library(), SMALL, batch_size=4)
    keys = jax.random.split(jax.random.key(0), 1)
    (trained,) = arms.train(arm, task, [0.01], keys, steps=10, points=2)
    assert trained.held.shape == (1, 2)
    assert np.all(np.isfinite(trained.held))


def test_orthonormal_columns_are_those_of_lapack(float64):
    x = np.random.default_rng(0).normal(size=(3, 7, 5))
    q, r = np.linalg.qr(x)
    signs = np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
    np.testing.assert_allclose(orthonormal(jnp.asarray(x)), q * signs, atol=1e-12)


def gradients(steps=6):
    random = np.random.default_rng(1)
    return [random.normal(size=(4, 6)) for _ in range(steps)]


def test_soap_against_its_algorithm(float64):
    rate, b1, b2, decay, every = 0.1, 0.9, 0.99, 0.95, 2
    optimizer = soap(lambda count: rate, b1, b2, decay, every)
    state = optimizer.init({"w": jnp.zeros((4, 6))})
    left, right, ql, qr = np.zeros((4, 4)), np.zeros((6, 6)), np.eye(4), np.eye(6)
    m, v = np.zeros((4, 6)), np.zeros((4, 6))

    def positive(x):
        q, r = np.linalg.qr(x)
        return q * np.sign(np.diag(r))

    for t, g in enumerate(gradients(), 1):
        steps, state = optimizer.update({"w": jnp.asarray(g)}, state)
        left, right = decay * left + 0.05 * g @ g.T, decay * right + 0.05 * g.T @ g
        if t % every == 1:
            ql, qr = positive(left @ ql), positive(right @ qr)
            if t == 1:  # of rank 4: the last columns are rounding, and any basis of the rest will do
                qr = np.asarray(state.bases["w"][1])
        m = b1 * m + (1 - b1) * g
        turned = ql.T @ g @ qr
        v = b2 * v + (1 - b2) * turned**2
        step = (ql.T @ m @ qr / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        np.testing.assert_allclose(steps["w"], -rate * ql @ step @ qr.T, atol=1e-9)


def test_aro_against_its_formula(float64):
    optimizer = aro(lambda count: 0.1, beta=0.9)
    state = optimizer.init({"w": jnp.zeros((4, 6))})
    m, rotation = np.zeros((4, 6)), np.eye(4)

    def sinkhorn(x):
        for _ in range(5):
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            x = x / np.linalg.norm(x, axis=0, keepdims=True)
        return x / np.sqrt(np.mean(x**2))

    for g in gradients():
        steps, state = optimizer.update({"w": jnp.asarray(g)}, state)
        m = 0.9 * m + 0.1 * g
        q, r = np.linalg.qr(m @ sinkhorn(rotation.T @ m).T)
        rotation = q * np.sign(np.diag(r))
        np.testing.assert_allclose(steps["w"], -0.1 * 0.2 * rotation @ sinkhorn(rotation.T @ m), atol=1e-9)


def test_muon_by_heads_does_not_mix_them():
    task = sx.tasks.LanguageModel(sx.tasks.standard_library(), SMALL)
    setting = arms.Setting(lambda count: 1.0, task, task.symmetry())
    optimizer = arms.muon_of(setting, heads=True)
    params = task.init(jax.random.key(0))
    gradient = jax.tree.map(jnp.ones_like, params) | {"head": params["head"]}
    gradient["layers"] = jax.tree.map(jnp.asarray, params["layers"])
    steps, _ = optimizer.update(gradient, optimizer.init(params), params)
    # Another gradient of the first head changes nothing in the second.
    changed = jax.tree.map(lambda x: x, gradient)
    for name in ("query", "key", "value"):
        changed["layers"][0][name] = changed["layers"][0][name].at[:4].multiply(-3.0)
    changed["layers"][0]["output"] = changed["layers"][0]["output"].at[:, :4].multiply(-3.0)
    others, _ = optimizer.update(changed, optimizer.init(params), params)
    for name in ("query", "key", "value"):
        one, other = steps["layers"][0][name], others["layers"][0][name]
        np.testing.assert_allclose(one[4:], other[4:], atol=1e-5)
        np.testing.assert_allclose(one[:4], -other[:4], atol=1e-2)  # its length is lost, its sign is not
        singular = np.linalg.svd(np.asarray(one[4:]), compute_uv=False)
        assert singular.max() < 2 * singular.min()
    one, other = steps["layers"][0]["output"], others["layers"][0]["output"]
    np.testing.assert_allclose(one[:, 4:], other[:, 4:], atol=1e-5)


def test_shapes_are_put_back():
    inner = in_shapes(optax.sgd(1.0), {"query": (2, 2, -1)})
    params = {"query": jnp.ones((4, 3)), "up": jnp.ones((2, 2))}
    steps, _ = inner.update(params, inner.init(params))
    assert jax.tree.map(jnp.shape, steps) == {"query": (4, 3), "up": (2, 2)}
