"""What trained optimizers do: the measures on optimizers that are known, and the smallest experiment."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.rollout._unroll import draw_many
from symmetrax.studies import _emergent_measures as behaviour
from symmetrax.studies import emergent
from symmetrax.studies._emergent_steps import look, newton
from symmetrax.studies._orbit_arms import Networks, budget, orbit_arm
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._runs import run_many
from symmetrax.tasks._families import make_family

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRAINING, SMALL = budget(2, 2, steps=8, unroll=4), Networks(width=4)
ARMS = {"ellipse-random": ("vanilla", "peak"), "rosenbrock-random": ("teleport",)}
TINY = dataclasses.replace(
    emergent.STUDIES["emergent"],
    families=tuple(ARMS),
    seeds=2,
    tasks=6,
    horizons=(8,),
    budget=TRAINING,
    settings=emergent.Settings(tuple(ARMS.items()), SMALL),
)


def descent(rate: float, momentum: float, shape: tuple[int, int, int] = (2, 20, 12)) -> dict[str, np.ndarray]:
    """Tracks of descent with momentum on f(x) = x1^2 + 2 x2^2, in double precision."""
    scale = np.array([2.0, 4.0])
    x, velocity = np.random.default_rng(0).normal(size=(*shape[:2], 2)), np.zeros((*shape[:2], 2))
    recorded: dict[str, list] = {name: [] for name in ("update", "gradient", "newton", "loss")}
    for _ in range(shape[2]):
        gradient = scale * x
        velocity = momentum * velocity - rate * gradient
        for name, value in (("update", velocity), ("gradient", gradient), ("newton", -x)):
            recorded[name].append(value)
        recorded["loss"].append(0.5 * np.sum(scale * x**2, axis=-1))
        x = x + velocity
    recorded["loss"].append(0.5 * np.sum(scale * x**2, axis=-1))
    tracks = {name: np.stack(values, axis=2) for name, values in recorded.items()}
    nothing = np.zeros(shape)
    return {**tracks, "gate": nothing - 1, "angle": nothing, "outcome": nothing, "oracle": nothing * np.nan}


def test_descent_has_slope_one_no_momentum_and_no_clipping():
    tracks = descent(rate=0.1, momentum=0.0)
    found = behaviour.saturation(tracks, (0.05, 5.0))
    for name in ("slope", "small", "large"):
        assert found[name]["mean"] == pytest.approx(1.0)
    assert found["bend"]["mean"] == pytest.approx(0.0, abs=1e-9)
    lags = behaviour.momentum(tracks)
    assert lags["r2"][0]["mean"] > 0.9
    assert behaviour.gate(tracks) is None
    assert behaviour.agreement(tracks) is None


def test_past_gradients_explain_descent_with_momentum():
    plain, heavy = (behaviour.momentum(descent(0.05, beta)) for beta in (0.0, 0.7))
    assert heavy["r2"][-1]["mean"] - heavy["r2"][0]["mean"] > 0.02
    assert plain["r2"][-1]["mean"] - plain["r2"][0]["mean"] < 0.02


def test_clipped_steps_bend():
    tracks = descent(rate=0.1, momentum=0.0)
    length = np.linalg.norm(tracks["update"], axis=-1, keepdims=True)
    bound = np.median(length[:, :, 1:])
    tracks["update"] *= np.minimum(1.0, bound / length)
    assert behaviour.saturation(tracks, (0.05, 5.0))["bend"]["mean"] < -0.3


def test_agreement_counts_closed_gates_as_wrong():
    tracks = descent(rate=0.1, momentum=0.0, shape=(2, 4, 4))
    oracle = np.broadcast_to(np.array([0.5, -0.5, 0.5, -0.5])[:, None], (2, 4, 4))
    angle = np.where(np.arange(4) < 3, oracle, 0.0)
    found = behaviour.agreement({**tracks, "oracle": oracle, "angle": angle})
    assert found is not None
    assert found["all"]["mean"] == pytest.approx(0.75)
    assert found["turned"]["mean"] == 1.0
    assert found["chance"]["mean"] == 0.0
    assert found["peak"]["mean"] == pytest.approx(1.0)
    around = behaviour.agreement({**tracks, "oracle": oracle, "angle": oracle - np.pi * np.sign(oracle)})
    assert around is not None
    assert around["turned"]["mean"] == 0.0
    assert around["nearer"]["mean"] == 1.0


def test_newtons_step_solves_a_quadratic():
    matrix = jnp.array([[3.0, 1.0], [1.0, -2.0]])
    x = jnp.array([0.5, -1.5])
    np.testing.assert_allclose(newton(matrix, matrix @ x), -x, rtol=1e-5)


def _check_tracks() -> None:
    """On f(x) = ||A x + b||^2 with H = 2 A'A, Newton's step n and a step u lead from n'Hn / 2 to
    (u - n)'H(u - n) / 2: teleports in between change nothing of that."""
    arm = orbit_arm("peak", make_family("ellipse-random"), TRAINING, SMALL)
    networks = jax.vmap(arm.make)(jax.random.split(jax.random.key(0), 2))
    keys = jax.random.split(jax.random.key(1), 2)
    options = {"steps": 3, "tasks": 5, "parts": None, "look": look}
    ran = run_many(arm.rule_for(3), networks, arm.family, keys, **options)
    tracks = {**ran.recorded, "loss": ran.losses}
    matrices = np.stack([np.moveaxis(draw_many(arm.family, 5, key).matrix, -1, 0) for key in keys])
    newton, rest = tracks["newton"], tracks["update"] - tracks["newton"]
    before, after = (np.sum(np.einsum("stij,stkj->stki", matrices, v) ** 2, -1) for v in (newton, rest))
    np.testing.assert_allclose(before, tracks["loss"][..., :-1], rtol=1e-2)
    np.testing.assert_allclose(after, tracks["loss"][..., 1:], rtol=1e-2)
    assert np.all(tracks["headroom"] >= 0)
    assert np.any(tracks["angle"] != 0)
    assert np.all(np.abs(tracks["oracle"]) <= np.pi / 2 + 1e-6)


@pytest.mark.slow
def test_the_smallest_run_tells_of_every_arm(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run", "emergent", "tiny", TINY.identity())
    results = run_study(TINY, folder, Reporter(quiet=True))
    folder.results(results)
    results = json.loads((folder.path / "results.json").read_text())
    _check_tracks()
    for family, names in ARMS.items():
        arms = results["groups"][family]["arms"]
        assert set(arms) == set(names)
        assert {arm["runs"] for arm in arms.values()} == {12}
        for recorded in results["behaviour"][family].values():
            assert len(recorded["schedule"]) == TRAINING.steps
            assert len(recorded["lags"]["r2"]) == behaviour.LAGS + 1
    recorded = results["behaviour"]["ellipse-random"]
    assert recorded["vanilla"]["gate"] is None
    assert recorded["vanilla"]["sign"] is None
    assert 0 <= recorded["peak"]["sign"]["all"]["mean"] <= 1
    assert results["behaviour"]["rosenbrock-random"]["teleport"]["sign"] is None
    assert (folder.path / "behaviour.png").stat().st_size > 10_000
    show_study(TINY, results, Reporter())
    assert "cosine with Newton's step" in capsys.readouterr().out


def test_the_full_preset_has_the_setting_of_figure_3():
    study = emergent.STUDIES["emergent"]
    arms = {family.name: [arm.name for arm in study.arms_on(family)] for family in study.made()}
    assert "teleport" in arms["ellipse-fixed"]
    assert sx.tasks.make_family("ellipse-fixed").name == "ellipse-fixed"
