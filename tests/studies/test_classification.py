"""Learned optimizers of classifiers, at their smallest size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.studies import classification
from symmetrax.studies._classification_verdicts import CLAIMS, QUESTIONS, answers, judge
from symmetrax.studies._classifiers import (
    CONTROLS,
    TRAINED,
    Adjusted,
    Size,
    image_family,
    trained_arm,
    with_controls,
)
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._runs import Runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARMS = (
    "lr-tele-momentum",
    "lr-tele-momentum-off",
    "lr-tele-momentum-random",
    "lr-tele-momentum-constant",
    "sgd",
)
STUDY = classification.STUDIES["classification"]
BRIEF = Budget(runs=2, tasks=2, chunk=1, steps=4, unroll=2, remat=True)
TINY = dataclasses.replace(
    STUDY,
    seeds=2,
    tasks=4,
    tuning_tasks=2,
    budget=BRIEF,
    settings=classification.Settings(
        (classification.Group("digits", "digits", (4,), ARMS),),
        lr=BRIEF,
        update=BRIEF,
        whole=BRIEF,
        size=Size(steps=4, every=1, width=4),
        batch=16,
        rates=3,
    ),
)


# Slow: learned optimizers are trained for every arm, which test_fig7.py and test_harness.py do always.
@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow)])
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "classification"
    folder = RunFolder(path, "classification", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    folder.results({"experiment": "classification", "preset": "tiny", "seconds": 1.0, **results})
    return path, json.loads((path / "results.json").read_text())


def test_every_arm_has_all_its_runs_and_facts(ran):
    arms = ran[1]["groups"]["digits"]["arms"]
    assert tuple(arms) == ARMS
    for name, arm in arms.items():
        assert arm["runs"] == 2 * 4, name
        assert len(arm["loss_median"]) == TINY.budget.steps + 1, name
        assert 0 <= arm["test_accuracy"] <= 1, name
        assert arm["seconds"] > 0, name
        assert arm["gradient_evaluations"] == 4, name
    trained = arms["lr-tele-momentum"]
    assert trained["trajectories"] == 4
    assert trained["skipped_windows"] == 0
    assert arms["lr-tele-momentum-off"]["networks_of"] == "lr-tele-momentum"
    assert arms["sgd"]["hyperparameters"]["momentum"] == 0.0


def test_every_teleport_is_measured_and_exact(ran):
    """The error is the relative change of the loss; the last teleports are those of steps 1, 2, 3."""
    arms = ran[1]["groups"]["digits"]["arms"]
    for name in ("lr-tele-momentum", "lr-tele-momentum-random", "lr-tele-momentum-constant"):
        assert arms[name]["rejected"] == 0.0, name
        assert 0 <= arms[name]["loss_change_max"] < 1e-5, name
    assert "rejected" not in arms["lr-tele-momentum-off"]
    with np.load(ran[0] / "digits-runs.npz", allow_pickle=False) as arrays:
        assert arrays["lr-tele-momentum.loss"].shape == (2, 4, 5)


def test_arms_are_paired_and_controls_differ_where_they_should(ran):
    with np.load(ran[0] / "digits-runs.npz", allow_pickle=False) as arrays:
        arrays = dict(arrays)
    start = arrays["lr-tele-momentum.loss"]
    assert len(np.unique(start[..., 0])) == 8
    for name in ARMS[1:]:
        np.testing.assert_allclose(arrays[f"{name}.loss"][..., 0], start[..., 0], rtol=1e-5, err_msg=name)
    # The head of the group element starts at zero, and has been trained since.
    for name in ("lr-tele-momentum-off", "lr-tele-momentum-random", "lr-tele-momentum-constant"):
        assert np.any(arrays[f"{name}.train"] != arrays["lr-tele-momentum.train"]), name
    held = arrays["lr-tele-momentum-constant.step_size"]
    assert np.all(held == held[:, :1, :1])
    assert np.all(np.ptp(arrays["lr-tele-momentum.step_size"], axis=2) > 0)
    recorded = ran[1]["groups"]["digits"]["arms"]["lr-tele-momentum-constant"]["constants"]["4"]
    np.testing.assert_allclose(held[:, 0, 0], recorded["step_size"], rtol=1e-6)


def test_verdicts_pictures_and_tables(ran, capsys):
    path, results = ran
    pairs = {(row["ours"], row["theirs"]) for row in results["verdicts"]}
    assert ("lr-tele-momentum", "lr-tele-momentum-off") in pairs
    assert (path / "digits.png").exists()
    assert (path / "digits-ratios.png").exists()
    assert results["notes"]  # no MNIST
    show_study(TINY, results, Reporter())
    printed = capsys.readouterr().out
    assert "lr-tele-momentum-constant" in printed
    assert "is it more than a well chosen constant?" in printed


def test_its_network_is_kept_for_any_width(ran):
    network, card = sx.load(ran[0] / "artifacts" / "lr-tele-momentum.safetensors")
    assert card["training"]["schedule"] == [1, 2, 3]
    assert network.contract()["emits"] == ["step_size", "momentum", "algebra of positive scalings"]


def test_a_part_that_is_done_is_not_repeated(ran, monkeypatch):
    folder = RunFolder(ran[0], "classification", "tiny", TINY.identity())
    monkeypatch.setattr("symmetrax.studies.core._runner.train", lambda *_: pytest.fail("again"))
    again = run_study(TINY, folder, Reporter(quiet=True))
    assert (
        json.loads(json.dumps(again["groups"]["digits"]["arms"]["sgd"]))
        == (ran[1]["groups"]["digits"]["arms"]["sgd"])
    )


def test_an_adjusted_network_is_its_control():
    network = sx.learned.FlatGradientLSTM(
        2, emits=("step_size", "momentum"), algebra=2, rates=(0.1, 1.0), width=4, key=jax.random.key(0)
    )
    info = sx.learned.Observation(jnp.ones(2), jnp.ones(2), jnp.zeros(2), None, jax.random.key(0))
    own, _ = network.propose(info, network.memory(jnp.ones(2)))
    one, no = jnp.array(1.0), jnp.array(False)
    plain = Adjusted(network, share=one, random=no, held=no, step_size=0 * one, momentum=0 * one)
    numbers = {
        "plain": {},
        "identity": {"share": jnp.array(0.0)},
        "random": {"random": jnp.array(True)},
        "held": {"held": jnp.array(True), "step_size": jnp.array(0.5), "momentum": jnp.array(0.0)},
    }
    moves = {
        name: dataclasses.replace(plain, **given).propose(info, network.memory(jnp.ones(2)))[0]
        for name, given in numbers.items()
    }
    for name in ("algebra", "step_size", "momentum"):
        assert np.array_equal(getattr(moves["plain"], name), getattr(own, name)), name
    assert np.linalg.norm(own.algebra) > 1e-3
    assert not np.any(moves["identity"].algebra)
    np.testing.assert_allclose(
        np.linalg.norm(moves["random"].algebra), np.linalg.norm(own.algebra), rtol=1e-6
    )
    assert np.all(np.abs(moves["random"].algebra - own.algebra) > 1e-4)
    assert (moves["held"].step_size, moves["held"].momentum) == (0.5, 0.0)
    assert np.asarray(own.momentum) > 0.1
    np.testing.assert_allclose(moves["held"].algebra, own.algebra)


def test_arms_are_built_as_they_are_named():
    family = image_family("digits", (4,), 16)
    for name, trains in TRAINED.items():
        arm = trained_arm(name, family, Size(whole_width=4))
        emits = arm.make(jax.random.key(0)).contract()["emits"]
        assert ("momentum" in emits) == trains.momentum, name
        assert ("update" in emits) == (trains.step == "update"), name
        assert any("algebra" in word for word in emits) == trains.teleports, name
        assert arm.rule.transport == trains.transport, name
    assert {of for of, _ in CONTROLS.values()} <= set(TRAINED)
    known = set(with_controls(tuple(TRAINED)))
    asked = {name for claim in CLAIMS for name in (claim.first, claim.second)} | {
        n for q in QUESTIONS.values() for p in q for n in p
    }
    assert asked <= known


def test_arms_of_one_kind_start_from_one_network_for_the_step():
    family, size = image_family("digits", (4,), 16), Size(width=4)
    for name in ("lr", "update"):
        one, two = (trained_arm(arm, family, size).make(jax.random.key(3)) for arm in (name, f"{name}-tele"))
        assert sx.learned.Joint is type(one) is type(two)
        # The leaves of the first network come first, and the other arm has no more.
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=False)
        assert all(np.array_equal(a, b) for a, b in pairs)


def fake(*pairs):
    """A group of results whose comparisons have these log ratios, each +- 0.5."""
    arms = {}
    for ours, theirs, value in pairs:
        entry = {"log_ratio": value, "low": value - 0.5, "high": value + 0.5}
        arms.setdefault(ours, {"versus": {}})["versus"][theirs] = entry
    return {"arms": arms}


@pytest.mark.parametrize(
    ("plain", "off", "random", "word"),
    [
        (-1.0, -1.0, -1.0, "yes: "),
        (-1.0, -1.0, 0.0, "the arm is better, a control as well: "),
        (-0.2, -1.0, -1.0, "not shown: "),
        (1.0, -1.0, -1.0, "no, it is worse: "),
    ],
)
def test_an_answer_needs_every_control(plain, off, random, word):
    group = fake(
        ("lr-tele", "lr", plain), ("lr-tele", "lr-tele-off", off), ("lr-tele", "lr-tele-random", random)
    )
    found = answers(group)
    assert list(found) == ["does a learned teleport help a learned step size?"]
    assert found["does a learned teleport help a learned step size?"].startswith(word)
    outcomes = [row["outcome"] for row in judge("digits", group)]
    expected = [{-1.0: "reproduced", 1.0: "reversed"}.get(x, "inconclusive") for x in (plain, off, random)]
    assert outcomes == expected


def test_presets(monkeypatch):
    data = {group.name: group.data for group in STUDY.settings.groups}
    assert set(data.values()) == {"digits", "mnist"}
    assert set(TRAINED) <= {name for group in STUDY.settings.groups for name in group.arms}
    monkeypatch.delenv("SYMMETRAX_DATA", raising=False)
    assert [data[family.name] for family in STUDY.made()] == ["digits"] * 2
    assert len(STUDY.preset("quick").made()) == 1


def test_statistics_are_of_the_loss_on_all_training_images():
    """Minibatch losses end equal, and the measured ones do not."""
    from symmetrax.studies._classification_verdicts import describe

    def runs(train, accuracy):
        ends = {"train": train, "test": 2 * train, "accuracy": accuracy}
        return Runs(np.ones((2, 3, 5)), {}, {k: np.full((2, 3), v) for k, v in ends.items()}, 0.1)

    described = describe({"lr": runs(0.5, 0.9), "adam": runs(1.0, 0.8)}, {"lr": {"x": 1}, "adam": {}})
    arm = described["arms"]["lr"]
    assert arm["versus"]["adam"]["log_ratio"] == pytest.approx(np.log(0.5))
    assert arm["versus_test"]["adam"]["log_ratio"] == pytest.approx(np.log(0.5))
    assert arm["loss_median"][-1] == 1.0
    assert arm["final_train_median"] == 0.5
    assert arm["final_test_median"] == 1.0
    assert arm["accuracy_over_adam"] == pytest.approx([0.1, 0.1, 0.1])
    assert arm["x"] == 1
