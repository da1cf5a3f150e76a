"""The experiment on Algorithm 2: published numbers, the direction of every update, and one small run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from symmetrax.studies import online
from symmetrax.studies._online_arms import follow, make_starts
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder

TINY = dataclasses.replace(
    online.config("online", "quick"),
    seeds=10,
    tasks=150,
    cap=200,
    groups=("quadratic 2",),
    rates=2,
    betas=2,
    momenta=(0.0, 0.5),
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory, quick_compilation):
    """All of the 1,500 random ellipses, tuned on a grid of nearly nothing: results, arrays, and arms."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    folder = RunFolder(path, "online", "tiny", dataclasses.asdict(TINY))
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        describe = online.describe
        patch.setattr(online, "describe", lambda arms, *rest: seen.update(arms) or describe(arms, *rest))
        results = online.run(TINY, folder, Reporter(quiet=True))
    online.show(TINY, results, Reporter(quiet=True))
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
    place = online.PAIRS.index((rate, beta))
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
    for beta in online.BETAS:
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
    streams = online.Streams.of(TINY.seed, TINY.seeds)
    keys = jax.vmap(lambda key: jax.random.split(key, TINY.tasks))(streams.test).ravel()
    starts = make_starts(online.family_of(TINY, "quadratic 2")[0], keys)
    matrices, x = np.asarray(starts.drawn, float), np.asarray(starts.params, float)
    fractions = np.random.default_rng((TINY.seed, 1)).uniform(TINY.slow, 1.0, size=(2, 1500))[0]
    rates = fractions / 2 / np.linalg.eigvalsh(matrices)[:, -1]
    losses = [np.einsum("pi,pij,pj->p", x, matrices, x)]
    for _ in range(TINY.steps):
        x = x - rates[:, None] * 2 * np.einsum("pij,pj->pi", matrices, x)
        losses.append(np.einsum("pi,pij,pj->p", x, matrices, x))
    found = ran[1]["quadratic 2.gd"]
    np.testing.assert_allclose(found, np.transpose(losses), rtol=2e-3, atol=1e-4 * losses[0].min())
    twice = ran[1]["quadratic 2.gd-twice"]
    assert twice.shape == (1500, 2 * TINY.steps + 1)
    np.testing.assert_array_equal(twice[:, : TINY.steps + 1], found)


def test_controls_copy_what_they_should(everything):
    _, _, arms = everything
    learned, other, anew = (arms[name] for name in ("online-0.1", "online-0.1-opposite", "anew"))
    random, constant = arms["online-0.1-random"], arms["constant"]
    np.testing.assert_allclose(online._sizes(random), online._sizes(learned), rtol=1e-5, atol=1e-6)
    assert set(np.sign(random.algebra[:, 1:]).ravel()) >= {-1.0, 1.0}
    assert 0.46 < np.mean(random.algebra[:, 5] > 0) < 0.54
    assert np.ptp(constant.algebra) == 0
    assert constant.algebra[0, 0, 0] > 0
    np.testing.assert_allclose(other.algebra[:, 1], -learned.algebra[:, 1], rtol=1e-5)
    # What is learned anew at the first step is, but for its rate, what Algorithm 2 learns there.
    assert np.all(np.sign(anew.algebra[:, 0]) == np.sign(learned.algebra[:, 1]))
    assert np.all(learned.algebra[:, 0] == 0)
    assert np.all(arms["gd"].algebra == 0)


def test_a_network_and_a_guarded_arm_run_with_their_own_symmetry(quick_compilation):
    settings = dataclasses.replace(TINY, width=3, images=16, network_steps=3)
    family, tasks, steps = online.family_of(settings, "network")
    starts = make_starts(family, jax.random.split(jax.random.key(1), 2))
    guarded = dataclasses.replace(online.ONLINE, guarded=True)
    ran = follow(guarded, {"rate": 0.1, "beta": jnp.array([1e-2, 1e3])}, family, starts, steps)
    assert (tasks, ran.algebra.shape) == (1, (2, 3, 3))
    assert np.all(ran.algebra[:, 0] == 0)
    assert np.all(ran.loss[:, 1] < ran.loss[:, 0])
    # Coordinates of scalings are held within the bound of 1, which a rate of 1000 reaches at once.
    assert np.all(np.abs(ran.algebra) <= 1)
    assert np.max(np.abs(ran.algebra[1])) == 1 or np.any(ran.outcome[1] > 0)
    assert np.all(ran.outcome[0] == 0)
