"""Studies: data, a run in a folder, and what is said of those that cannot be run."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import optax
import pytest

import symmetrax as sx
from symmetrax.cli import main
from symmetrax.studies._registry import study_of
from symmetrax.studies.core._digest import digest
from symmetrax.studies.core._run_facts import due

pytestmark = pytest.mark.usefixtures("quick_compilation")


def descent(hyper, task):
    return optax.sgd(hyper["rate"])


LSTM = sx.studies.Build.of(sx.learned.FlatGradientLSTM, size=2, algebra=1, width=4)
ARMS = (
    sx.studies.Tuned("slow", descent, rates=(1e-3,), momenta=(0.0,)),
    sx.studies.Tuned("fast", descent, rates=(1e-2, 5e-2), momenta=(0.0,)),
    sx.studies.Learned("teleport", LSTM),
    sx.studies.Control("off", of="teleport", rule=sx.studies.switched_off),
)
STUDY = sx.studies.Study(
    "rates",
    "Which rate is better?",
    ("booth", "ellipse-random"),
    ARMS,
    claims=[sx.studies.Claim("fast", "slow", "the larger rate is better", "common sense")],
    budget=sx.studies.Budget(runs=2, steps=4, unroll=2),
    seeds=3,
    tasks=6,
    tuning_tasks=4,
    horizons=(2, 4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick_compilation):
    """A run of the study."""
    return sx.studies.run_experiment(STUDY, out=tmp_path_factory.mktemp("runs") / "rates", quiet=True)


def test_every_family_and_horizon_is_a_group_with_all_arms_and_runs(folder):
    results = json.loads((folder / "results.json").read_text())
    names = ["booth-2", "booth-4", "ellipse-random-2", "ellipse-random-4"]
    assert list(results["groups"]) == names
    for name, group in results["groups"].items():
        assert list(group["arms"]) == ["slow", "fast", "teleport", "off"]
        steps = int(name[-1])
        for arm in group["arms"].values():
            assert arm["runs"] == 3 * 6
            assert len(arm["loss_median"]) == steps + 1
            assert arm["gradient_evaluations"] == steps
        assert group["arms"]["fast"]["hyperparameters"] == {"rate": 5e-2, "momentum": 0.0}
        assert "slow" in group["arms"]["teleport"]["versus"]  # by default the first arm


def test_verdicts_name_the_family_and_the_horizon(folder):
    rows = json.loads((folder / "results.json").read_text())["verdicts"]
    assert [row["claim"] for row in rows] == [
        f"the larger rate is better on {family} after {steps} steps"
        for family in ("booth", "ellipse-random")
        for steps in (2, 4)
    ]
    assert {row["source"] for row in rows} == {"common sense"}


def test_statistics_are_those_of_the_losses_beside_them(folder):
    results = json.loads((folder / "results.json").read_text())
    with np.load(folder / "losses-booth.npz") as losses:
        for name, arm in results["groups"]["booth-4"]["arms"].items():
            mean = losses[name].astype(float).reshape(18, 5).mean(axis=0)
            np.testing.assert_allclose(np.array(arm["loss_mean"], float), mean, rtol=1e-6)
            np.testing.assert_array_equal(losses[name][..., 0], losses["slow"][..., 0])


def test_every_learned_arm_leaves_an_optimizer_that_loads(folder):
    network, card = sx.load(folder / "artifacts" / "booth-teleport.safetensors")
    assert network.algebra == 1
    assert card["training"]["schedule"] is None  # at every step
    assert card["evaluation"]["runs"] == 18


def test_a_run_that_was_stopped_continues_bit_for_bit(folder, tmp_path):
    def stop(run):
        raise KeyboardInterrupt

    study = dataclasses.replace(STUDY, families=("booth",))
    with pytest.raises(KeyboardInterrupt):
        sx.studies.run_experiment(dataclasses.replace(study, analyse=stop), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "results.json").exists()
    sx.studies.run_experiment(study, out=tmp_path / "run", quiet=True)
    with np.load(tmp_path / "run" / "losses.npz") as again, np.load(folder / "losses-booth.npz") as before:
        for arm in before.files:
            np.testing.assert_array_equal(again[arm], before[arm])


def test_a_folder_belongs_to_the_numbers_of_its_study(folder):
    with pytest.raises(ValueError, match="seeds is 3 there, 4 here"):
        sx.studies.run_experiment(dataclasses.replace(STUDY, seeds=4), out=folder, quiet=True)


def scaled(by):
    """An optimizer whose number is enclosed, not a field."""
    return lambda hyper, task: optax.sgd(by * hyper["rate"])


@pytest.mark.parametrize(
    ("k", "change"),
    [
        (1, {"rates": (0.5,)}),
        (1, {"make": scaled(1)}),
        (2, {"make": sx.studies.Build.of(sx.learned.FlatGradientLSTM, size=2, algebra=1, width=5)}),
        (2, {"rule": sx.UpdateRule.at((0, 2), 4)}),
        (2, {"outer": optax.adam(1e-2)}),
    ],
)
def test_a_folder_belongs_to_the_definitions_of_its_arms(folder, k, change):
    changed = dataclasses.replace(ARMS[k], **change)
    study = dataclasses.replace(STUDY, arms=(*ARMS[:k], changed, *ARMS[k + 1 :]))
    with pytest.raises(ValueError, match=f"of the arms, {changed.name!r} is defined otherwise"):
        sx.studies.run_experiment(study, out=folder, quiet=True)


def test_definitions_are_equal_where_they_do_the_same():
    again = tuple(dataclasses.replace(arm) for arm in ARMS)
    assert dataclasses.replace(STUDY, arms=again).identity() == STUDY.identity()
    assert digest(scaled(2)) == digest(scaled(2))
    assert len({digest(scaled(by)) for by in (1, 2, 2.0, np.ones(2), jax.random.key(1))}) == 5
    assert digest(jax.jit(scaled(2))) == digest(scaled(2)) != digest(functools.partial(scaled(2), 1))


def test_results_may_have_further_tests_and_what_is_measured(tmp_path):
    far = sx.tasks.make_family("ellipse-random", far=True)
    study = dataclasses.replace(
        STUDY,
        families=("ellipse-random",),
        arms=ARMS[:1],
        claims=(),
        horizons=(4,),
        tasks=5,  # odd: cannot be halved
        tests=lambda study, family: {"far": far},
        measure=lambda task, params: {"distance": jax.numpy.linalg.norm(params)},
        analyse=lambda run: {"seen": sorted(run.played["ellipse-random"].tests)},
    )
    path = sx.studies.run_experiment(study, out=tmp_path / "run", quiet=True)
    results = json.loads((path / "results.json").read_text())
    assert list(results["groups"]) == ["ellipse-random", "ellipse-random-far"]
    assert results["seen"] == ["", "far"]
    near, far = (group["arms"]["slow"]["test_distance"] for group in results["groups"].values())
    assert 0 < near < far  # facts are those of the test
    assert (path / "losses-far.npz").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quick": {"seed_count": 3}}, "has no field 'seed_count'"),
        ({"seeds": 0}, "at least one of its seeds, got 0"),
        ({"arms": (ARMS[0], ARMS[0])}, "Two arms of the study 'rates' have the name 'slow'"),
        ({"arms": ARMS[3:]}, "'off' is of 'teleport', which is no learned or tuned arm"),
        ({"horizons": (0,)}, "numbers of steps of at least 1, got (0,)"),
        ({"families": ("boot",)}, "Did you mean 'booth'"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        sx.studies.run_experiment(dataclasses.replace(STUDY, **wrong), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


FILES = {
    "none": ("x = 1", "defines no study"),
    "two": (
        "import symmetrax as sx\na, b = (sx.studies.Study(n, n, (), ()) for n in 'ab')",
        "defines a, b: choose one",
    ),
    "fails": ("1 / 0", "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_define_no_single_study_are_refused(name, tmp_path, capsys):
    text, message = FILES[name]
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    with pytest.raises(SystemExit):
        main(["run", str(path), "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_the_report_of_a_study_says_what_was_asked(folder):
    page = (folder / "report.html").read_text()
    assert "Which rate is better?" in page
    assert "the larger rate is better on booth after 2 steps" in page


def test_one_of_several_studies_is_chosen_by_name(tmp_path):
    path = tmp_path / "two.py"
    path.write_text("import symmetrax as sx\na, b = (sx.studies.Study(n, n, (), ()) for n in 'xy')")
    assert study_of(f"{path}:b").name == "y"
    with pytest.raises(ValueError, match="Unknown study of"):
        study_of(f"{path}:c")


def test_every_schedule_can_be_switched_off():
    for schedule in (None, (1, 3), [True, False], sx.schedules.every_n_steps(2)):
        rule = sx.studies.switched_off(sx.UpdateRule(schedule))
        assert len(due(rule, 6)) == 0
        assert rule.teleports


def test_an_arm_is_chosen_on_tasks_of_its_own_and_claims_may_be_about_it(tmp_path):
    def seen(rule, task, params, state, after):
        return {"params": params, "norm": abs(params).max()}

    def gathered(run):
        played = run.played["booth"]
        ran = {test: played.runs[test, "teleport", 4] for test in ("", "validation")}
        apart = not np.array_equal(ran[""].losses[..., 0], ran["validation"].losses[..., 0])
        shapes = {name: list(ran[""].recorded[name].shape) for name in ("params", "norm")}
        return {"apart": apart, "tests": played.tests, "shapes": shapes}

    study = dataclasses.replace(
        STUDY,
        families=("booth",),
        arms=ARMS[2:],
        claims=[sx.studies.Claim("{chosen}", "off", "{chosen} needs its teleports")],
        candidates=("teleport",),
        judged=(4,),
        look=seen,
        analyse=gathered,
    )
    path = sx.studies.run_experiment(study, out=tmp_path / "run", quiet=True)
    results = json.loads((path / "results.json").read_text())
    assert results["chosen"] == {"booth": {"arm": "teleport", "of": ["teleport"]}}
    assert [row["claim"] for row in results["verdicts"]] == ["teleport needs its teleports after 4 steps"]
    assert results["apart"]
    assert results["tests"] == [""]  # the validation tasks are not reported
    assert results["shapes"] == {"params": [3, 6, 4, 2], "norm": [3, 6, 4]}


def test_controls_of_tuned_arms_run_with_their_hyperparameters(tmp_path):
    def doubled(make):
        return lambda hyper, task: make({**hyper, "rate": 2 * hyper["rate"]}, task)

    twice = sx.studies.Control("twice", of="slow", rule=doubled)
    single = sx.studies.Tuned("single", descent, rates=(2e-3,), momenta=(0.0,))
    study = dataclasses.replace(
        STUDY,
        families=("booth",),
        arms=(ARMS[0], twice, single),
        claims=(),
        points=lambda horizons: (0, 1, 4),
    )
    path = sx.studies.run_experiment(study, out=tmp_path / "run", quiet=True)
    arms = json.loads((path / "results.json").read_text())["groups"]["booth-4"]["arms"]
    assert arms["twice"]["hyperparameters"]["rate"] == 1e-3
    assert arms["twice"]["points"] == [0, 1, 4]  # the losses that are kept
    assert arms["twice"]["loss_median"] == pytest.approx(arms["single"]["loss_median"], rel=1e-5)


def test_tables_of_a_study_are_printed_with_those_of_groups(tmp_path, capsys):
    study = dataclasses.replace(
        STUDY,
        families=("booth",),
        arms=ARMS[:1],
        claims=(),
        tables=lambda study, results: [f"{study.name}: {len(results['groups'])} groups"],
    )
    sx.studies.run_experiment(study, out=tmp_path / "run")
    shown = capsys.readouterr().out
    assert "rates: 2 groups" in shown
    assert "loss after 4 steps on booth-4" in shown
