"""The experiment on Algorithm 2: published numbers, the direction of every update, and one small run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symmetrax.rollout._unroll import begin_many
from symmetrax.studies import online
from symmetrax.studies._online_arms import BETAS, GUARDED, PLAIN, run_arm
from symmetrax.studies._online_measures import PAIRS
from symmetrax.studies._online_tasks import UNIT, Settings, group_of
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study
from symmetrax.studies.core._streams import Streams

SETTINGS = Settings(groups=("quadratic 2",), rates=2, betas=2, momenta=(0.0, 0.5))
STUDY = dataclasses.replace(online.STUDIES["online"], seeds=10, tasks=150, settings=SETTINGS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory, quick_compilation):
    """All of the 1,500 random ellipses, tuned on a grid of nearly nothing: results, arrays, and arms."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    folder = RunFolder(path, STUDY.name, "tiny", STUDY.identity())
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        described = online.described
        patch.setattr(online, "described", lambda arms, runs: seen.update(runs) or described(arms, runs))
        results = run_study(STUDY, folder, Reporter(quiet=True))
    show_study(STUDY, results, Reporter(quiet=True))
    for name in ("ellipse.png", "groups.png"):
        assert (path / name).stat().st_size > 10_000
    with np.load(path / "losses.npz") as arrays:
        return results, dict(arrays), seen


@pytest.fixture(scope="module")
def ran(everything):
    """Results and losses."""
    return everything[:2]


def test_steps_on_one_ellipse_are_the_known_ones(ran):
    row = ran[0]["ellipse"]["table"]["0.05556"]
    assert row["gd"]["steps"] == pytest.approx(194, abs=2)
    assert row["online 0.01"]["steps"] == pytest.approx(24, abs=2)
    assert (row["oracle"]["steps"], row["online 0.1"]["steps"]) == (1, 3)
    assert row["online 0.001"]["steps"] == pytest.approx(183, abs=2)
    slow = ran[0]["ellipse"]["table"]["0.02"]
    assert slow["gd"]["steps"] is None
    assert slow["gd"]["last"] == pytest.approx(9.6e-4, rel=0.02)
    assert [slow[arm]["steps"] for arm in ("oracle", "online 0.01", "online 0.1")] == [16, 33, 33]


def test_losses_on_the_ellipse_are_those_of_numpy(ran):
    values, x, theta, losses = np.array([0.25, 9.0]), np.array([-5.0, 3.5]), 0.0, []
    root, rate, beta = np.sqrt(values), 0.05, 0.01
    for _ in range(60):
        losses.append(np.sum(values * x**2))
        c, s = np.cos(theta), np.sin(theta)
        z = np.array([[c, -s], [s, c]]) @ (root * x)
        mu = (1 - 2 * rate * values) ** 2
        x, theta = (1 - 2 * rate * values) * z / root, theta - beta * 2 * (mu[1] - mu[0]) * z[0] * z[1]
    place = PAIRS.index((rate, beta))
    np.testing.assert_allclose(ran[1]["ellipse.online"][place, :60], losses, rtol=1e-9)


def test_teleports_need_not_help(ran):
    # On a circle there is nothing to learn.
    assert ran[0]["ellipse"]["circle"] < 1e-12
    # Above 1 / (l1 + l2) the short axis is the slow one: its factor at .11 is (1 - 2 * .11 * 9)^2 = .98^2.
    row = ran[0]["ellipse"]["table"]["0.11"]
    assert row["oracle"]["last"] == pytest.approx(0.98**400, rel=1e-6)
    assert row["oracle"]["last"] > row["gd"]["last"]
    assert row["online 0.001"]["last"] > 0.99 * row["gd"]["last"]


def test_random_ellipses_keep_the_bounds(ran):
    group = ran[0]["groups"]["quadratic 2"]
    arms = group["arms"]
    assert group["runs"] == 1500
    for beta in BETAS:
        assert arms[f"online-{beta:g}"]["signs"]["share"] == 1.0
        assert arms[f"online-{beta:g}"]["diverged"] == 0
    found = arms["online-0.1"]
    assert found["not_worse"]["share"] > 0.94
    assert found["versus"]["gd"]["log_ratio"] / np.log(10) < -3
    assert found["angle"]["median"] < 60
    assert found["angle_after"]["median"] > found["angle"]["median"] + 10
    assert arms["gd"]["angle"]["median"] > 89
    assert found["angle_aligned"]["share"] < 0.07
    assert found["farther"]["high"] < 0.5 * (1 - found["farther"]["low"])
    outcomes = {row["claim"]: row["outcome"] for row in ran[0]["verdicts"]}
    assert (
        outcomes["quadratic 2, rate of the angle 0.1: every update turns toward the short axis"]
        == "reproduced"
    )
    assert sum("within 5 degrees" in claim and outcomes[claim] == "reversed" for claim in outcomes) == 3


def test_gradient_descent_and_its_angles_are_those_of_numpy(ran):
    group, streams = group_of("quadratic 2", SETTINGS, 10, 150), Streams.of(STUDY.seed, STUDY.seeds)
    hyper = jax.tree.map(jnp.asarray, {"rate": 1.0, "momentum": 0.0, "heavy": 0.0, "pace": UNIT})
    start = jax.jit(lambda key: begin_many(PLAIN, hyper, group.family, None, 1500, key))(streams.test[0])
    # Tasks are the last axis.
    matrices = np.moveaxis(np.asarray(start.drawn[0].matrix, float), -1, 0).reshape(10, 150, 2, 2)
    x = np.moveaxis(np.asarray(start.carry.params, float), -1, 0).reshape(10, 150, 2)
    parts = np.asarray(start.drawn[1], float).reshape(10, 150)
    assert SETTINGS.slow < parts.min() < 0.21 < 0.99 < parts.max() < 1
    rates = parts / 2 / np.linalg.eigvalsh(matrices)[..., -1]
    losses = [np.einsum("spi,spij,spj->sp", x, matrices, x)]
    for _ in range(SETTINGS.steps):
        x = x - rates[..., None] * 2 * np.einsum("spij,spj->spi", matrices, x)
        losses.append(np.einsum("spi,spij,spj->sp", x, matrices, x))
    found = ran[1]["quadratic 2.gd"]
    expected = np.moveaxis(losses, 0, -1)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * losses[0].min())
    twice = ran[1]["quadratic 2.gd-twice"]
    assert twice.shape == (10, 150, 2 * SETTINGS.steps + 1)
    np.testing.assert_array_equal(twice[..., : SETTINGS.steps + 1], found)


def test_controls_copy_what_they_should(everything):
    # In the plane the one coordinate has a sign, and its size is its norm.
    arms = {name: ran.recorded.get("algebra") for name, ran in everything[2].items()}
    learned, other, anew = (arms[name] for name in ("online-0.1", "online-0.1-opposite", "anew"))
    random, constant = arms["online-0.1-random"], arms["constant"]
    np.testing.assert_allclose(np.abs(random), np.abs(learned), rtol=1e-5, atol=1e-6)
    assert set(np.sign(random[..., 1:]).ravel()) >= {-1.0, 1.0}
    assert 0.46 < np.mean(random[..., 5] > 0) < 0.54
    assert np.ptp(constant) == 0
    assert constant[0, 0, 0] > 0
    np.testing.assert_allclose(other[..., 1], -learned[..., 1], rtol=1e-5)
    # What is learned anew at the first step is, but for its rate, what Algorithm 2 learns there.
    assert np.all(np.sign(anew[..., 0]) == np.sign(learned[..., 1]))
    assert np.all(learned[..., 0] == 0)
    assert arms["gd"] is None


@pytest.mark.parametrize(("beta", "reached"), [(1e-2, False), (1e3, True)])
def test_a_network_and_a_guarded_arm_run_with_their_own_symmetry(quick_compilation, beta, reached):
    settings = dataclasses.replace(SETTINGS, width=3, images=16, network_steps=3, networks=2)
    group = group_of("network", settings, 10, 150)
    assert (group.seeds, group.tasks, group.steps) == (2, 1, 3)
    hyper = {"rate": 0.1, "momentum": beta, "heavy": 0.0, "pace": UNIT}
    ran = run_arm(GUARDED, hyper, group, jax.random.key(1), steps=3)
    size, outcome = ran.recorded["algebra"], ran.recorded["outcome"]
    assert size.shape == (2, 1, 3)
    assert np.all(size[..., 0] == 0)
    assert np.all(ran.losses[..., 1] < ran.losses[..., 0])
    # Coordinates of scalings are held within the bound of 1, which a rate of 1000 reaches at once.
    assert np.all(size <= np.sqrt(3) + 1e-6)
    assert np.any(size >= 1) or np.any(outcome > 0) or not reached
    assert reached or np.all(outcome == 0)


def test_a_network_sees_one_batch_of_its_own(quick_compilation):
    family = group_of("network", dataclasses.replace(SETTINGS, images=16), 2, 1).family
    one, two = (family.task(family.draw(jax.random.key(k))) for k in (0, 1))
    batches = [task.batch(jax.random.key(k)) for task, k in ((one, 0), (one, 1), (two, 0))]
    np.testing.assert_array_equal(batches[0].pixels, batches[1].pixels)
    assert batches[0].pixels.shape == (16, 64)
    assert np.any(np.asarray(batches[0].pixels) != np.asarray(batches[2].pixels))
