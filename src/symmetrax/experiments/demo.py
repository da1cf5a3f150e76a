"""The main job: learn optimizers with and without teleportation, and see on unseen tasks what it did."""

import dataclasses
from typing import Any

from symmetrax.experiments import digits, plane
from symmetrax.experiments._folder import RunFolder
from symmetrax.experiments._report import Reporter

PLANE_ARMS = (
    "gd",
    "momentum",
    "adam",
    "vanilla",
    "teleport",
    "teleport-guarded",
    "teleport-off",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the two halves.

    >>> config("demo").plane.family
    'ellipse-random'
    """

    plane: plane.Config
    digits: digits.Config


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset; "quick" trains less.

    >>> config("demo").plane.seeds
    4
    """
    runs = 500 if preset == "full" else 200
    return Config(
        plane.Config(
            figure="demo",
            family="ellipse-random",
            seed=seed,
            seeds=4,
            tasks=200,
            tuning_tasks=200,
            runs=runs,
            arms=PLANE_ARMS,
            far=False,
        ),
        digits.config("digits", "quick", seed),
    )


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Both halves, in one folder."""
    halves = [plane.run(settings.plane, folder, reporter), digits.run(settings.digits, folder, reporter)]
    return {
        "groups": {name: group for half in halves for name, group in half["groups"].items()},
        "verdicts": [row for half in halves for row in half["verdicts"]],
    }


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print both tables."""
    on_plane = {"groups": {settings.plane.family: results["groups"][settings.plane.family]}}
    rows = [row for row in results["verdicts"] if row["source"] != digits.SOURCE]
    plane.show(settings.plane, {**on_plane, "verdicts": rows}, reporter)
    digits.show(settings.digits, results, reporter)
