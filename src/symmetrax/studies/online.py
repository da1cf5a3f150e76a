"""Learning to teleport on the fly: Algorithm 2 of arXiv:2504.15399, with the controls that it needs.

Published: on f(x) = x' A x in the plane, each update of the angle turns toward the short axis, and hence the
algorithm "provably learns the correct transformation". Here it runs on one ellipse step by step, on random
quadratics of the plane and of more dimensions, on the random families of the benchmark, and on a small
network. What is added: tuned gradient descent and momentum, twice the steps, the angle learned with the
opposite sign, random and constant angles of the same size, and the angle learned anew at every step.
"""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from symmetrax.studies._online_arms import BETAS, CONTROLLED, arms_on
from symmetrax.studies._online_measures import ALONE, PAIRS, described, ends, one_ellipse, run_arms
from symmetrax.studies._online_tasks import Settings, group_of
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._measurements import interval_panels, versus_table
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._played import judged
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._shares import share_text, share_verdict
from symmetrax.studies.core._study import Claim, Study

SOURCE = "arXiv:2504.15399, section 4.2"
CONTROL = "not in the paper: a control"
#: Arms that end equally low to this relative difference are a tie.
EQUAL = 0.01

LOWER = "Algorithm 2 ends lower than"
CLAIMS = (
    Claim("online-0.1", "gd", f"{LOWER} gradient descent at its rate, rate of the angle .1", SOURCE),
    Claim("online", "gd", f"{LOWER} gradient descent at its rate, rate of the angle tuned", SOURCE),
    *(
        Claim(*pair, text, CONTROL)
        for pair, text in {
            ("online", "gd-twice"): f"{LOWER} twice as many steps of gradient descent",
            ("online", "gd-tuned"): f"{LOWER} gradient descent at a tuned rate",
            ("online-tuned", "gd-tuned"): f"{LOWER} gradient descent, both tuned",
            ("online-tuned", "gd-tuned-twice"): f"{LOWER} twice as many steps, both tuned",
            ("online-tuned", "momentum-tuned"): f"{LOWER} heavy-ball momentum, both tuned",
            ("online-tuned", "momentum-tuned-twice"): f"{LOWER} twice the steps of momentum, both tuned",
            ("online-momentum", "momentum-tuned"): f"with momentum {LOWER} momentum alone, both tuned",
            ("online", "constant"): "what is learned matters: lower than one constant angle, tuned",
            ("online", "anew"): "memory matters: lower than with an angle learned anew at every step",
        }.items()
    ),
    *(
        Claim(arm, f"{arm}-{control}", text.format(rate), CONTROL)
        for arm, rate in zip(CONTROLLED, (".1", "tuned"), strict=True)
        for control, text in {
            "opposite": "the sign of the update matters (rate of the angle {}): lower than with the other",
            "random": "what is learned matters (rate of the angle {}): lower than random angles of that size",
        }.items()
    ),
    Claim("online-0.1-guarded", "online-0.1", "the guard helps, rate of the angle .1", CONTROL),
)
#: Claims about shares of the runs in the plane: which, and the share that it must exceed.
SHARES = {
    "every update turns toward the short axis": ("signs", 1),
    "the angle learned is the correct one (at the end within 5 degrees in most runs)": ("angle_aligned", 0.5),
    "never worse than gradient descent at the same rate and steps": ("not_worse", 1),
}


def analyse(run: Run) -> dict[str, Any]:
    """Run every arm of every group; write losses; return groups, steps on one ellipse, and verdicts."""
    study, settings = run.study, run.study.settings
    run.reporter.note("one ellipse, step by step")
    with jax.enable_x64(True):
        ellipse, curves = one_ellipse(settings.cap)
    groups, verdicts, arrays = {}, [], {f"ellipse.{name}": losses for name, losses in curves.items()}
    for name in settings.groups:
        run.reporter.note(f"{name}: tune, run all arms")
        group = group_of(name, settings, study.seeds, study.tasks)
        arms = arms_on(group, settings, run.streams.tune)
        runs = run_arms(arms, group, run.streams.test[0])
        groups[name] = {"runs": group.seeds * group.tasks, "arms": described(arms, runs)}
        losses = {arm: ends(ran) for arm, ran in runs.items()}
        verdicts += [
            *judged(CLAIMS, losses, f"{name}: {{}}", EQUAL),
            *_in_the_plane(groups[name]["arms"], name),
        ]
        arrays |= {f"{name}.{arm}": ran.losses.astype(np.float32) for arm, ran in runs.items()}
    run.folder.arrays("losses", arrays)
    return {"ellipse": ellipse, "groups": groups, "verdicts": verdicts}


def _in_the_plane(arms: dict[str, Any], name: str) -> Iterator[dict[str, str]]:
    """What became of the claims about shares of runs, on quadratics in the plane."""
    for beta, (text, (key, above)) in itertools.product(BETAS, SHARES.items()):
        if "signs" in (arm := arms[f"online-{beta:g}"]):
            yield share_verdict(f"{name}, rate of the angle {beta:g}: {text}", SOURCE, arm[key], above)


def draw(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """The losses on one ellipse, and the arms of all groups against gradient descent at the same rate."""
    shown: dict[float, dict[str, Curve]] = {}
    with np.load(folder / "losses.npz", allow_pickle=False) as arrays:
        for name in (name for name in arrays if name.startswith("ellipse.")):
            arm = name.removeprefix("ellipse.")
            for (rate, beta), losses in zip(PAIRS, arrays[name], strict=True):
                label = arm if arm in ALONE else f"{arm} {beta:g}"
                curve = Curve(np.arange(len(losses)), losses / losses[0])
                shown.setdefault(rate, {})[label] = curve
    panels = [Panel(f"learning rate {rate:.3g}", own, y="f / f(x_0)") for rate, own in shown.items()]
    curve_panels(folder / "ellipse.png", panels, columns=len(panels))
    groups = {f"{name}: {g['runs']:,} runs": g["arms"] for name, g in results["groups"].items()}
    tables = {title: versus_table(arms, "gd") for title, arms in groups.items()}
    interval_panels(folder / "groups.png", tables, "final loss / gd")


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Steps on one ellipse; losses, teleports and costs of all arms of every group."""
    rows, cap = results["ellipse"]["table"], study.settings.cap
    yield titled_table(
        f"x' diag(.25, 9) x, by learning rate: steps until f < 1e-6 f(x_0), or the ratio after {cap}",
        "arm",
        rows,
        ((arm, *(_steps(row[arm]) for row in rows.values())) for arm in next(iter(rows.values()))),
    )
    yield f"On a circle losses differ from those of gradient descent by {results['ellipse']['circle']:.1e}."
    for name, group in results["groups"].items():
        arms = dict(sorted(group["arms"].items(), key=lambda item: _over_gd(item[1])))
        yield titled_table(
            f"{name}: log10 of the final loss over another's, median of all {group['runs']:,} runs (95 %)",
            "arm",
            ("at most gd's", "over gd", "over gd-tuned", "over momentum-tuned", "diverged"),
            ((arm, *_losses(row)) for arm, row in arms.items()),
        )
        angles = ("angle", "after", "within 5 degrees") if "angle" in arms["gd"] else ()
        yield titled_table(
            f"{name}: teleports, and what they cost",
            "arm",
            ("farther", "rejected", "size", "us/step", "hyperparameters", *angles),
            ((arm, *_teleports(row)) for arm, row in arms.items()),
        )


def _steps(cell: dict[str, Any]) -> str:
    return f"{number(cell['last']):.1e}" if cell["steps"] is None else str(cell["steps"])


def _over_gd(row: dict[str, Any]) -> float:
    return number(row["versus"].get("gd", {"log_ratio": 0.0})["log_ratio"])


def _losses(row: dict[str, Any]) -> Iterator[str]:
    yield f"{number(row['not_worse']['share']):.1%}"
    for other in ("gd", "gd-tuned", "momentum-tuned"):
        found = row["versus"].get(other)
        yield "" if found is None else _decades(found)
    yield f"{row['diverged'] / row['runs']:.1%}"


def _decades(found: dict[str, Any]) -> str:
    """A log ratio and its interval, in powers of ten."""
    middle, low, high = (number(found[key]) / np.log(10) for key in ("log_ratio", "low", "high"))
    return f"{middle:.2f} ({low:.1f} to {high:.1f})"


def _teleports(row: dict[str, Any]) -> Iterator[str]:
    farther = number(row["farther"]["mean"])
    yield "" if np.isnan(farther) else f"{farther:.0%}"
    yield f"{number(row['rejected']['mean']):.0%}"
    yield f"{number(row['size']['median']):.2g}"
    yield f"{1e6 * row['seconds'] / row['runs'] / row['steps']:.2g}"
    yield ", ".join(f"{key} {value:.2g}" for key, value in row["hyperparameters"].items())
    if "angle" in row:
        yield from (f"{number(row[key]['median']):.0f}" for key in ("angle", "angle_after"))
        yield share_text(row["angle_aligned"])


_QUICK_GROUPS = ("quadratic 2", "quadratic 3", "rosenbrock-random", "network")
_SMALL = {"rates": 9, "betas": 5, "momenta": (0.0, 0.5, 0.8), "images": 100, "network_steps": 40}

STUDIES = {
    "online": Study(
        name="online",
        title=EXPERIMENTS["online"].title,
        seeds=50,
        tasks=30,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(),
        quick={
            "seeds": 20,
            "tasks": 10,
            "settings": Settings(groups=_QUICK_GROUPS, networks=8, **_SMALL),
        },
    )
}
