"""One teleport in a small regression, at the smallest size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.studies import _published
from symmetrax.studies import teleport_regression as experiment
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

STUDY = experiment.STUDIES["teleport-regression"]
# Seed 0 draws four runs in which the action of the published code diverges, as it does in about half of all.
TINY = dataclasses.replace(
    STUDY,
    seed=1,
    seeds=2,
    tasks=2,
    tuning_tasks=2,
    settings=experiment.Settings(rates=2, epochs=12, epoch=3, methods=("gd",), ways=("first-order",)),
)
QUIET = Reporter(quiet=True)


# Slow: test_teleport_plane.py has the same kinds of arms, and runs them always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "regression"
    folder = RunFolder(path, "teleport-regression", "tiny", TINY.identity())
    results = run_study(TINY, folder, QUIET)
    folder.results(results)
    return path, json.loads((path / "results.json").read_text())


def test_every_arm_counts_all_its_runs_and_says_what_it_cost(ran):
    arms = ran[1]["groups"]["regression-gd"]["arms"]
    for name, arm in arms.items():
        assert arm["runs"] == 4
        assert len(arm["loss_median"]) == len(arm["seconds_curve"]) == arm["steps"] + 1, name
        assert {"gd", "gd-tuned"} - {name} <= set(arm["versus"])
    assert arms["gd"]["gradient_evaluations"] == 12
    assert arms["teleport"]["gradient_evaluations"] == arms["gd-budget"]["gradient_evaluations"] == 12 + 25
    assert arms["scaling"]["gradient_evaluations"] == 12  # one gradient serves the search and the step
    assert arms["first-order"]["gradient_evaluations"] == 12 + 24 + 1


def test_arms_meet_the_same_problems_until_the_teleport(ran):
    with np.load(ran[0] / "losses.npz", allow_pickle=False) as losses:
        curves = {name: losses[name] for name in losses.files}
    gd = curves["regression-gd.gd"]
    assert len(np.unique(gd[..., 0])) == 4
    for name, curve in curves.items():
        np.testing.assert_allclose(curve[..., 0], gd[..., 0], rtol=1e-5)
        if "tuned" not in name:
            np.testing.assert_allclose(
                curve[..., : TINY.settings.epoch + 1], gd[..., : TINY.settings.epoch + 1], rtol=1e-4
            )


def test_exact_rescaling_keeps_the_loss_on_any_data_and_the_published_action_on_its_batch(ran):
    jumps = {name: arm["jumps"] for name, arm in ran[1]["groups"]["regression-gd"]["arms"].items()}
    assert jumps["scaling"]["loss change"][1] < 1e-5
    assert jumps["scaling"]["on fresh data"][1] < 1e-5
    assert abs(jumps["teleport"]["loss change"][0]) < 1e-3
    assert jumps["teleport"]["on fresh data"][1] > 1e-2
    assert jumps["first-order"]["loss change"][1] > 0.1
    assert jumps["scaling"]["rise"][0] > 1.5


def test_verdicts_and_tables(ran, capsys):
    for row in ran[1]["verdicts"]:
        assert row["outcome"] in ("reproduced", "reversed", "inconclusive")
    assert any("same rate, same epochs" in row["claim"] for row in ran[1]["verdicts"])
    show_study(TINY, ran[1], Reporter())
    printed = capsys.readouterr().out
    for words in ("regression-gd: final loss, all 4 runs", "on fresh data", "cost until the loss"):
        assert words in printed
    assert (ran[0] / "regression-gd.png").stat().st_size > 10_000


def test_the_action_of_the_experiment_is_exact_on_the_samples(float64):
    family = sx.tasks.RegressionFamily("regression")
    task = family.task(family.draw(jax.random.key(0)))
    symmetry, params = task.network.invertible_symmetry("preimage"), task.init(jax.random.key(1))

    @jax.jit
    def after(params):
        element = symmetry.exp(0.1 * jax.random.normal(jax.random.key(2), symmetry.algebra))
        return task.loss(symmetry.act(element, params, task.batch(jax.random.key(3))))

    np.testing.assert_allclose(after(params), task.loss(params), rtol=1e-9)
    x = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(_published.unleaky(_published.leaky(x)), x, rtol=1e-12)


def test_features_are_what_each_layer_receives(float64):
    family = sx.tasks.RegressionFamily("regression")
    task = family.task(family.draw(jax.random.key(0)))
    params = task.init(jax.random.key(1))
    seen = _published.features(params, task.batch(jax.random.key(2)))
    outputs = np.asarray(seen["w3"]) @ np.asarray(params["w3"]).T
    np.testing.assert_allclose(0.5 * np.sum((outputs - task.targets) ** 2), task.loss(params), rtol=1e-12)


def test_the_first_order_search_is_one_of_numpy(float64, central_differences):
    """One step of it against finite differences of the squared gradient norm, and numpy's pseudo-inverse."""
    family = sx.tasks.RegressionFamily("regression", dims=(3, 2, 2, 2), samples=2)
    task = family.task(family.draw(jax.random.key(0)))
    params = task.init(jax.random.key(1))
    batch, rate = task.batch(jax.random.key(2)), 1e-3
    search = _published.FirstOrder(1, jnp.array(rate))
    found = search(lambda w: task.loss(w, batch), params, batch).params

    x, (w1, w2, w3) = np.asarray(task.inputs), (np.asarray(params[f"w{i}"]) for i in (1, 2, 3))
    leaky = lambda z: np.where(z < 0, 0.1 * z, z)  # noqa: E731
    inputs = x.T, leaky(w1 @ x.T)

    def moved(steps):
        s, t = steps.reshape(2, 2, 2)
        preimage = lambda z: np.where(z < 0, 10 * z, z)  # noqa: E731
        v1 = preimage((np.eye(2) + s) @ leaky(w1 @ inputs[0])) @ np.linalg.pinv(inputs[0])
        u2 = w2 @ (np.eye(2) - s)
        v2 = preimage((np.eye(2) + t) @ leaky(u2 @ inputs[1])) @ np.linalg.pinv(inputs[1])
        return {"w1": v1, "w2": v2, "w3": w3 @ (np.eye(2) - t)}

    def height(steps):
        gradient = jax.grad(task.loss)({name: jnp.asarray(w) for name, w in moved(steps).items()})
        return np.array([sum(float(jnp.sum(g**2)) for g in gradient.values())])

    slope = central_differences(height, np.zeros(8))[0]
    for name, expected in moved(rate * slope).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.slow
def test_adagrads_gain_is_the_reset(tmp_path):
    """The quick preset: resetting the accumulator alone helps, and a teleport adds next to nothing."""
    settings = experiment.Settings(methods=("adagrad",), ways=())
    study = dataclasses.replace(STUDY.preset("quick"), settings=settings)
    folder = RunFolder(tmp_path / "run", "teleport-regression", "quick", study.identity())
    arms = run_study(study, folder, QUIET)["groups"]["regression-adagrad"]["arms"]
    ends = {name: arm["loss_median"][-1] for name, arm in arms.items()}
    assert ends["reset"] < 0.7 * ends["adagrad"]
    assert ends["teleport-reset"] > 0.85 * ends["reset"]
