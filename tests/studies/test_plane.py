"""The harness: arms, streams, folders, and one small run of a figure looked at from all sides."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.rollout._unroll import draw_many
from symmetrax.studies import plane
from symmetrax.studies.core._arm import Tuned, switched_off
from symmetrax.studies.core._console import Reporter, arms_table, ratio_text, verdict_table
from symmetrax.studies.core._control_networks import RandomDirection
from symmetrax.studies.core._folder import RunFolder, as_json
from symmetrax.studies.core._hand_made import RATES, adam, descent
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._runner import run_study
from symmetrax.studies.core._runs import evaluate
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._tuning import tune

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = dataclasses.replace(
    plane.STUDIES["fig4"],
    seeds=2,
    tasks=6,
    tuning_tasks=8,
    budget=Budget(runs=2, steps=10, unroll=5, patience=0),
    horizons=(4,),
    settings=plane.Settings(width=4, depth=1, schedule=(2, 5, 8)),
)
NAMES = [arm.name for arm in TINY.arms_on(TINY.made()[0])]
STEPS = 4
QUIET = Reporter(quiet=True)


def run(path, settings=TINY):
    folder = RunFolder(path, "fig4", "tiny", settings.identity())
    return folder, run_study(settings, folder, QUIET)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """All arms of figure 4 at the smallest size."""
    folder, results = run(tmp_path_factory.mktemp("runs") / "small")
    return folder.path, results


def test_all_arms_of_the_issue_are_there(small):
    arms = small[1]["groups"]["ellipse-random"]["arms"]
    assert list(arms) == NAMES
    assert {"gd", "momentum", "adam", "adam-0.5", "vanilla", "teleport", "teleport-schedule"} <= set(arms)
    assert {"random", "oracle", "teleport-off", "teleport-guarded", "vanilla-orbit"} <= set(arms)


def test_results_have_the_shape_that_all_experiments_share(small):
    for group in small[1]["groups"].values():
        for name, arm in group["arms"].items():
            assert arm["runs"] == 12
            for key in ("loss_median", "loss_q25", "loss_q75", "loss_mean"):
                assert len(arm[key]) == STEPS + 1, name
            assert {"diverged", "gradient_evaluations", "seconds", "versus"} <= set(arm)
            assert all(set(v) == {"log_ratio", "low", "high"} for v in arm["versus"].values())
    for row in small[1]["verdicts"]:
        assert set(row) == {"claim", "source", "outcome", "why"}
        assert row["outcome"] in ("reproduced", "reversed", "inconclusive")


def test_statistics_come_from_the_saved_losses_of_all_runs(small):
    path, results = small
    with np.load(path / "losses.npz", allow_pickle=False) as losses:
        for name, arm in results["groups"]["ellipse-random"]["arms"].items():
            assert losses[name].shape == (TINY.seeds, TINY.tasks, STEPS + 1)
            mean = np.mean(losses[name].reshape(12, -1).astype(float), axis=0)
            np.testing.assert_allclose(np.array(arm["loss_mean"], float), mean, rtol=1e-6)


def test_all_arms_meet_the_same_tasks_at_the_same_starts(small):
    with np.load(small[0] / "losses.npz", allow_pickle=False) as losses:
        starts = [losses[name][..., 0] for name in losses.files]
    for start in starts:
        np.testing.assert_array_equal(start, starts[0])
    assert len(np.unique(starts[0])) == 12  # and every run is another task


def test_arc_endpoints_lie_on_one_level_set(small):
    """S19: what is drawn as a teleport keeps the loss, from its first to its last point."""
    family, streams = sx.tasks.make_family("ellipse-random"), Streams.of(TINY.seed, TINY.seeds)
    drawn = draw_many(family, TINY.tasks, streams.test[0])
    with np.load(small[0] / "trajectories.npz", allow_pickle=False) as arrays:
        arcs, points = arrays["teleport.arcs"], arrays["teleport.points"]
    for i, arc in enumerate(arcs):
        task = family.task(jax.tree.map(lambda x, i=i: x[..., i], drawn))
        values = np.asarray(jax.vmap(jax.vmap(task.loss))(jnp.asarray(arc)))
        np.testing.assert_allclose(values, values[:, :1] * np.ones_like(values), rtol=5e-3)
        np.testing.assert_allclose(arc[:, -1], points[i, 1:], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_runs_of_one_command_give_equal_arrays(tmp_path):
    family = TINY.made()[0]
    some = [arm for arm in TINY.arms_on(family) if arm.name in ("adam", "vanilla", "teleport")]
    settings = dataclasses.replace(TINY, arms=some, tests=None, analyse=None, figures=())
    for name in ("one", "two"):
        run(tmp_path / name, settings)
    for file in ("losses",):
        with np.load(tmp_path / "one" / f"{file}.npz") as a, np.load(tmp_path / "two" / f"{file}.npz") as b:
            assert a.files == b.files
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])


def test_artifacts_load_and_tell_how_they_were_made(small):
    path, results = small
    network, card = sx.load(path / "artifacts" / "teleport-schedule-guarded.safetensors")
    assert card["training"]["schedule"] == list(TINY.settings.schedule)
    assert card["training"]["guarded"] is True
    arm = results["groups"]["ellipse-random"]["arms"]["teleport-schedule-guarded"]
    assert card["evaluation"]["loss_median"] == arm["loss_median"][-1]
    assert network.algebra == 1


def test_figures_are_drawn_from_the_files_alone(small, tmp_path):
    path, results = small
    (tmp_path / "results.json").write_text(as_json(results))
    shutil.copy(path / "trajectories.npz", tmp_path)
    plane.draw(tmp_path, json.loads((tmp_path / "results.json").read_text()))
    for name in ("curves.png", "trajectories.png"):
        assert (tmp_path / name).read_bytes() == (path / name).read_bytes()


def test_tables_print_every_arm(small, capsys):
    arms = small[1]["groups"]["ellipse-random"]["arms"]
    reporter = Reporter()
    reporter.print(arms_table("title", arms, "vanilla"))
    reporter.print(verdict_table(small[1]["verdicts"]))
    printed = capsys.readouterr().out
    for name in arms:
        assert f" {name} " in printed
    assert "vanilla L2O beats" in printed


def test_the_control_arms_differ_only_in_what_they_control(small):
    """Without teleports at test the network of `teleport` is a vanilla one; the random direction keeps the
    size of the angle."""
    key, family = jax.random.key(3), sx.tasks.make_family("ellipse-random")
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=4, key=key)
    make = sx.UpdateRule.at(range(4), 4, guard=None)
    options = {"steps": 4, "tasks": 5, "watch": ("algebra",)}
    keys, stack = jax.random.split(key, 1), lambda n: jax.tree.map(lambda x: x[None], n)
    learned, _ = evaluate(make, stack(network), family, keys, **options)
    random, _ = evaluate(make, stack(RandomDirection(network)), family, keys, **options)
    first = (np.abs(np.asarray(t.watched["algebra"][0, 1])) for t in (learned, random))
    np.testing.assert_allclose(*first, rtol=1e-5)
    assert np.any(np.sign(learned.watched["algebra"]) != np.sign(random.watched["algebra"]))
    off, _ = evaluate(switched_off(make), stack(network), family, keys, **options)
    plain = sx.unroll_many(lambda n, task: n.transform(), network, family, keys[0], 4, 5)
    np.testing.assert_allclose(off.loss[0], plain.loss, rtol=1e-5)


def test_tuning_finds_the_best_of_the_grid_by_brute_force():
    family, key = sx.tasks.make_family("ellipse-fixed"), jax.random.key(0)
    arms = [Tuned("gd", descent, momenta=(0.0,)), Tuned("momentum", descent), Tuned("adam", adam)]
    found = tune(arms, family, key, horizons=(6,), tasks=20)[6]
    medians = []
    for rate in RATES:
        hyper = {"rate": jnp.asarray(rate), "momentum": jnp.zeros(())}
        final = np.asarray(sx.unroll_many(descent, hyper, family, key, 6, 20).loss[-1])
        medians.append(np.sort(np.where(np.isfinite(final), final, np.inf))[9])
    assert found["gd"]["rate"] == pytest.approx(RATES[int(np.argmin(medians))])
    assert found["gd"]["momentum"] == 0.0
    assert set(found) == {"gd", "momentum", "adam"}


def test_streams_never_meet():
    """S17: no key of one stream is in another, and a seed keeps its stream when seeds are added."""
    few, many = Streams.of(0, 3), Streams.of(0, 20)
    data = lambda key: np.asarray(jax.random.key_data(key))  # noqa: E731
    np.testing.assert_array_equal(data(few.test), data(many.test)[:3])
    train = jax.vmap(lambda i: jax.random.fold_in(many.train, i))(jnp.arange(20))
    used = np.concatenate([data(train), data(many.test), data(many.tune)[None], data(many.train)[None]])
    assert len(np.unique(used, axis=0)) == len(used)
    assert not np.array_equal(data(Streams.of(1, 3).test), data(few.test))


def test_a_folder_is_resumed_by_the_same_settings_and_refused_to_others(tmp_path):
    settings = {"seeds": 3, "nested": {"width": 4}}
    folder = RunFolder(tmp_path / "run", "fig3", "quick", settings)
    before = (folder.path / "config.json").read_text()
    assert {"versions", "machine"} <= set(json.loads(before))
    RunFolder(tmp_path / "run", "fig3", "quick", settings)
    for other in (("fig4", "quick", settings), ("fig3", "full", settings), ("fig3", "quick", {"seeds": 4})):
        with pytest.raises(ValueError, match="holds a run with other settings"):
            RunFolder(tmp_path / "run", *other)
    with pytest.raises(ValueError, match="seeds is 3 there, 5 here"):
        RunFolder(tmp_path / "run", "fig3", "quick", {**settings, "seeds": 5})
    assert (folder.path / "config.json").read_text() == before
    assert [p.name for p in folder.path.iterdir()] == ["config.json"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a run folder"):
        RunFolder(tmp_path, "fig3", "quick", {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not the config of a run"):
        RunFolder(tmp_path, "fig3", "quick", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "thesis.tex"]


def test_json_has_no_infinities():
    text = as_json({"a": [float("nan"), -np.inf, np.float32(1.5)], "b": np.int64(3)})
    assert json.loads(text) == {"a": ["nan", "-inf", 1.5], "b": 3}
    assert (
        ratio_text({"log_ratio": "-inf", "low": "-inf", "high": "inf"}) == "0"
    )  # the whole line says nothing


def test_the_far_protocol_starts_every_run_at_one_point(small):
    with np.load(small[0] / "losses-far.npz", allow_pickle=False) as losses:
        start = losses["vanilla"][..., 0]
    family = sx.tasks.make_family("ellipse-random", far=True)
    drawn = draw_many(family, TINY.tasks, Streams.of(TINY.seed, TINY.seeds).test[0])
    point = jnp.array([-5.0, 3.5])
    expected = jax.vmap(lambda h: family.task(h).loss(point), in_axes=-1)(drawn)
    np.testing.assert_allclose(start[0], expected, rtol=1e-5)
