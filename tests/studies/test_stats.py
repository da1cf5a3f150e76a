"""Statistics over all runs, paired, with the meta-seed as the unit of inference."""

import numpy as np
import pytest
import scipy.stats

from symmetrax.studies.core._statistics import (
    Interval,
    finals,
    intervals,
    log_ratios,
    sign_verdict,
    summary,
    verdict,
)


def runs(final, start=1.0):
    """Losses (1, tasks, 2) that go from `start` to the given finals."""
    final = np.asarray(final, float)
    return np.stack([np.full_like(final, start), final], axis=-1)[None]


def test_every_run_enters_the_mean_and_the_quartiles():
    """S22: the mean of all runs, not of the last one."""
    losses = np.random.default_rng(0).exponential(size=(3, 7, 5))
    found = summary(losses, expected_runs=21)
    flat = losses.reshape(21, 5)
    np.testing.assert_allclose(found["loss_mean"], flat.mean(axis=0))
    np.testing.assert_allclose(found["loss_median"], np.median(flat, axis=0))
    np.testing.assert_allclose(found["loss_q25"], np.sort(flat, axis=0)[5])
    assert found["runs"] == 21


def test_missing_runs_are_an_error():
    """S22: statistics refuse to be computed over fewer runs than were asked for."""
    with pytest.raises(ValueError, match="expected 21, got 20"):
        summary(np.ones((4, 5, 3)), expected_runs=21)


def test_diverged_means_not_finite_or_above_ten_times_the_start():
    found = summary(runs([0.5, 10.0, 10.1, np.nan, np.inf, -np.inf]), expected_runs=6)
    assert found["diverged"] == 4
    assert found["loss_mean"][-1] == np.inf
    assert found["loss_median"][-1] == 10.1


def test_solved_against_solved_is_a_tie():
    assert log_ratios(runs([1e-20, 0.0]), runs([1e-13, 1e-30])).tolist() == [[0.0, 0.0]]
    assert finals(runs([0.0], start=5.0)).tolist() == [[5e-12]]


def test_a_diverged_run_loses_against_any_other_and_ties_with_its_like():
    assert log_ratios(runs([np.nan, 1.0, np.inf]), runs([1.0, np.inf, np.nan])).tolist() == [
        [np.inf, -np.inf, 0.0]
    ]


def test_log_ratios_are_paired():
    found = log_ratios(runs([0.5, 2.0]), runs([1.0, 1.0]))
    np.testing.assert_allclose(found, [[-np.log(2), np.log(2)]])


def test_few_seeds_give_a_t_interval_on_the_medians_of_seeds():
    medians = np.array([-1.0, -0.5, -0.8, -0.2])
    ratios = medians[:, None] + np.array([-5.0, 0.0, 5.0])
    low, high = intervals({"x": ratios})["x"][1:]
    expected = scipy.stats.t.interval(0.95, 3, medians.mean(), scipy.stats.sem(medians))
    np.testing.assert_allclose((low, high), expected)


def test_one_seed_says_nothing():
    assert intervals({"x": np.full((1, 10), -3.0)})["x"] == Interval(-3.0, -np.inf, np.inf)


def test_the_bootstrap_takes_seeds_as_the_unit():
    """20 seeds with one median each and thousands of tasks: the interval is that of 20 numbers, not of
    20,000; its coverage over repetitions is near the nominal level."""
    random = np.random.default_rng(1)
    covered, width = 0, []
    for _ in range(60):
        effects = random.normal(size=(20, 1))
        ratios = effects + 0.3 * random.normal(size=(20, 200))
        found = intervals({"x": ratios}, draws=200)["x"]
        covered += found.low <= 0 <= found.high
        width.append(found.high - found.low)
    assert covered >= 48
    assert np.mean(width) > 0.5


def test_the_bootstrap_equals_brute_force_resampling():
    random = np.random.default_rng(2)
    ratios = random.normal(size=(20, 1)) + random.normal(size=(20, 30))
    found = intervals({"x": ratios}, draws=4000)["x"]
    medians = []
    for _ in range(4000):
        rows = ratios[random.integers(20, size=20)]
        medians.append(np.median(np.take_along_axis(rows, random.integers(30, size=(20, 30)), axis=1)))
    np.testing.assert_allclose(found[1:], np.quantile(medians, [0.025, 0.975]), atol=0.06)
    assert found == intervals({"x": ratios}, draws=4000)["x"]  # the same draws every time


def test_infinite_ratios_are_ordered_not_lost():
    ratios = np.where(np.arange(30) < 12, np.inf, -1.0) * np.ones((20, 1))
    found = intervals({"x": ratios}, draws=100)["x"]
    assert found.log_ratio == -1.0
    assert found.low == -1.0


@pytest.mark.parametrize(
    ("interval", "negative", "outcome"),
    [
        (Interval(-1, -2, -0.1), True, "reproduced"),
        (Interval(1, 0.1, 2), True, "reversed"),
        (Interval(-1, -2, 0.1), True, "inconclusive"),
        (Interval(1, 0.1, 2), False, "reproduced"),
        (Interval(-1, -2, -0.1), False, "reversed"),
        (Interval(0, -np.inf, np.inf), True, "inconclusive"),
        (Interval(0.0, 0.0, 0.0), True, "inconclusive"),
    ],
)
def test_verdicts_need_the_whole_interval(interval, negative, outcome):
    assert verdict("claim", "source", interval, negative=negative)["outcome"] == outcome


@pytest.mark.parametrize(
    ("wins", "ties", "seeds", "outcome"),
    [
        (20, 0, 20, "reproduced"),
        (15, 0, 20, "reproduced"),
        (14, 0, 20, "inconclusive"),
        (3, 0, 20, "reversed"),
        (5, 0, 5, "inconclusive"),
        (0, 20, 20, "inconclusive"),
        (9, 11, 20, "reproduced"),
    ],
)
def test_one_run_per_seed_is_judged_by_a_sign_test(wins, ties, seeds, outcome):
    ratios = np.concatenate([np.full(wins, -1.0), np.zeros(ties), np.full(seeds - wins - ties, 1.0)])
    assert sign_verdict("claim", "source", ratios)["outcome"] == outcome
