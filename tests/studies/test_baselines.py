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

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = dataclasses.replace(
    baselines.config("baselines", "quick"),
    tasks=3,
    tuning_tasks=2,
    rates=3,
    arms=("lstm", "lstm-tricks"),
    width=3,
    batch_size=8,
    core=3,
    depth=1,
    unroll=2,
    steps=2,
    tests=(2, 6),
    runs=4,
    horizons=(2, 4),
    stage_runs=4,
    chunk=2,
    validation_tasks=2,
)
ARMS = ("lstm", "lstm-tricks", "gd", "momentum", "adam")


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory):
    folder = RunFolder(
        tmp_path_factory.mktemp("runs") / "baselines", "baselines", "tiny", dataclasses.asdict(TINY)
    )
    return folder.path, baselines.run(TINY, folder, Reporter(quiet=True))


def test_every_arm_has_all_its_runs_on_every_horizon(ran):
    for horizon in TINY.tests:
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
    with np.load(ran[0] / "baselines-losses.npz", allow_pickle=False) as losses:
        starts = [losses[f"{name}-{horizon}"][..., 0] for name in ARMS for horizon in TINY.tests]
        np.testing.assert_array_equal(losses["lstm-6"][..., :3], losses["lstm-2"])
    for start in starts[1:]:
        np.testing.assert_allclose(start, starts[0], rtol=1e-5)
    assert len(np.unique(starts[0])) == 6


def test_baselines_are_tuned_for_every_horizon_on_the_tuning_stream(ran):
    """The best of the grid, run one by one."""
    family, streams = baselines.make_images(TINY), baselines.Streams.of(TINY.seed, TINY.seeds)
    rates = baselines.RATES[[0, 12, 24]]
    for horizon in TINY.tests:
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
    assert "lstm beats tuned adam on the training distribution" in claims
    assert "lstm-tricks beats lstm over 6 steps" in claims
    assert len(claims) == len(set(claims)) == 2 * (3 + 4)


def test_artifacts_load_and_training_is_counted(ran):
    network, card = sx.load(ran[0] / "artifacts" / "lstm-tricks.safetensors")
    assert isinstance(network, sx.learned.CoordinatewiseLSTM)
    assert card["training"]["tricks"]
    arms = ran[1]["groups"]["digits-2"]["arms"]
    assert arms["lstm"]["training_steps"] == 4 * 2
    assert 2 * 2 <= arms["lstm-tricks"]["training_steps"] <= 4 * 2 + 4 * 4


def test_its_tables_print_and_its_pictures_are_there(ran, capsys):
    baselines.show(TINY, ran[1], Reporter())
    printed = capsys.readouterr().out
    assert "loss after 6 steps, all 6 unseen runs" in printed
    assert "steps of training: lstm 8" in printed
    assert {path.name for path in ran[0].glob("*.png")} == {"baselines-2.png", "baselines-6.png"}


def test_the_full_run_has_enough_seeds_and_a_longer_horizon():
    full = baselines.config("baselines")
    assert full.seeds >= 5
    assert set(full.arms) == {"lstm", "rnnprop", "lstm-tricks", "rnnprop-tricks"}
    assert full.tests == (full.steps, 10 * full.steps)
    assert type(baselines.NETWORKS["rnnprop"](width=3, key=jax.random.key(0))) is sx.learned.RNNProp
