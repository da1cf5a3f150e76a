"""Does learned momentum go with what a teleport does to the gradient?

Networks of arXiv:2504.15399, section 5.2, that learn a step size, a momentum beta_t and a group element a_t
are run on unseen tasks. For every teleport the gain ||grad f(a_t.x)|| / ||grad f(x)|| is measured from the
recorded points, outside of the optimizer and on all data, and correlated with the momentum emitted at that
step, and at the next one, which is the first to see the gradient after the teleport. Both drift with time:
beside the plain correlations stand those at equal step, and those with the momentum of another run.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from symmetrax._tree import safe_norm
from symmetrax.learned._transformation import LearnedState
from symmetrax.studies import _fig7_arms
from symmetrax.studies._classifiers import Size, image_family, trained_arm
from symmetrax.studies._momentum_statistics import (
    cloud,
    correlate,
    describe_teleports,
    everything,
    gather,
    judge,
)
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Control, Learned, switched_off
from symmetrax.studies.core._console import mean_text, number, titled_table
from symmetrax.studies.core._correlations import MEASURES
from symmetrax.studies.core._measurements import ONLY, interval_panels
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Curve, Panel, curve_panels
from symmetrax.studies.core._played import OWN
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._run_facts import due
from symmetrax.studies.core._study import Arm, Study
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

ARM, OFF = "lr-tele-momentum", "lr-tele-momentum-off"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The budget on every family.

    "regression-20" and "regression-20-gaussian" have the `networks` of algorithm 3, "digits" those for any
    width, of this `size`, which train a classifier of `width` hidden units.

    >>> list(STUDIES["momentum-correlation"].settings.budgets)
    ['regression-20', 'digits', 'regression-20-gaussian']
    """

    budgets: dict[str, Budget]
    networks: _fig7_arms.Networks = _fig7_arms.Networks()  # noqa: RUF009 (frozen)
    size: Size = Size()  # noqa: RUF009 (frozen)
    width: int = 16


def families(study: Study) -> list[AbstractTaskFamily]:
    """The families that have a budget."""
    return [learned(study, name).family for name in study.settings.budgets]


def learned(study: Study, family: str) -> Learned:
    """The arm that learns step size, momentum and group element, and keeps its velocity.

    >>> learned(STUDIES["momentum-correlation"], "regression-20-gaussian").family.name
    'regression-20-gaussian'
    """
    settings, budget = study.settings, study.settings.budgets[family]
    if family == "digits":
        size = dataclasses.replace(settings.size, steps=budget.steps)
        arm = trained_arm(ARM, image_family("digits", (settings.width,), 64), size)
    else:
        law = "gaussian" if family.endswith("gaussian") else "uniform"
        arm = _fig7_arms.learned_arm(ARM, law, settings.networks, budget.steps)
    return dataclasses.replace(arm, budget=budget, saved=False)


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """The arm, and the same networks with teleports switched off."""
    return [learned(study, family.name), Control(OFF, of=ARM, rule=switched_off)]


def horizons(study: Study, family: AbstractTaskFamily) -> tuple[int, ...]:
    """The horizon of training."""
    return (study.settings.budgets[family.name].steps,)


def look(
    make: Any, task: AbstractTask, params: PyTree, state: LearnedState, after: PyTree
) -> dict[str, Array]:
    """The gain of a teleport: with velocity v, which is kept, one starts at x_t + v and ends at x_{t+1}."""

    def norm(point: PyTree) -> Array:
        return safe_norm(jax.grad(task.loss)(point, everything(task)))

    return {"gain": norm(after) / norm(optax.tree.add(params, state.previous))}


def analyse(run: Run) -> dict[str, Any]:
    """Correlate gains and momenta; write every teleport."""
    table, teleports, verdicts = {}, {}, []
    for name, played in run.played.items():
        seen, off = (played.runs[OWN, arm, played.steps].recorded for arm in (ARM, OFF))
        steps = due(learned(run.study, name).rule, played.steps)
        events = gather(seen, steps)
        run.folder.arrays(f"{name}-events", {**events, "step": steps})
        table[name] = correlate(events)
        teleports[name] = describe_teleports(events, seen, off)
        verdicts += judge(name, table[name])
    return {"correlations": table, "teleports": teleports, "verdicts": verdicts}


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Correlations with intervals, and every teleport as a point."""
    tables = {
        f"{name}, {pairing}": {ONLY: {m: found["spearman"][m] for m in MEASURES}}
        for name, pairings in results["correlations"].items()
        for pairing, found in pairings.items()
    }
    interval_panels(folder / "correlations.png", tables, "rank correlation", limits=(-1.02, 1.02))
    shown = []
    x, y = "gain in gradient norm of the teleport", "learned momentum of its step"
    for name in results["correlations"]:
        with np.load(folder / f"{name}-events.npz", allow_pickle=False) as arrays:
            events = dict(arrays)
        gain, momentum, step = cloud(events, events["step"]).values()
        curves = {}
        for steps in np.array_split(np.unique(step), min(3, len(np.unique(step)))):
            here = np.isin(step, steps)
            label = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
            curves[label] = Curve(gain[here], momentum[here], dots=True)
        curves["unchanged"] = Curve(np.ones(2), np.quantile(momentum, [0.0, 1.0]))
        shown.append(Panel(name, curves, x, y, "x" if np.ptp(np.log(gain)) > np.log(5) else ""))
    curve_panels(folder / "teleports.png", shown)


def tables(study: Study, results: dict[str, Any]) -> Iterator[Any]:
    """Correlations of every family, and how large gains and momenta are."""
    for name, pairings in results["correlations"].items():
        title = f"{name}: correlation of momentum and gain, mean over {study.seeds} seeds (95 %)"
        table = titled_table(title, "momentum of, kind", MEASURES)
        for pairing, kinds in pairings.items():
            for kind, measured in kinds.items():
                cells = (mean_text(measured[measure], "+.2f") for measure in MEASURES)
                table.add_row(f"{pairing}, {kind}", *cells)
        yield table
        found = results["teleports"][name]
        gains = ", ".join(f"{number(x):.4g}" for x in found["gain_quartiles"])
        momenta = ", ".join(f"{number(x):.3f}" for x in found["momentum_quartiles"])
        yield (
            f"{name}: {found['teleports']:,} teleports, gain quartiles {gains}, above 1 in "
            f"{number(found['share_of_gains_above_1']):.0%}; momentum quartiles {momenta}; with teleports "
            f"less without {mean_text(found['momentum_less_that_without_teleports'], '+.3f')}"
        )


_REGRESSION = Budget(runs=100, steps=100, chunk=20)
_DIGITS = Budget(runs=75, steps=100, unroll=50, tasks=8, chunk=15, patience=2, remat=True)

STUDIES = {
    "momentum-correlation": Study(
        name="momentum-correlation",
        title=EXPERIMENTS["momentum-correlation"].title,
        families=families,
        arms=arms,
        references=(ARM, OFF),
        horizons=horizons,
        seeds=6,
        tasks=30,
        parts=None,
        watch=("momentum", "outcome", "loss_change"),
        look=look,
        analyse=analyse,
        figures=(draw,),
        tables=tables,
        settings=Settings(
            {"regression-20": _REGRESSION, "digits": _DIGITS, "regression-20-gaussian": _REGRESSION}
        ),
        quick={
            "seeds": 2,
            "tasks": 10,
            "settings": Settings(
                {
                    "regression-20": Budget(runs=100, steps=60),
                    "digits": Budget(runs=30, steps=60, unroll=30, tasks=8, chunk=30, remat=True),
                },
                _fig7_arms.Networks(units=10, width=20),
                Size(steps=60),
            ),
        },
    )
}
