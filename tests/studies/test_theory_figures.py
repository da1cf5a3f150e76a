"""Figures 1 and 2: their numbers by other means, and pictures that are drawn from files alone."""

import json
import shutil

import jax
import numpy as np
import pytest
import scipy.optimize

from symmetrax.studies import fig1, fig2
from symmetrax.studies._newton_measures import newton_parts_at
from symmetrax.studies._registry import run_experiment
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._runner import show_study

FIGURES = ("fig1", "fig2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick_compilation):
    """Both figures, run by name: folder and results."""
    found = {}
    for name in FIGURES:
        path = run_experiment(name, out=tmp_path_factory.mktemp("runs") / name, quiet=True)
        found[name] = path, json.loads((path / "results.json").read_text())
    return found


def load(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def squared_gradient(hessian, w, step=1e-3):
    """||grad f||^2 of f = w'Hw/2 from values of f alone; central differences are exact but for rounding."""
    value = lambda w: w @ hessian @ w / 2  # noqa: E731
    return sum(((value(w + e) - value(w - e)) / (2 * step)) ** 2 for e in step * np.eye(2))


@pytest.mark.parametrize("panel", ["convex", "counter-example"])
def test_newton_is_its_part_on_the_gradient_and_the_rest(runs, panel):
    """T09, with the projection written as the paper writes it."""
    arrays = load(runs["fig1"][0] / "newton.npz")
    v1, v2, point = (arrays[f"{panel}.{name}"] for name in ("descent", "newton", "point"))
    hessian = np.diag([1.0, -2.0])
    if panel == "convex":
        turn = rotation(np.radians(25.0))
        hessian = turn @ np.diag([0.3, 1.5]) @ turn.T
    parallel, symmetry = arrays[f"{panel}.parallel"], arrays[f"{panel}.symmetry"]
    np.testing.assert_allclose(v1, -hessian @ point, rtol=1e-12)
    np.testing.assert_allclose(v2, np.linalg.solve(hessian, v1), rtol=1e-12)
    np.testing.assert_allclose(parallel, (v2 @ v1) / (v1 @ v1) * v1, rtol=1e-12)
    np.testing.assert_allclose(parallel + symmetry, v2, rtol=1e-12)
    assert abs(symmetry @ v1) < 1e-12
    growth = [squared_gradient(hessian, point + e) - squared_gradient(hessian, point - e) for e in np.eye(2)]
    np.testing.assert_allclose(arrays[f"{panel}.growth"], np.array(growth) / 2, rtol=1e-8)
    assert (symmetry @ growth > 0) == (panel == "convex")


def test_the_counter_example_has_the_papers_numbers(runs):
    arrays, measured = load(runs["fig1"][0] / "newton.npz"), runs["fig1"][1]["measured"]["counter-example"]
    np.testing.assert_allclose(arrays["counter-example.descent"], [-1.0, -3.0], rtol=1e-14)
    np.testing.assert_allclose(arrays["counter-example.symmetry"], [-1.35, 0.45], rtol=1e-13)
    assert measured["growth"] == pytest.approx(-8.1, abs=1e-12)
    assert measured["descent"] == pytest.approx(-3.5, abs=1e-12)


def test_alignment_falls_to_45_degrees_and_then_rises_while_the_norm_grows(runs):
    path, results = runs["fig1"]
    arrays, level = load(path / "newton.npz"), results["level_set"]
    psi, l1, l2 = np.radians(arrays["level.angle"]), 0.3, 1.5
    cosine = (1 + np.sin(2 * psi) ** 2 * (l2 - l1) ** 2 / (4 * l1 * l2)) ** -0.5
    norm = 1.2 * np.sqrt(l1 * np.cos(psi) ** 2 + l2 * np.sin(psi) ** 2)
    np.testing.assert_allclose(arrays["level.cosine"], cosine, rtol=1e-12)
    np.testing.assert_allclose(arrays["level.norm"], norm, rtol=1e-12)
    assert np.all(np.diff(arrays["level.norm"]) > 0)
    np.testing.assert_array_equal(arrays["level.worse"], psi < np.pi / 4)
    assert level["turns_at"] == pytest.approx(45, abs=1e-6)
    assert level["improves"] == 0.5
    # By length: semi-axes 1 / sqrt(l); an integral on another grid.
    fine = np.linspace(0, np.pi / 2, 100_001)
    speed = np.hypot(np.sin(fine) / l1**0.5, np.cos(fine) / l2**0.5)
    assert level["improves_by_length"] == pytest.approx(speed[50_000:].sum() / speed.sum(), abs=1e-3)


def test_random_hessians_obey_the_sign_of_their_determinant(runs):
    random = runs["fig1"][1]["random"]
    assert {kind: row["grows"] for kind, row in random.items()} == {
        "positive definite": 1.0,
        "negative definite": 1.0,
        "indefinite": 0.0,
    }
    assert random["positive definite"]["descends"] == 1.0
    assert random["negative definite"]["descends"] == 0.0
    assert 0.4 < random["indefinite"]["descends"] < 0.6


def test_single_precision_has_the_same_signs():
    points, hessians = np.array([[1.0, -1.5], [1.0, 1.0]]), np.array([[1.0, -2.0], [1.0, 3.0]])[:, :, None]
    found = newton_parts_at(*(np.asarray(x, np.float32) for x in (points, hessians * np.eye(2))))
    assert found["slope"].dtype == np.float32
    np.testing.assert_allclose(found["slope"], [-8.1, 3 * 4 / 5], rtol=1e-5)


def loss_after(matrix, x, angle, rate):
    """f(x+) of algorithm 2, in the paper's words, with the symmetric root of the matrix."""
    values, axes = np.linalg.eigh(matrix)
    root = axes * np.sqrt(values) @ axes.T
    y = np.linalg.inv(root) @ rotation(angle) @ root @ x
    after = y - rate * 2 * matrix @ y
    return after @ matrix @ after, y, axes[:, 1]


def slope(matrix, x, angle, rate):
    """Its derivative by the angle: f(x+) is a constant plus a sine of twice the angle, for which the
    difference over a quarter turn is the derivative."""
    quarter = np.pi / 4
    ahead, behind = (loss_after(matrix, x, angle + step, rate)[0] for step in (quarter, -quarter))
    return ahead - behind


@pytest.mark.parametrize(("name", "part", "share"), [("below", 0.99, 1.0), ("above", 1.01, 0.0)])
def test_updates_turn_to_the_short_axis_below_the_threshold_only(runs, name, part, share):
    """T14: 1000 random A, condition numbers up to 1000, one percent off the threshold."""
    path, results = runs["fig2"]
    draws, toward = load(path / "draws.npz"), []
    conditions = np.linalg.cond(draws["matrices"])
    assert len(conditions) == 1000
    assert conditions.max() > 900
    for matrix, x, angle, update in zip(
        *(draws[k] for k in ("matrices", "points", "angles", name)), strict=True
    ):
        rate = part / np.trace(matrix)
        derivative = slope(matrix, x, angle, rate)
        assert update == pytest.approx(-derivative, rel=1e-8)
        # A small turn against the derivative: is the point nearer to the short axis, in the plane?
        small = -1e-5 * np.sign(derivative)
        ends = [loss_after(matrix, x, angle + turn, rate)[1:] for turn in (0.0, small)]
        before, after = (abs(short @ y) / np.linalg.norm(y) for y, short in ends)
        toward.append(after > before)
    assert np.mean(toward) == share
    assert results["sides"][name] == {"level_set": share, "random": share}


@pytest.mark.parametrize("rate", [0.3, 0.99, 1.01])
@pytest.mark.parametrize("turn", [0.0, 30.0, -70.0])
def test_the_update_is_largest_at_45_degrees_of_the_circle(runs, rate, turn):
    """T15, by a search that knows no closed form."""
    axes = rotation(np.radians(turn))
    matrix = axes @ np.diag([0.25, 9.0]) @ axes.T

    def size(psi):
        x = axes @ (np.array([np.cos(psi), np.sin(psi)]) / np.sqrt([0.25, 9.0]))
        return -abs(slope(matrix, x, 0.0, rate / 9.25))

    best = scipy.optimize.minimize_scalar(
        size, bounds=(0.0, np.pi / 2), method="bounded", options={"xatol": 1e-9}
    )
    assert best.x == pytest.approx(np.pi / 4, abs=1e-6)
    for row in runs["fig2"][1]["speed"].values():
        assert np.radians(row["fastest_at"]) == pytest.approx(np.pi / 4, abs=1e-6)
        assert row["rest"] < 1e-10


def test_half_way_on_the_circle_is_not_half_way_on_the_ellipse(runs):
    path, results = runs["fig2"]
    point = load(path / "turning.npz")["half_way"][0]
    angle = np.degrees(np.arctan2(point[1], point[0])) - 30
    assert angle == pytest.approx(results["fastest_in_the_plane"], abs=1e-9)
    assert angle == pytest.approx(9.4623, abs=1e-3)


def test_the_printed_form_is_right_on_diagonals_and_no_better_than_chance_elsewhere(runs):
    forms = runs["fig2"][1]["closed_form"]
    assert forms["diagonal"]["printed_right"] == 1.0
    assert forms["diagonal"]["printed_median"] < 1e-12
    assert 0.45 < forms["random below"]["printed_wrong_sign"] < 0.55
    # Eigenvectors at 30 degrees shift a sine of twice the angle by a third of its half period.
    assert forms["below"]["printed_wrong_sign"] == pytest.approx(1 / 3, abs=1e-9)
    assert max(row["corrected"] for row in forms.values()) < 1e-8


def test_what_is_drawn_lies_on_the_level_set_and_along_it(runs):
    """T16."""
    arrays, axes = load(runs["fig2"][0] / "turning.npz"), rotation(np.radians(30.0))
    matrix = axes @ np.diag([0.25, 9.0]) @ axes.T
    for name, f in (("level", 1.0), ("at", 1.0), ("outer", 1.75**2), ("half_way", 1.0)):
        np.testing.assert_allclose(
            np.einsum("ki,ij,kj->k", arrays[name], matrix, arrays[name]), f, rtol=1e-12
        )
    for at, arrows in (("at", "below.arrows"), ("outer.at", "above.printed"), ("grid", "grid.field")):
        across = np.einsum("ki,ij,kj->k", arrays[at], matrix, arrays[arrows])
        assert np.max(np.abs(across)) < 1e-11
    assert np.all(arrays["below.arrows.short"])
    assert not np.any(arrays["above.arrows.short"])
    # Counter-clockwise, as angles grow.
    x, field = arrays["grid"], arrays["grid.field"]
    assert np.all(x[:, 0] * field[:, 1] - x[:, 1] * field[:, 0] >= 0)


def test_verdicts_name_their_conditions(runs):
    outcomes = [[row["outcome"] for row in runs[name][1]["verdicts"]] for name in FIGURES]
    assert outcomes == [["holds", "holds only if", "holds if", "holds only if"], ["holds only if"] * 3]
    for name in FIGURES:
        for row in runs[name][1]["verdicts"]:
            assert set(row) == {"claim", "source", "outcome", "why"}
            assert "arXiv:2504.15399" in row["source"]


@pytest.mark.parametrize(
    ("inside", "outside", "outcome"),
    [(1.0, 1.0, "holds"), (1.0, 0.0, "holds only if"), (1.0, 0.3, "holds if"), (0.999, 0.0, "fails")],
)
def test_conditions(inside, outside, outcome):
    row = fig1.conditional("claim", "source", "condition", inside, outside)
    assert row["outcome"] == outcome
    assert row["why"].startswith("condition: ")


def test_pictures_are_drawn_from_the_arrays_alone(runs, tmp_path):
    for name, study in (("fig1", fig1), ("fig2", fig2)):
        for arrays in runs[name][0].glob("*.npz"):
            shutil.copy(arrays, tmp_path)
        study.draw(tmp_path, {})
        (picture,) = runs[name][0].glob("*.png")
        assert (tmp_path / picture.name).read_bytes() == picture.read_bytes()
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_two_runs_give_equal_arrays(runs, tmp_path):
    for name, files in (("fig1", ("newton",)), ("fig2", ("turning", "draws"))):
        again = run_experiment(name, out=tmp_path / name, quiet=True)
        for file in files:
            before, after = load(runs[name][0] / f"{file}.npz"), load(again / f"{file}.npz")
            assert before.keys() == after.keys()
            for key, array in before.items():
                np.testing.assert_array_equal(array, after[key])
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(("module", "name", "words"), [(fig1, "fig1", "-8.1"), (fig2, "fig2", "33.3%")])
def test_tables_are_printed(runs, capsys, module, name, words):
    show_study(module.STUDIES[name], runs[name][1], Reporter())
    printed = capsys.readouterr().out
    assert words in printed
    assert "holds only if" in printed
