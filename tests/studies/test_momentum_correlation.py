"""Momentum against the gain of teleports, at its smallest size; the correlations against SciPy."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import scipy.stats

import symmetrax as sx
from symmetrax.rollout._unroll import draw_many
from symmetrax.studies import _fig7_arms, momentum_correlation
from symmetrax.studies._momentum_statistics import everything, gather
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._correlations import CLOSEST, MEASURES, correlations, fisher_interval
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._run_facts import due
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._runs import run_many
from symmetrax.studies.core._streams import Streams

pytestmark = pytest.mark.usefixtures("quick_compilation")

BUDGET = Budget(runs=1, seeds=2, steps=4, unroll=2, patience=0)
STUDY = momentum_correlation.STUDIES["momentum-correlation"]
TINY = dataclasses.replace(
    STUDY,
    seeds=2,
    tasks=5,
    settings=momentum_correlation.Settings({"regression-20": BUDGET}, _fig7_arms.Networks(units=3, width=4)),
)


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "momentum"
    folder = RunFolder(path, "momentum-correlation", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    folder.results({"experiment": "momentum-correlation", "preset": "tiny", "seconds": 1.0, **results})
    return path, json.loads((path / "results.json").read_text())


def test_all_measures_have_intervals_and_verdicts(ran, capsys):
    path, results = ran
    found = results["correlations"]["regression-20"]
    assert set(found) == {"same step", "next step"}
    for kinds in found.values():
        assert set(kinds) == {"spearman", "pearson"}
        for measured in kinds.values():
            assert tuple(measured) == MEASURES
            for entry in measured.values():
                low, mean, high = (float(entry[key]) for key in ("low", "mean", "high"))
                assert -1 <= low <= mean <= high <= 1
                assert len(entry["seeds"]) == 2
    assert len(results["verdicts"]) == 4
    recorded = results["teleports"]["regression-20"]
    assert recorded["teleports"] == 2 * 5 * 4
    arms = results["groups"]["regression-20"]["arms"]
    assert {arm["runs"] for arm in arms.values()} == {10}
    assert (path / "correlations.png").exists()
    assert (path / "teleports.png").exists()
    show_study(TINY, results, Reporter())
    assert "regression-20: 40 teleports" in capsys.readouterr().out


def test_gains_are_those_of_the_gradients_at_both_ends(ran):
    """One run again, step by step, with the gradient of the loss written out."""
    with np.load(ran[0] / "regression-20-events.npz", allow_pickle=False) as arrays:
        events = dict(arrays)
    assert events["step"].tolist() == [0, 1, 2, 3]
    arm = momentum_correlation.learned(TINY, "regression-20")
    streams = Streams.of(0, 2)
    # The networks of the run are forgotten: measure others in both ways.
    networks = jax.vmap(arm.make)(jax.random.split(jax.random.key(5), 2))
    options = {"watch": STUDY.watch, "look": STUDY.look, "parts": None}
    ran = run_many(arm.rule, networks, arm.family, streams.test, steps=4, tasks=5, **options)
    seen = {**ran.recorded, "loss": ran.losses}
    own = jax.tree.map(lambda x: x[1], networks)
    watch = ("algebra", "momentum", "previous", "outcome")
    trace = sx.unroll_many(arm.rule, own, arm.family, streams.test[1], 4, 5, watch=watch, points=True)
    np.testing.assert_allclose(seen["loss"][1], trace.loss.T, rtol=1e-5)
    np.testing.assert_allclose(seen["momentum"][1], trace.watched["momentum"][1:].T, rtol=1e-6)
    inputs, targets = (np.asarray(x, float) for x in draw_many(arm.family, 5, streams.test[1]))
    points = {name: np.asarray(x, float) for name, x in trace.params.items()}
    velocity = {name: np.asarray(x, float) for name, x in trace.watched["previous"].items()}
    for task in range(5):
        data = inputs[..., task], targets[..., task]
        for step in range(4):
            landing = {n: points[n][step, ..., task] + velocity[n][step + 1, ..., task] for n in points}
            after = {n: points[n][step + 1, ..., task] for n in points}
            gain = gradient_norm(after, *data) / gradient_norm(landing, *data)
            assert abs(gain - 1) > 1e-6
            assert seen["gain"][1, task, step] == pytest.approx(gain, rel=1e-4)
            # And the teleport did not change the loss.
            assert loss(after, *data) == pytest.approx(loss(landing, *data), rel=1e-4)


def forward(w, inputs):
    hidden = inputs @ w["w1"].T
    return hidden, np.where(hidden > 0, hidden, 0.1 * hidden)


def loss(w, inputs, targets):
    return 0.5 * np.sum((targets - forward(w, inputs)[1] @ w["w2"].T) ** 2)


def gradient_norm(w, inputs, targets):
    hidden, active = forward(w, inputs)
    error = active @ w["w2"].T - targets
    back = (error @ w["w2"]) * np.where(hidden > 0, 1.0, 0.1)
    return np.sqrt(np.sum((error.T @ active) ** 2) + np.sum((back.T @ inputs) ** 2))


def test_a_rejected_teleport_is_no_event():
    seen = {"gain": np.full((1, 1, 3), 2.0), "outcome": np.array([[[0, 3, 0]]])}
    seen["momentum"] = np.array([[[0.1, 0.2, 0.3]]])
    found = gather(seen, np.array([1, 2]))
    np.testing.assert_array_equal(found["gain"], [[[np.nan, 2.0]]])
    np.testing.assert_array_equal(found["same step"], [[[np.nan, 0.3]]])


def test_digits_have_the_networks_for_any_width():
    budget = dataclasses.replace(BUDGET, steps=12)
    study = dataclasses.replace(STUDY, settings=momentum_correlation.Settings({"digits": budget}))
    arm = momentum_correlation.learned(study, "digits")
    assert due(arm.rule, 12).tolist() == [5, 10]
    assert arm.make(jax.random.key(0)).contract()["emits"][:2] == ["step_size", "momentum"]
    task = arm.family.task((), 16)
    pixels, labels = everything(task)
    assert len(pixels) == len(labels) == 1437


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_plain_correlations_are_scipys(kind):
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 4, 9))
    y = x + random.normal(size=(2, 4, 9))
    x[0, 0, :2], y[0, 1, 3] = np.nan, np.inf
    function = {"spearman": scipy.stats.spearmanr, "pearson": scipy.stats.pearsonr}[kind]
    found = correlations(x, y, kind)
    for seed in range(2):
        good = np.isfinite(x[seed]) & np.isfinite(y[seed])
        assert found["across"][seed] == pytest.approx(function(x[seed][good], y[seed][good])[0])
        runs = [function(a[g], b[g])[0] for a, b, g in zip(x[seed], y[seed], good, strict=True)]
        assert found["within runs"][seed] == pytest.approx(np.tanh(np.mean(np.arctanh(runs))))


def test_correlation_at_equal_step_is_the_partial_one():
    """Against least squares on one indicator for each step."""
    random = np.random.default_rng(2)
    drift = 3 * np.sin(np.arange(7.0))
    x, y = drift + random.normal(size=(2, 1, 30, 7))
    y = y + 0.5 * x
    steps = np.tile(np.eye(7), (30, 1))
    rest = [v.ravel() - steps @ np.linalg.lstsq(steps, v.ravel(), rcond=None)[0] for v in (x, y)]
    found = correlations(x, y, "pearson")
    assert found["at equal step"][0] == pytest.approx(scipy.stats.pearsonr(*rest)[0])
    ranks = [scipy.stats.rankdata(v.ravel()) for v in (x, y)]
    rest = [v - steps @ np.linalg.lstsq(steps, v, rcond=None)[0] for v in ranks]
    found = correlations(x, y, "spearman")
    assert found["at equal step"][0] == pytest.approx(scipy.stats.pearsonr(*rest)[0])


def test_the_momentum_of_another_run_shares_the_clock_alone():
    random = np.random.default_rng(3)
    clock, own = np.arange(20.0), random.normal(size=(1, 40, 20))
    alike = correlations(own, own + 0.01 * random.normal(size=own.shape), "spearman")
    assert alike["across"][0] > 0.99
    assert abs(alike["across, other run"][0]) < 0.02
    timed = correlations(clock + own, clock + random.normal(size=own.shape), "spearman")
    assert timed["within runs, other run"][0] > 0.9
    assert timed["across, other run"][0] == pytest.approx(timed["across"][0], abs=0.01)
    assert abs(timed["at equal step"][0]) < 0.1


def test_intervals_are_students_on_fishers_scale():
    values = np.array([0.1, 0.5, 0.3, np.nan, 0.9])
    z = np.arctanh(values[[0, 1, 2, 4]])
    expected = scipy.stats.ttest_1samp(z, 0).confidence_interval(0.95)
    found = fisher_interval(values)
    np.testing.assert_allclose(found, np.tanh([np.mean(z), expected.low, expected.high]))
    assert fisher_interval(np.array([0.5])) == (pytest.approx(0.5), -1.0, 1.0)
    assert np.isnan(fisher_interval(np.array([np.nan])).mean)
    assert fisher_interval(np.array([1.0, 1.0])).mean == pytest.approx(1 - CLOSEST)


def test_what_does_not_vary_has_no_correlation():
    x = np.ones((1, 3, 4))
    found = correlations(x, np.random.default_rng(0).normal(size=x.shape), "spearman")
    assert all(np.isnan(values[0]) for values in found.values())
