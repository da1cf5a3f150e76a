"""Newton's direction taken apart (figure 1 of arXiv:2504.15399), and what that figure leaves out.

The figure has one convex quadratic, one point, and the two parts of Newton's direction there: along the
gradient, and along the level set. Here the same is drawn where the Hessian is indefinite, with the numbers of
the paper's own counter-example; and for all points of one level set of the convex quadratic, whether a small
teleport toward larger gradients turns the gradient to Newton's direction, as section 4.1 concludes.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from symmetrax.studies._ellipses import at_once, conditional, level_set, turned
from symmetrax.studies._fig1_figures import draw
from symmetrax.studies._newton_measures import (
    COUNTER_EXAMPLE,
    GRADIENT,
    KINDS,
    Settings,
    along_level_set,
    angles_of,
    newton_parts_at,
    numbers,
    random_cases,
    repeated,
    shares,
    value_grid,
)
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import titled_table
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._study import Study

SOURCE = "arXiv:2504.15399, "


def analyse(run: Run) -> dict[str, Any]:
    """Take Newton's direction apart in float64, at two points and on a level set; draw; return verdicts."""
    settings, folder = run.study.settings, run.folder
    hessians = {"convex": turned(settings.eigenvalues, settings.turn), "counter-example": COUNTER_EXAMPLE}
    angles = angles_of(settings)
    points = {
        "convex": level_set(hessians["convex"], np.radians([settings.place]), settings.size),
        "counter-example": np.linalg.solve(COUNTER_EXAMPLE, GRADIENT)[None],
        "level": level_set(hessians["convex"], angles, settings.size),
    }
    cases = {name: (x, repeated(hessians.get(name, hessians["convex"]), x)) for name, x in points.items()}
    with jax.enable_x64(True):
        found = at_once(newton_parts_at, cases | random_cases(settings, run.study.seed))
    vectors = {name: {k: np.asarray(x[0]) for k, x in found[name].items()} for name in hessians}
    for name, row in vectors.items():
        row["point"] = points[name][0]
    arrays = {f"{name}.{k}": x for name, row in vectors.items() for k, x in row.items()}
    for name, row in vectors.items():
        arrays[f"{name}.loss.here"] = np.array(-row["point"] @ row["descent"] / 2)
        arrays[f"{name}.norm.here"] = np.array(np.linalg.norm(row["descent"]))
    for name, window in (("convex", (-1.0, 3.0, -1.5, 2.5)), ("counter-example", (-2.4, 3.2, -4.9, 0.7))):
        arrays |= {f"{name}.{k}": x for k, x in value_grid(hessians[name], window).items()}
    along, level = along_level_set(angles, points["level"], found["level"])
    folder.arrays("newton", arrays | along | {"level.place": np.array(settings.place)})
    measured = {name: numbers(row) for name, row in vectors.items()}
    random = {kind: shares(found[kind]) for kind in KINDS}
    return {
        "vectors": {name: {k: x.tolist() for k, x in row.items()} for name, row in vectors.items()},
        "measured": measured,
        "level_set": level,
        "random": random,
        "verdicts": _verdicts(measured, level, random),
    }


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Print the numbers at the two points, of the random Hessians and of the level set, and the verdicts."""
    table = titled_table("Newton's direction n = -H^-1 g at two points: p along the gradient g, s the rest")
    for name in ("Hessian", "|p + s - n| / |n|", "s . (-g)", "s . grad |g|^2", "n . (-g)", "cos(-g, n)"):
        table.add_column(name, justify="left" if name == "Hessian" else "right", no_wrap=True)
    for panel, row in results["measured"].items():
        exact = (f"{row[name]:.1e}" for name in ("sum_error", "orthogonality"))
        table.add_row(panel, *exact, *(f"{row[name]:+.3g}" for name in ("growth", "descent", "cosine")))
    yield table
    table = titled_table(f"{study.settings.draws:,} random Hessians of each kind and gradients in the plane")
    for name in ("Hessian", "|g| grows along s", "n descends"):
        table.add_column(name, justify="left" if name == "Hessian" else "right")
    for kind, row in results["random"].items():
        table.add_row(kind, f"{row['grows']:.1%}", f"{row['descends']:.1%}")
    yield table
    level = results["level_set"]
    yield (
        f"from the long to the short axis of a level set |g| grows by a factor of {level['norm_ratio']:.3g}; "
        f"cos(-g, n) falls to {level['least_cosine']:.3g} at {level['turns_at']:.4g} degrees, then rises: "
        f"better on {level['improves']:.1%} of the angles, {level['improves_by_length']:.1%} of the length"
    )


def _verdicts(
    measured: dict[str, Any], level: dict[str, Any], random: dict[str, Any]
) -> list[dict[str, str]]:
    definite = min(random[kind]["grows"] for kind in ("positive definite", "negative definite"))
    errors = max(row[name] for row in measured.values() for name in ("sum_error", "orthogonality"))
    saddle = measured["counter-example"]
    parts = {
        "claim": "Newton's direction is a step along the gradient plus one along the level set",
        "source": SOURCE + "figure 1",
        "outcome": "holds" if errors < 1e-12 else "fails",
        "why": f"the sum and the right angle are exact to {errors:.1e}, for any invertible Hessian",
    }
    grows = conditional(
        "the gradient's norm grows along the part of Newton's direction in the level set",
        SOURCE + "proposition 4.1",
        "the Hessian is definite, positive or negative",
        definite,
        random["indefinite"]["grows"],
    )
    grows["why"] += f"; at the paper's own counter-example its square changes by {saddle['growth']:+.3g}"
    descends = conditional(
        "Newton's direction is one of descent",
        "the setting of " + SOURCE + "section 4.1",
        "the Hessian is positive definite",
        random["positive definite"]["descends"],
        np.mean([random[kind]["descends"] for kind in ("negative definite", "indefinite")]).item(),
    )
    closer = conditional(
        "a small teleport to a larger gradient brings the gradient closer to Newton's direction",
        SOURCE + "section 4.1",
        "the point is nearer to the short axis, where level sets are circles",
        level["improves_near_short_axis"],
        level["improves_near_long_axis"],
    )
    return [parts, grows, descends, closer]


STUDIES = {
    "fig1": Study(
        name="fig1",
        title=EXPERIMENTS["fig1"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"settings": Settings(draws=200)},
    )
}
