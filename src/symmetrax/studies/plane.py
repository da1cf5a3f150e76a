"""Figures 3 to 6 of arXiv:2504.15399: learned optimizers on the plane, with and without teleportation.

Published budget (from code matching the figures): 500 runs of one task, 20 updates, windows of 5, a two-layer
LSTM of width 100, outer Adam at 4e-4, a schedule of {2, 5, 8, 11, 14, 17}, 12 test steps. Added here: 20
meta-seeds, 1,000 unseen tasks for each, tuned baselines, controls, all runs in the statistics, and beside
them the protocol of the published code, the last run from a far start, to show what it hides.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import optax

from symmetrax.learned._flat_gradient import FlatGradientLSTM
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Build, Control, Learned, Tuned, switched_off
from symmetrax.studies.core._control_networks import RandomDirection
from symmetrax.studies.core._hand_made import FromTheBest, adam, descent, oracle_evaluations
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._plane_figures import trajectories
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import log_ratios, sign_verdict
from symmetrax.studies.core._study import Arm, Claim, Study
from symmetrax.studies.core._trajectories import paths
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._families import make_family
from symmetrax.teleportation._guard import Guard

FIGURES = {
    "fig3": "ellipse-fixed",
    "fig4": "ellipse-random",
    "fig5": "rosenbrock-fixed",
    "fig6": "rosenbrock-random",
}

#: Every arm that learns: when it teleports, whether a guard rejects, and what it learns with.
LEARNED: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "vanilla-2nd": {"order": 2},
    "vanilla-orbit": {"inputs": ("orbit_derivative",)},
    "teleport": {"when": "always"},
    "teleport-2nd": {"when": "always", "order": 2},
    "teleport-guarded": {"when": "always", "guarded": True},
    "teleport-schedule": {"when": "schedule"},
    "teleport-schedule-2nd": {"when": "schedule", "order": 2},
    "teleport-schedule-guarded": {"when": "schedule", "guarded": True},
    "teleport-schedule-orbit": {"when": "schedule", "inputs": ("orbit_derivative",)},
}

#: Descent from the largest gradient on the orbit; one object, so that arms share its programs.
ORACLE = FromTheBest(descent)

#: The arms whose trajectories are drawn.
DRAWN = ("adam", "vanilla", "teleport", "teleport-guarded")

CONTROL = "not in the paper: a control"
FAR = "far"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of the networks, as published.

    >>> Settings().schedule
    (2, 5, 8, 11, 14, 17)
    """

    width: int = 100
    depth: int = 2
    learning_rate: float = 4e-4
    schedule: tuple[int, ...] = (2, 5, 8, 11, 14, 17)


def learned(
    name: str,
    family: AbstractTaskFamily,
    steps: int = 20,
    settings: Settings = Settings(),
) -> Learned:
    """The learned arm of this name, trained on `steps` steps.

    >>> learned("teleport-schedule", make_family("ellipse-fixed")).rule.schedule.sum().item()
    6
    """
    return _learned(name, family, steps, settings, **LEARNED[name])


def _learned(name, family, steps, settings, when="never", guarded=False, order=1, inputs=()) -> Learned:
    times = {"never": None, "always": range(steps), "schedule": settings.schedule}[when]
    guard = Guard(tolerance=1e-3) if guarded else None

    def rule(horizon: int, meta_order: int = 1) -> UpdateRule:
        if times is None:
            return UpdateRule((), guard, meta_order)
        # As many flags in tests as in training: arms then share compiled programs.
        due = range(horizon) if when == "always" else [t for t in times if t < horizon]
        return UpdateRule.at(due, horizon, guard=guard, meta_order=meta_order)

    return Learned(
        name,
        Build.of(
            FlatGradientLSTM,
            size=2,
            algebra=int(times is not None),
            width=settings.width,
            depth=settings.depth,
            inputs=inputs,
        ),
        rule(steps, order),
        _outer_adam(settings.learning_rate),
        family,
        used=lambda horizon: rule(max(horizon, steps)),
        # The derivative along the orbit is one Hessian-vector product, counted as two gradients.
        extra=2.0 if inputs else 0.0,
    )


@functools.cache
def _outer_adam(rate: float) -> optax.GradientTransformation:
    """The published outer optimizer, unclipped; one object for all arms, so that they share programs."""
    return optax.adam(rate)


def arms(study: Study, family: AbstractTaskFamily) -> list[Arm]:
    """All arms of a figure."""
    return [
        Tuned("gd", descent, momenta=(0.0,)),
        Tuned("momentum", descent),
        Tuned("adam", adam),
        Tuned("adam-0.5", adam, rates=(0.5,), momenta=(0.9,)),
        Tuned("oracle", ORACLE, momenta=(0.0,), extra=oracle_evaluations),
        *(learned(name, family, study.budget.steps, study.settings) for name in LEARNED),
        Control("teleport-off", of="teleport", rule=switched_off),
        Control("teleport-schedule-off", of="teleport-schedule", rule=switched_off),
        Control("random", of="teleport", change=lambda networks, seen: RandomDirection(networks)),
    ]


def claims(figure: str) -> tuple[Claim, ...]:
    """The paper's claims about a figure, and the questions that it leaves open."""
    source = f"section 5.1.2, figure {figure.removeprefix('fig')}"
    return (
        Claim("vanilla", "teleport", "vanilla L2O beats L2O with a teleport at every step", source),
        Claim("vanilla", "teleport-schedule", "vanilla L2O beats L2O with teleports on a schedule", source),
        Claim("vanilla-2nd", "teleport-2nd", "the same with second-order meta-gradients", source),
        Claim(
            "vanilla-orbit",
            "teleport-schedule-orbit",
            "the same when both see the derivative along the orbit",
            source,
        ),
        Claim("teleport-guarded", "vanilla", "guarded teleports beat vanilla L2O", CONTROL),
        Claim(
            "teleport",
            "teleport-off",
            "the learned teleport itself helps (against switching it off at test)",
            CONTROL,
        ),
        Claim(
            "teleport",
            "random",
            "the learned direction helps (against a random one of the same size)",
            CONTROL,
        ),
        Claim("vanilla", "adam", "vanilla L2O beats Adam tuned for the task family", CONTROL),
    )


def published_protocol(run: Run) -> dict[str, Any]:
    """What one would conclude from the last run alone, as the published code does, seed by seed."""
    (family,) = run.study.made()
    played = run.played[family.name]
    far = played.losses(FAR, played.steps)
    rows = [
        sign_verdict(
            f"{claim.text}, by the published protocol (last run, far start)",
            "code matching the figures",
            log_ratios(far[claim.first], far[claim.second])[:, -1],
        )
        for claim in run.study.claims_on(family.name)[:2]
        if claim.first in far and claim.second in far
    ]
    run.folder.arrays("trajectories", paths(run, family, DRAWN))
    return {"verdicts": run.results["verdicts"] + rows}


#: The arms of each panel of loss curves, and those that show their quartiles.
PANELS = {
    "The figure's arms": ("adam-0.5", "vanilla", "teleport", "teleport-schedule"),
    "Guard, second order, orbit derivative": (
        *("vanilla", "vanilla-2nd", "teleport-2nd", "teleport-guarded", "teleport-schedule-guarded"),
        *("vanilla-orbit", "teleport-schedule-orbit"),
    ),
    "Controls": ("teleport", "teleport-off", "random", "gd", "momentum", "adam", "oracle"),
}
BANDED = ("vanilla", "teleport", "teleport-guarded", "adam")


def draw(folder, results: dict[str, Any]) -> None:
    """Loss curves, and trajectories of the first tasks."""
    family, group = next(iter(results["groups"].items()))
    arms = group["arms"]
    shown = [Panel(title, losses(arms, names, banded=BANDED)) for title, names in PANELS.items()]
    title = f"{family}: {next(iter(arms.values()))['runs']:,} unseen runs per arm"
    curve_panels(folder / "curves.png", [panel for panel in shown if panel.curves], title=title)
    with np.load(folder / "trajectories.npz", allow_pickle=False) as arrays:
        trajectories(folder / "trajectories.png", dict(arrays), family)


def _study(figure: str) -> Study:
    return Study(
        name=figure,
        title=EXPERIMENTS[figure].title,
        families=(FIGURES[figure],),
        arms=arms,
        references=("vanilla", "adam", "adam-0.5", "teleport"),
        claims=claims(figure),
        budget=Budget(runs=500, steps=20, unroll=5, chunk=100, patience=0),
        seeds=20,
        tasks=1000,
        tuning_tasks=1000,
        horizons=(12,),
        parts=None,
        tests=lambda study, family: {FAR: make_family(family.name, far=True)},
        analyse=published_protocol,
        figures=(draw,),
        settings=Settings(),
        quick={
            "seeds": 4,
            "tasks": 200,
            "tuning_tasks": 200,
            "budget": Budget(runs=200, steps=20, unroll=5, chunk=100, patience=0),
        },
    )


#: The studies of this module by name.
STUDIES = {figure: _study(figure) for figure in FIGURES}
