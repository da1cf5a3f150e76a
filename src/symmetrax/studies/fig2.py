"""A rotation that is learned while it is used (figure 2 of arXiv:2504.15399): which way it turns, how fast.

Algorithm 2 on f(x) = x'Ax = ||Bx||^2, B symmetric: y = B^-1 R(t) B x, x+ = y - rate grad f(y), and then a
step of t against d f(x+) / dt. Section 4.2 says that this turns y to the short axis of its level set, fastest
half way between the axes. Both need a condition; that of the first is measured just below and just above the
rate where the turn reverses. The closed form of appendix B, from which they are read, is right for diagonal A
and t = 0 alone.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from symmetrax.studies._ellipses import at_once, conditional, level_set, turned
from symmetrax.studies._fig2_figures import draw
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._turning_measures import (
    Settings,
    angle_updates,
    case,
    closed_form,
    random_cases,
    sides,
    speed,
)
from symmetrax.studies.core._console import titled_table
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study

QUARTER_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
#: In the figure: the level set of the printed updates, and the length of the longest step, in radians.
OUTER, LONGEST = 1.75, 0.33
SOURCE = "arXiv:2504.15399, "


def analyse(run: Run) -> dict[str, Any]:
    """Measure all updates in float64, draw, return numbers and verdicts."""
    settings, folder = run.study.settings, run.folder
    matrix = turned(settings.eigenvalues, settings.turn)
    # Between multiples of 45 degrees: neither on an axis nor half way.
    angles = 2 * np.pi * (np.arange(settings.angles) + 0.5) / settings.angles
    points, half_way = level_set(matrix, angles), level_set(matrix, np.array([np.pi / 4]))
    parts = np.linspace(0.0, 1.5, settings.rates)
    values, bases, starts, thetas = random_cases(settings, run.study.seed)
    problems = np.einsum("kia,ka,kja->kij", bases, values, bases)
    with jax.enable_x64(True):
        found = at_once(
            angle_updates,
            {
                "below": case(matrix, points, 0.0, settings.below),
                "above": case(matrix, points, 0.0, settings.above),
                "rates": case(matrix, half_way, 0.0, parts),
                "random below": case(problems, starts, thetas, settings.below),
                "random above": case(problems, starts, thetas, settings.above),
                "diagonal": case(values[:, :, None] * np.eye(2), starts, 0.0, settings.below),
            },
        )
    draws = {"matrices": problems, "points": starts, "angles": thetas}
    updates = {name: found[f"random {name}"]["update"] for name in ("below", "above")}
    folder.arrays("draws", draws | updates)
    folder.arrays("turning", _arrays(settings, matrix, angles, points, parts, found))
    l1, l2 = settings.eigenvalues
    results = {
        "threshold": 1 / (l1 + l2),
        "sides": {name: sides(found[name], found[f"random {name}"]) for name in ("below", "above")},
        "speed": {name: speed(angles, found[name]["update"]) for name in ("below", "above")},
        "fastest_in_the_plane": float(np.degrees(np.arctan(np.sqrt(l1 / l2)))),
        "closed_form": {name: closed_form(found[name]) for name in ("below", "random below", "diagonal")},
    }
    return results | {"verdicts": _verdicts(results)}


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Print which way updates turn, how good the closed forms are, and the verdicts."""
    threshold, random = f"{results['threshold']:.4f}", f"{study.settings.draws:,} random A"
    table = titled_table(f"share of updates that turn to the short axis; the threshold is {threshold}")
    for name in ("rate / threshold", "level set", random, "largest update", "at (degrees)"):
        table.add_column(name, justify="right")
    for name in ("below", "above"):
        side, speed = results["sides"][name], results["speed"][name]
        shares = (f"{side[key]:.1%}" for key in ("level_set", "random"))
        table.add_row(
            f"{getattr(study.settings, name):g}",
            *shares,
            f"{speed['largest']:.4f} f",
            f"{speed['fastest_at']:.6f}",
        )
    yield table
    table = titled_table("the update of the angle in closed form, against autodiff")
    for name in ("", "as printed: median error", "wrong sign", "corrected: worst error"):
        table.add_column(name, justify="right" if name else "left")
    labels = {
        "below": "the level set",
        "random below": "random A and angles",
        "diagonal": "diagonal A, angle 0",
    }
    for name, label in labels.items():
        row = results["closed_form"][name]
        printed = f"{row['printed_median']:.2g}", f"{row['printed_wrong_sign']:.1%}"
        table.add_row(label, *printed, f"{row['corrected']:.0e}")
    yield table


def _arrays(
    settings: Settings,
    matrix: np.ndarray,
    angles: np.ndarray,
    points: np.ndarray,
    parts: np.ndarray,
    found: dict[str, dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Arrows along the level set, and updates over the angle and over the rate, for the figure."""
    every = slice(settings.arrows // 2, None, settings.arrows)
    quarter = slice(0, settings.angles // 4)
    l1, l2 = settings.eigenvalues
    root = turned((l1**0.5, l2**0.5), settings.turn)
    grid = np.stack(np.meshgrid(np.linspace(-2.6, 2.6, 19), np.linspace(-1.8, 1.8, 15)), axis=-1).reshape(
        -1, 2
    )
    field = grid @ (np.linalg.inv(root) @ QUARTER_TURN @ root).T
    length = np.linalg.norm(field, axis=1, keepdims=True)
    arrays = {
        "eigenvalues": np.array([l1, l2]),
        "half_way": level_set(matrix, np.pi / 4 * np.arange(1, 8, 2)),
        "level": points,
        "at": points[every],
        "outer": OUTER * points,
        "outer.at": OUTER * points[every],
        "grid": grid,
        "grid.field": field / np.where(length == 0, 1.0, length),
        "angle": np.degrees(angles[quarter]),
        "parts": parts,
        "rates.toward": found["rates"]["toward"],
        "step_bound": np.array((l1 + l2) / (2 * l2)),
    }
    for name in ("below", "above"):
        row = found[name]
        largest = np.max(np.abs(row["update"]))
        updates = {
            "arrows": (row["update"], row["toward"]),
            "printed": (row["printed"], row["printed"] * np.sign(row["update"] * row["toward"])),
        }
        for kind, (update, toward) in updates.items():
            arrays[f"{name}.{kind}"] = (row["field"] * update[:, None])[every] / largest * LONGEST
            arrays[f"{name}.{kind}.short"] = toward[every] > 0
        arrays |= {
            f"{name}.part": np.array(getattr(settings, name)),
            f"{name}.largest": np.array(largest),
            f"{name}.curve": row["toward"][quarter] / largest,
            f"{name}.printed.curve": updates["printed"][1][quarter] / largest,
        }
    return arrays


def _verdicts(results: dict[str, Any]) -> list[dict[str, str]]:
    sides, forms = results["sides"], results["closed_form"]
    turns = conditional(
        "updates turn to the short axis",
        SOURCE + "section 4.2",
        "the rate is below 1 / (l1 + l2)",
        min(sides["below"].values()),
        max(sides["above"].values()),
    )
    turns["why"] += "; rates up to 1/L = 1 / (2 l2) are below"
    places = [row["fastest_at"] for row in results["speed"].values()]
    found = max(abs(np.radians(place) - np.pi / 4) for place in places) < 1e-6
    fastest = {
        "claim": "the angle is updated fastest half way between the axes",
        "source": SOURCE + "section 4.2",
        "outcome": "holds only if" if found else "fails",
        "why": f"half way is meant where level sets are circles: fastest at {places[0]:.6f} degrees there, "
        f"which is {results['fastest_in_the_plane']:.2f} degrees from the long axis in the plane",
    }
    printed = conditional(
        "the closed form of the update is its derivative",
        SOURCE + "appendix B",
        "A is diagonal and the angle is zero",
        forms["diagonal"]["printed_right"],
        forms["random below"]["printed_right"],
    )
    printed["why"] += f"; elsewhere its sign is wrong in {forms['random below']['printed_wrong_sign']:.1%}"
    return [turns, fastest, printed]


STUDIES = {
    "fig2": Study(
        name="fig2",
        title=EXPERIMENTS["fig2"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"settings": Settings(draws=200)},
    )
}
