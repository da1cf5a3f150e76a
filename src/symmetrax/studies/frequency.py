"""How often to teleport: learned teleports at every step, every 5, every 10 and never, each trained for it.

Reviewers of arXiv:2504.15399 asked for the frequency of teleports on convex and other problems. Here are a
convex family and one that is not, both of the plane, with a learned update (section 5.1), and the regression
of figure 7 with learned step size and momentum. All schedules of a family share their networks' start and
their tasks.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax

from symmetrax.learned._flat_gradient import FlatGradientLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies._fig7_arms import Networks, learned_arm
from symmetrax.studies._fig7_arms import family as regression
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Build, Control, Learned, switched_off
from symmetrax.studies.core._measurements import ONLY, interval_panels, versus_table
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._study import Arm, Claim, Study
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.teleportation._guard import Guard

NEVER = "never"
SOURCE = "asked by reviewers of arXiv:2504.15399"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The steps from one teleport to the next, the first at step 0; the networks and their outer rate.

    `regression` is the budget on the regression, that of `fig7`; on the plane it is the published one.

    >>> Settings().every
    (1, 5, 10)
    """

    every: tuple[int, ...] = (1, 5, 10)
    plane_width: int = 100
    plane_rate: float = 4e-4
    regression: Budget = Budget(steps=100, unroll=10, runs=100, chunk=25, patience=3)  # noqa: RUF009 (frozen)
    networks: Networks = Networks(width=100)  # noqa: RUF009 (frozen)


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """The optimizers that learn to teleport every so many steps, or never, and those switched off.

    >>> from symmetrax.tasks._families import make_family
    >>> family = make_family("ellipse-random")
    >>> [arm.name for arm in arms(STUDIES["frequency"], family)][:3]
    ['never', 'every-1', 'every-1-off']
    """
    found: list[Arm] = [arm(NEVER, (), study, family)]
    for every in study.settings.every:
        name = f"every-{every}"
        found.append(arm(name, range(0, steps_on(study, family), every), study, family))
        found.append(Control(f"{name}-off", of=name, rule=switched_off))
    return found


def steps_on(study: Study, family: AbstractTaskFamily) -> int:
    """The number of steps of training on a family.

    >>> from symmetrax.tasks._families import make_family
    >>> steps_on(STUDIES["frequency"], make_family("ellipse-random"))
    20
    """
    return (study.budget if family.name in PLANE else study.settings.regression).steps


def arm(name: str, times: Any, study: Study, family: AbstractTaskFamily) -> Learned:
    """The optimizer that learns to teleport at these times.

    >>> from symmetrax.tasks._families import make_family
    >>> family = make_family("ellipse-random")
    >>> arm("every-5", range(0, 20, 5), STUDIES["frequency"], family).rule.schedule.sum().item()
    4
    """
    settings, steps = study.settings, steps_on(study, family)
    if family.name not in PLANE:
        found = learned_arm("lr-tele-momentum", "uniform", settings.networks, steps)
        rule = UpdateRule.at(times, steps, guard=found.rule.guard)
        return dataclasses.replace(found, name=name, rule=rule, budget=settings.regression, saved=False)
    make = Build.of(FlatGradientLSTM, size=2, algebra=1, width=settings.plane_width)
    # The badly conditioned family needs the bound on jumps; the other's teleports may be of any length.
    guard = Guard(jump=3.0 if family.name.startswith("rosenbrock") else np.inf, tolerance=1e-3)
    rule = UpdateRule.at(times, steps, guard=guard)
    return Learned(name, make, rule, _outer(settings.plane_rate), family, saved=False)


@functools.cache
def _outer(rate: float) -> optax.GradientTransformation:
    """One object for all schedules, so that they share programs."""
    return optax.adam(rate)


def claims(study: Study, family: str) -> Iterator[Claim]:
    """Each schedule beats none, itself without its teleports, and a teleport at every step."""
    for every in study.settings.every:
        name = f"every-{every}"
        steps = "at every step" if every == 1 else f"every {every} steps"
        yield Claim(name, NEVER, f"a learned teleport {steps} beats none", SOURCE)
        yield Claim(name, f"{name}-off", f"what learned to teleport {steps} needs it at test", SOURCE)
        if every > 1:
            text = f"a learned teleport every {every} steps beats one at every step"
            yield Claim(name, "every-1", text, SOURCE)


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Final losses against the number of teleports."""
    tables = {}
    for family, group in results["groups"].items():
        found = versus_table(group["arms"], NEVER)[ONLY]
        on = {name: entry for name, entry in found.items() if not name.endswith("-off")}
        off = {name.removesuffix("-off"): entry for name, entry in found.items() if name.endswith("-off")}
        tables[family] = {"teleport": on, "teleport-off": off}
    runs = next(iter(next(iter(results["groups"].values()))["arms"].values()))["runs"]
    title = f"How often to teleport: {runs:,} unseen runs of each schedule"
    interval_panels(folder / "frequency.png", tables, f"final loss / {NEVER}", title=title)


PLANE = ("ellipse-random", "rosenbrock-random")
_SMALL = Networks(units=10, width=20)

STUDIES = {
    "frequency": Study(
        name="frequency",
        title=EXPERIMENTS["frequency"].title,
        families=(*PLANE, regression("uniform", Settings().networks)),
        arms=arms,
        references=(NEVER, "every-1", "every-1-off", "every-5-off", "every-10-off"),
        claims=claims,
        budget=Budget(runs=500, steps=20, unroll=5, chunk=100, patience=0),
        seeds=6,
        tasks=100,
        horizons=lambda study, family: (steps_on(study, family),),
        figures=(draw,),
        settings=Settings(),
        quick={
            "families": (*PLANE, regression("uniform", _SMALL)),
            "seeds": 2,
            "tasks": 40,
            "budget": Budget(runs=100, steps=20, unroll=5, chunk=50, patience=0),
            "settings": Settings(
                regression=Budget(steps=30, unroll=10, runs=40, chunk=20, patience=3, validation_tasks=16),
                networks=_SMALL,
            ),
        },
    )
}
