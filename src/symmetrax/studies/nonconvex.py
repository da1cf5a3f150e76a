"""Is a teleport like Newton's step where the loss is not convex?

Proposition 4.1 of arXiv:2504.15399: for a convex loss the part of Newton's step that is orthogonal to the
gradient, v, raises the gradient norm, as teleports do on purpose. Appendix A says that this may fail
elsewhere. Here it is counted: on Rosenbrock's function and chains of it, on random symmetric Hessians, and
on a small network before, during and after training; for Newton's step, for the saddle-free step -|H|^-1 g
and for the shifted step -(H + s I)^-1 g that trust regions and damping take. A second question is whether a
small move along the level set toward larger gradients turns -g toward these steps. All in float64.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from symmetrax.studies._landscapes import RANDOM, Settings, landscapes, negatives, random_name
from symmetrax.studies._nonconvex_figures import draw
from symmetrax.studies._nonconvex_measures import (
    BINS,
    DIRECTIONS,
    MOVES,
    STEPS,
    alignment,
    measure,
    summarize,
)
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._shares import share, share_text, share_verdict
from symmetrax.studies.core._study import Study

PAPER = "arXiv:2504.15399, proposition 4.1"
APPENDIX = "arXiv:2504.15399, appendix A"
REMARK = "arXiv:2504.15399, section 4.1"
OURS = "not in the paper"
OPEN = "arXiv:2504.15399 leaves it open"

RAISES = "Newton's part along the level set raises the gradient norm"
CLOSER = "a small move to larger gradients turns -g toward"


def analyse(run: Run) -> dict[str, Any]:
    """Measure every group and count; return the groups, the convex quadratics and the verdicts."""
    settings, seed = run.study.settings, run.study.seed
    groups, arrays = {}, {}
    with jax.enable_x64(True):
        for name, value_fn, points, data in landscapes(settings, jax.random.key(seed)):
            run.reporter.note(name)
            seen = measure(value_fn, points, data, settings.size, settings.shift)
            groups[name] = summarize(seen)
            arrays |= {f"{name}.{label}": values.astype(np.float32) for label, values in seen.items()}
    run.folder.arrays("points", arrays)
    convex = {str(n): alignment(settings, seed, n) for n in settings.ellipsoids}
    return {"groups": groups, "convex": convex, "verdicts": list(_verdicts(groups, convex))}


def _verdicts(groups: dict[str, Any], convex: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Outcomes of the proposition, of its appendix, and of the remark about small teleports."""
    everywhere = "the part of the shifted step along the level set does so at every point of every group"
    lowers = RAISES.replace("raises", "lowers")
    plane = [name for name in groups if groups[name]["dimension"] == 2]
    rises = _pooled(groups, plane, "rises_indefinite", "newton")
    falls = share(np.arange(rises["of"]) >= rises["count"])
    definite = _pooled(groups, groups, "rises_definite", "newton")

    def at_most_points(text: str, source: str, found: Callable[[dict[str, Any]], dict[str, float]]):
        return (share_verdict(f"{name}: {text}", source, found(group)) for name, group in _others(groups))

    yield share_verdict(
        f"{RAISES} wherever the Hessian is definite, positive or negative", PAPER, definite, 1
    )
    yield share_verdict(f"in two dimensions {lowers} wherever the Hessian is indefinite", APPENDIX, falls, 1)
    yield from at_most_points(f"{RAISES} at most points", OPEN, lambda g: g["rises"]["newton"])
    saddle_free = "the saddle-free step's part does so at most points"
    yield from at_most_points(saddle_free, OURS, lambda g: g["rises"]["saddle-free"])
    yield share_verdict(everywhere, OURS, _pooled(groups, groups, "rises", "shifted"), 1)
    for n, places in convex.items():
        text = f"convex quadratics in {n} dimensions, z uniform: {CLOSER} Newton's step"
        yield share_verdict(text, REMARK, places["uniform z"]["orthogonal"])
    closer = f"{CLOSER} the saddle-free step"
    yield from at_most_points(closer, REMARK, lambda g: g["cosine"]["saddle-free"]["closer"]["orthogonal"])


def _others(groups: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The groups that are no random Hessians."""
    return [(name, group) for name, group in groups.items() if not name.startswith(RANDOM)]


def _pooled(groups: dict[str, Any], names: Iterable[str], key: str, step: str) -> dict[str, float]:
    """A share over the points of several groups."""
    count, of = (sum(groups[name][key][step][field] for name in names) for field in ("count", "of"))
    return share(np.arange(of) < count)


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Shares and cosines, of all groups and of the convex quadratics."""
    groups, settings = results["groups"], study.settings
    others = _others(groups)
    kinds, steps = ("definite", "singular", "not_finite"), ("newton", "newton, indefinite", *STEPS[1:])
    rises = {name: g["rises"] | {steps[1]: g["rises_indefinite"]["newton"]} for name, g in others}
    median = {name: f"{number(g['negative']['median']):.0%}" for name, g in others}
    yield titled_table(
        "points and their Hessians",
        "group",
        ("points", "definite", "singular", "not finite", "negative eigenvalues, median"),
        ((k, f"{g['points']:,}", *(f"{g[x]['share']:.0%}" for x in kinds), median[k]) for k, g in others),
    )
    yield titled_table(
        "share of points where a step's part along the level set raises the gradient norm (95 %)",
        "group",
        steps,
        ((name, *(share_text(found[step]) for step in steps)) for name, found in rises.items()),
    )
    yield titled_table(
        "the same, newton, in % by the share of negative eigenvalues",
        "group",
        ("0%", *(f"to {end:.0%}" for end in BINS[1:])),
        ((name, *(_percents(part["newton"]) for part in g["by_negative"])) for name, g in others),
    )
    for step in ("newton", "saddle-free"):
        yield titled_table(
            f"random Hessians, {step}, in % by the share of negative eigenvalues",
            "dimensions",
            (f"{part:.0%}" for part in settings.negative),
            ((str(n), *_by_share(groups, step, n, settings.negative)) for n in settings.dimensions),
        )
    yield titled_table(
        "median cosine of -g with a step, before and after a small move; how often the move brings it closer",
        "group",
        (f"{step}, {move}" for step in STEPS for move in MOVES),
        ((name, *(_closer(g["cosine"][s], move) for s in STEPS for move in MOVES)) for name, g in others),
    )
    yield titled_table(
        "convex quadratics: share of points where a move to larger gradients turns -g toward Newton's step",
        "dimensions, place",
        DIRECTIONS,
        (
            (f"{n}, {place}", *(share_text(found[name]) for name in DIRECTIONS))
            for n, places in results["convex"].items()
            for place, found in places.items()
        ),
    )


def _by_share(groups: dict[str, Any], step: str, n: int, shares: tuple[float, ...]) -> Iterator[str]:
    """Shares of random Hessians in n dimensions; empty where no number of eigenvalues is near enough."""
    for part in shares:
        (count,) = negatives(n, (part,))
        near = abs(count / n - part) < 0.11 and (count < n or part == 1)
        yield _percents(groups[random_name(n, count)]["rises"][step]) if near else ""


def _percents(found: dict[str, Any]) -> str:
    return share_text(found).replace(" %", "").replace(" to ", "-")


def _closer(cosine: dict[str, Any], move: str) -> str:
    before, change = cosine["before"]["median"], cosine["change"][move]["median"]
    return f"{number(before):.3f} {number(change):+.4f}, {number(cosine['closer'][move]['share']):.0%}"


_FEWER = Settings(points=200, plane=4000, convex=4000, networks=40, epochs=600, chains=(4, 16))
_QUICK = dataclasses.replace(_FEWER, dimensions=(2, 10, 50), negative=(0.0, 0.1, 0.25, 0.5, 1.0))

STUDIES = {
    "nonconvex": Study(
        name="nonconvex",
        title=EXPERIMENTS["nonconvex"].title,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={"settings": _QUICK},
    )
}
