"""The experiment on transfer, at its smallest size: every network of a kind of optimizer is a program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import symmetrax as sx
from symmetrax.studies import transfer
from symmetrax.studies._classifiers import Adjusted, Size
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._transfer_targets import Target
from symmetrax.studies._transfer_verdicts import answers, judge, pooled
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._runs import Runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

STUDY = transfer.STUDIES["transfer"]
TINY = dataclasses.replace(
    STUDY,
    seeds=2,
    tasks=2,
    tuning_tasks=2,
    budget=Budget(steps=4, unroll=4, runs=4, chunk=4, remat=True),
    settings=transfer.Settings(
        (Target("trained", "digits", (4,)), Target("data", "mnist", (4,))),
        steps=("lr",),
        baselines=("adam",),
        size=Size(steps=4, every=2, width=4, rates=(3e-3, 1.0)),
        batch=16,
        rates=3,
    ),
)


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory, quick_compilation):
    """The smallest run, where there is no MNIST."""
    patch = pytest.MonkeyPatch()
    patch.delenv("SYMMETRAX_DATA", raising=False)
    path = tmp_path_factory.mktemp("runs") / "transfer"
    folder = RunFolder(path, "transfer", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    folder.results(results)
    patch.undo()
    return path, json.loads((path / "results.json").read_text())


def test_every_arm_meets_every_network_but_absent_data(ran):
    groups = ran[1]["groups"]
    assert set(groups) == {"digits 4"}
    assert ran[1]["notes"] == ["mnist 4 is left out: SYMMETRAX_DATA names no folder with MNIST."]
    arms = groups["digits 4"]["arms"]
    assert set(arms) == {"lr", "lr-tele", "lr-tele-off", "lr-tele-random", "adam", "adam-there"}
    for name, arm in arms.items():
        assert arm["runs"] == 4, name
        assert len(arm["loss_median"]) == 5, name
        assert arm["seconds"] > 0, name
        assert ("rejected" in arm) == (name in ("lr-tele", "lr-tele-random")), name
    assert arms["lr-tele"]["loss_change_max"] < 1e-5
    assert arms["lr-tele"]["rejected"] == 0
    assert arms["adam-there"]["hyperparameters"] == arms["adam"]["hyperparameters"]
    assert arms["adam"]["hyperparameters"]["rate"] in (1e-3, pytest.approx(0.0548, rel=1e-2), 3.0)
    for name in ("lr", "lr-tele"):
        assert arms[name]["skipped_windows"] == 0
        assert arms[name]["trajectories"] == 4


def test_arms_differ_by_their_teleports_alone(ran):
    with np.load(ran[0] / "digits-4-runs.npz", allow_pickle=False) as arrays:
        loss = {arm: arrays[f"{arm}.loss"] for arm in ("lr", "lr-tele", "lr-tele-off", "adam")}
        loss_change = arrays["lr-tele.loss_change"]
    assert len(np.unique(loss["lr"][..., 0])) == 4
    for curves in loss.values():
        np.testing.assert_allclose(curves[..., 0], loss["lr"][..., 0], rtol=1e-6)
    # The teleport comes after step 2, whose loss it does not change.
    np.testing.assert_allclose(loss["lr-tele"][..., 3], loss["lr-tele-off"][..., 3], rtol=1e-5)
    assert np.any(loss["lr-tele"][..., 4] != loss["lr-tele-off"][..., 4])
    np.testing.assert_array_equal(loss_change[0, 0] >= 0, [False, False, True, False])


def made_up(end, shift=0.0):
    """Three seeds, two runs: the loss falls from 1 to `end`, times e^(shift seed)."""
    losses = np.ones((3, 2, 5))
    return Runs(losses, {}, {"train": end * np.exp(shift * np.arange(3.0))[:, None] * np.ones((3, 2))}, 1.0)


def test_networks_of_a_kind_count_alike():
    narrow, wide = (Target("widths", "digits", (width,)) for width in (4, 5))
    runs = {
        narrow: {"lr": made_up(0.5), "sgd": made_up(1.0), "sgd-there": made_up(0.5, 1.0)},
        wide: {"lr": made_up(0.5), "sgd": made_up(0.25), "sgd-there": made_up(0.5, 1.0)},
    }
    pool = pooled(runs)["widths"]
    assert set(pool) == {"lr / sgd", "lr / sgd-there"}
    # The medians over networks and runs are 0, -1 and -2 for the three seeds, whose mean has this interval.
    half = scipy.stats.t.ppf(0.975, 2) / np.sqrt(3)
    np.testing.assert_allclose([pool["lr / sgd-there"][k] for k in ("low", "high")], [-1 - half, -1 + half])
    outcomes = {row["theirs"]: row["outcome"] for row in judge({"widths": pool})}
    assert outcomes == {"sgd": "reproduced", "sgd-there": "inconclusive"}


def test_artifacts_load_and_random_elements_keep_their_size(ran):
    network, card = sx.load(ran[0] / "artifacts" / "lr-tele.safetensors")
    assert network.contract()["emits"] == ["step_size", "algebra of positive scalings"]
    assert card["training"]["family"] == "digits-4"
    algebra, key = np.arange(6, dtype=np.float32), jax.random.key(1)
    move, info = sx.learned.Proposal(algebra=algebra), network.example()._replace(key=key)
    plain = jax.tree.map(lambda x: x[0], Adjusted.plain(jax.tree.map(lambda x: x[None], network), 1))
    random = dataclasses.replace(plain, random=jnp.array(True))
    straight, turned = (adjusted.change(move, info).algebra for adjusted in (plain, random))
    np.testing.assert_array_equal(straight, algebra)
    assert np.abs(turned - algebra).max() > 1
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(algebra), rel=1e-6)


def test_tables_pictures_and_words(ran, capsys):
    path, results = ran
    assert {"losses.png", "ratios.png"} <= {file.name for file in path.iterdir()}
    show_study(TINY, results, Reporter())
    printed = capsys.readouterr().out
    for text in (
        "lr's (95 %)",
        "adam's (95 %)",
        "digits 4",
        "on the network of training",
        "mnist 4 is left out",
    ):
        assert text in printed
    assert {row["outcome"] for row in results["verdicts"]} <= {"reproduced", "reversed", "inconclusive"}
    assert len(results["verdicts"]) == 3
    assert "transfer" in EXPERIMENTS


def test_a_teleport_helps_only_if_it_beats_its_controls():
    better = {"log_ratio": -1.0, "low": -2.0, "high": -0.5}
    even, worse = {**better, "high": 0.1}, {"log_ratio": 1.0, "low": 0.5, "high": 2.0}
    arms = ("lr-tele / lr", "lr-tele / lr-tele-off", "lr-tele / lr-tele-random")
    for entries, word in (
        ((better, better, better), "Yes."),
        ((better, better, even), "not than every control"),
        ((even, better, better), "Not shown."),
        ((worse, better, better), "the other way round"),
    ):
        (answer,) = answers({"depths": dict(zip(arms, entries, strict=True))}).values()
        assert word in answer


def test_wide_networks_have_fewer_runs_and_all_seeds():
    assert STUDY.seeds >= 5
    targets = {target.family: target for target in STUDY.settings.targets}
    widths = [target.widths for target in targets.values()]
    assert min(width[0] for width in widths) == 8
    assert max(width[0] for width in widths) == 512
    assert {len(width) for width in widths} >= {2, 8}
    (family,) = STUDY.made()
    for own in (family, *transfer.other_networks(STUDY, family).values()):
        assert STUDY.tasks_on(own) >= 2
        assert STUDY.tasks_on(own) % 2 == 0
        shapes = jax.eval_shape(own.task(()).init, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == targets[own.name].parameters
