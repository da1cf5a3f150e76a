"""The experiment on the standard learned optimizers, at its smallest size."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.studies import baselines
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._streams import Streams

pytestmark = pytest.mark.usefixtures("quick_compilation")

HORIZONS = (2, 6)
FULL = baselines.STUDIES["baselines"]
TINY = dataclasses.replace(
    FULL.preset("quick"),
    tasks=3,
    tuning_tasks=2,
    horizons=HORIZONS,
    budget=Budget(runs=4, steps=2, unroll=2, chunk=2, remat=True),
    settings=baselines.Settings(
        arms=("lstm", "lstm-tricks"),
        tricks=Budget(
            runs=4, unroll=2, chunk=2, patience=1, validation_tasks=2, stages=(2, 4), imitation=0.3
        ),
        rates=3,
        width=3,
        batch_size=8,
        core=3,
        depth=1,
    ),
)
ARMS = ("lstm", "lstm-tricks", "gd", "momentum", "adam")


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "baselines", "baselines", "tiny", TINY.identity())
    return folder.path, run_study(TINY, folder, Reporter(quiet=True))


def test_every_arm_has_all_its_runs_on_every_horizon(ran):
    for horizon in HORIZONS:
        arms = ran[1]["groups"][f"digits-{horizon}"]["arms"]
        assert set(arms) == set(ARMS)
        for name, arm in arms.items():
            assert arm["runs"] == 6
            assert len(arm["loss_median"]) == horizon + 1
            assert arm["gradient_evaluations"] == horizon
            assert ("hyperparameters" in arm) == (name in baselines.HAND)
        assert arms["gd"]["hyperparameters"]["momentum"] == 0.0
        assert arms["momentum"]["hyperparameters"]["momentum"] >= 0.5


def test_arms_meet_the_same_networks_and_minibatches(ran):
    """And the shorter horizon of a learned arm is the beginning of the longer one."""
    with np.load(ran[0] / "losses.npz", allow_pickle=False) as losses:
        starts = [losses[name][..., 0] for name in ARMS]
    short, long = (ran[1]["groups"][f"digits-{horizon}"]["arms"]["lstm"] for horizon in HORIZONS)
    assert long["loss_median"][:3] == short["loss_median"]
    for start in starts[1:]:
        np.testing.assert_allclose(start, starts[0], rtol=1e-5)
    assert len(np.unique(starts[0])) == 6


def test_baselines_are_tuned_for_every_horizon_on_the_tuning_stream(ran):
    """The best of the grid, run one by one."""
    family, streams = TINY.made()[0], Streams.of(TINY.seed, TINY.seeds)
    rates = baselines.RATES[[0, 12, 24]]
    for horizon in HORIZONS:
        finals = {}
        for rate, momentum in itertools.product(rates, (0.5, 0.9)):
            hyper = {"rate": jax.numpy.array(rate), "momentum": jax.numpy.array(momentum)}
            trace = sx.unroll_many(baselines.adam, hyper, family, streams.tune, 6, TINY.tuning_tasks)
            finals[float(rate), momentum] = np.quantile(trace.loss[horizon], 0.5, method="inverted_cdf")
        found = ran[1]["groups"][f"digits-{horizon}"]["arms"]["adam"]["hyperparameters"]
        nearest = min(finals, key=lambda pair: np.hypot(pair[0] - found["rate"], pair[1] - found["momentum"]))
        chosen = finals[nearest]
        assert chosen == pytest.approx(min(finals.values()), rel=1e-5)


def test_verdicts_name_both_sides_and_the_horizon(ran):
    claims = [row["claim"] for row in ran[1]["verdicts"]]
    assert "lstm beats tuned adam after 2 steps" in claims
    assert "lstm-tricks beats lstm after 6 steps" in claims
    assert len(claims) == len(set(claims)) == 2 * (3 + 4)


def test_artifacts_load_and_training_is_counted(ran):
    network, card = sx.load(ran[0] / "artifacts" / "lstm-tricks.safetensors")
    assert isinstance(network, sx.learned.CoordinatewiseLSTM)
    assert card["training"]["stages"] == [2, 4]
    arms = ran[1]["groups"]["digits-2"]["arms"]
    assert arms["lstm"]["training_steps"] == 4 * 2
    assert 2 * 2 <= arms["lstm-tricks"]["training_steps"] <= 4 * 2 + 4 * 4


def test_its_tables_print_and_its_pictures_are_there(ran, capsys):
    show_study(TINY, ran[1], Reporter())
    printed = capsys.readouterr().out
    assert "loss after 6 steps on digits-6, all 6 unseen runs" in printed
    assert "steps of training: lstm 8" in printed
    assert {path.name for path in ran[0].glob("*.png")} == {"baselines-2.png", "baselines-6.png"}


def test_the_full_run_has_enough_seeds_and_a_longer_horizon():
    assert FULL.seeds >= 5
    assert set(FULL.settings.arms) == {"lstm", "rnnprop", "lstm-tricks", "rnnprop-tricks"}
    assert FULL.horizons == (FULL.budget.steps, 10 * FULL.budget.steps)
    assert type(baselines.NETWORKS["rnnprop"](width=3, key=jax.random.key(0))) is sx.learned.RNNProp
