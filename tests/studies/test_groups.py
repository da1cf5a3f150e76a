"""The experiment on other groups: its orbits, its controls, and a run in a tiny setting."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.rollout._unroll import unroll
from symmetrax.studies import groups
from symmetrax.studies._orbit_arms import Networks, budget, orbit_arm
from symmetrax.studies._orbits import dimensions, invariance
from symmetrax.studies._shuffled import Shuffled
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import adam
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.tasks._groups import group_family
from symmetrax.teleportation._probe import teleport_gain

SMALL = Networks(width=4)
TINY = dataclasses.replace(
    groups.STUDIES["groups"].preset("quick"),
    tasks=4,
    tuning_tasks=4,
    families=("torus-4", "permutation-3"),
    horizons=(2, 4),
    budget=budget(10, 2, steps=4, unroll=2),
    settings=groups.Settings(probed=("so-3",), trials=5, samples=4, networks=SMALL),
)


@pytest.mark.parametrize("name", ["so-3", "torus-5", "scaling-2", "permutation-3"])
def test_losses_are_invariant_to_rounding(name, quick_compilation):
    assert invariance(group_family(name), jax.random.key(0), 20) <= 1e-12


@pytest.mark.parametrize(
    ("name", "parameters", "coordinates"),
    [("so-20", 20, 190), ("torus-20", 20, 10), ("scaling-3", 6, 3), ("permutation-4", 8, 0)],
)
def test_dimensions(name, parameters, coordinates):
    assert dimensions(group_family(name)) == (parameters, coordinates)


def test_no_teleport_is_learned_without_an_algebra():
    family = group_family("permutation-4")
    task = family.task(family.draw(jax.random.key(0)))
    params, symmetry = task.init(jax.random.key(1)), task.symmetry()
    assert symmetry is not None
    with pytest.raises(ValueError, match="its groups are discrete") as searched:
        teleport_gain(task.loss, params, symmetry, jax.random.key(2))
    network = OrbitLSTM(8, algebra=1, width=2, key=jax.random.key(3))
    optimizer = orbit_arm("peak", family, budget()).rule(network, task)
    gradient = jax.grad(task.loss)(params)
    with pytest.raises(ValueError, match="no algebra to take derivatives in") as looked:
        optimizer.update(gradient, optimizer.init(params), params, value=jnp.array(1.0), value_fn=task.loss)
    with pytest.raises(ValueError, match="No teleport can be learned on permutation-4") as asked:
        groups.learned("peak", family, TINY.budget, SMALL)
    assert all("\n" not in str(error.value) for error in (searched, looked, asked))


def test_shuffled_adam_is_adam_if_its_memory_is_carried(float64, quick_compilation):
    family = group_family("permutation-4")
    task = family.task(family.draw(jax.random.key(0)))
    hyper = {"rate": jnp.array(0.1), "momentum": jnp.array(0.9)}
    makes = {
        "adam": adam,
        "kept": Shuffled(adam),
        "carried": Shuffled(adam, carried=True),
    }
    losses = {name: _losses(make({**hyper}, task), task) for name, make in makes.items()}
    np.testing.assert_allclose(losses["carried"], losses["adam"], rtol=1e-10)
    assert not np.allclose(losses["kept"], losses["adam"], rtol=1e-2)


def _losses(optimizer, task):
    return unroll(optimizer, task, jax.random.key(1), steps=4).loss


def test_gradients_are_counted():
    def extra(name, family):
        return groups.learned(name, group_family(family), TINY.budget, SMALL).extra

    assert extra("vanilla", "torus-10") == 4 * 5
    assert extra("peak", "torus-10") == 4 * 5 + 2 / 3
    assert extra("vanilla", "scaling-3") == 0
    arms = groups.arms(TINY, group_family("torus-10"))
    assert [arm.extra for arm in arms if arm.name == "peak-near-off"] == [4 * 5]


@pytest.mark.slow
def test_a_tiny_run_has_all_runs_of_all_arms(tmp_path, quick_compilation):
    folder = RunFolder(tmp_path / "tiny", "groups", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    show_study(TINY, results, Reporter(quiet=True))
    assert set(results["groups"]) == {f"{f.name}-{h}" for f in TINY.made() for h in (2, 4)}
    for name, group in results["groups"].items():
        family, _, horizon = name.rpartition("-")
        arms = group["arms"]
        assert {"vanilla", "gd", "adam"} < set(arms)
        assert ("peak-near-off" in arms) == (family == "torus-4")
        assert ("adam-shuffled-carried" in arms) == (family == "permutation-3")
        with np.load(folder.path / f"losses-{family}.npz") as losses:
            for own, arm in arms.items():
                assert arm["runs"] == 2 * 4
                assert len(arm["loss_median"]) == int(horizon) + 1
                np.testing.assert_allclose(losses[own][..., 0], losses["vanilla"][..., 0], rtol=1e-5)
        assert arms["gd"]["gradient_evaluations"] == int(horizon)
    assert set(results["families"]) == {"torus-4", "permutation-3", "so-3"}
    assert all(found["invariance"] <= 1e-12 for found in results["families"].values())
    assert "discrete" in results["families"]["permutation-3"]["error"]
    assert results["chosen"] == {"torus-4": {"arm": "peak-near", "of": ["peak-near"]}}
    assert results["families"]["permutation-3"]["gd_shuffled"]["4"] < 1e-3
    assert len(results["verdicts"]) == 2 * (2 + 1)
    assert (folder.path / "groups.png").stat().st_size > 10_000
