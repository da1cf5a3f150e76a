"""The groups of results of figure 7, and what is measured where its runs end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from symmetrax.studies._fig7_hand import at_an_end, in_equal_seconds
from symmetrax.studies.core._hand_made import descent
from symmetrax.studies.core._match import Match
from symmetrax.studies.core._played import OWN, Played
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import compare
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._regression import Regression, RegressionFamily

#: Epochs at which losses are reported: index t of a trace is the loss after t steps.
EPOCHS = (1, 10, 29, 99)
#: Arms that every other is compared with.
REFERENCES = (
    "gd-3e-4",
    "gd",
    "momentum",
    "warm-momentum",
    "lr",
    "lr-momentum",
    "lr-tele",
    "lr-tele-momentum",
    "update",
    "coordinates",
    "every-10",
)


def fresh(task: AbstractTask, params: PyTree) -> dict[str, Array]:
    """The loss on data that were not trained on: an action that is exact on one batch may change it.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.studies._fig7_arms import Networks, family
    >>> task = family("uniform", Networks(units=3)).task((jnp.ones((3, 3)), jnp.ones((3, 3))))
    >>> sorted(fresh(task, task.init(jax.random.key(1))))
    ['fresh']
    """
    assert isinstance(task, Regression)
    dims = (task.inputs.shape[1], *task.widths, task.targets.shape[1])
    others = RegressionFamily("fresh", dims=dims, samples=len(task.inputs), data=task.start)
    return {"fresh": task.loss(params, others.draw(jax.random.key(0)))}


def epochs(steps: int) -> tuple[int, ...]:
    """The epochs to report that a trajectory of so many steps has.

    >>> epochs(29)
    (1, 10, 29)
    """
    return tuple(epoch for epoch in EPOCHS if epoch <= steps)


def groups_of(run: Run, regression: AbstractTaskFamily, played: Played) -> dict[str, Any]:
    """All runs at the last epoch and at 29, and the published protocol: five trajectories."""
    name, study = regression.name, run.study
    losses, few = played.losses(OWN, played.steps), min(study.settings.published_tasks, study.tasks)
    cuts = {f"{name}-{few}": ({arm: x[:, :few] for arm, x in losses.items()}, few)}
    if played.steps > 29:
        cuts[f"{name}-epoch-29"] = ({arm: x[..., :30] for arm, x in losses.items()}, study.tasks)
    groups: dict[str, Any] = {name: {"arms": run.results["groups"][name]["arms"]}}
    for group, (arrays, tasks) in cuts.items():
        groups[group] = {"arms": compare(arrays, REFERENCES, study.seeds * tasks)}
        for arm in groups[group]["arms"].values():
            arm["gradient_evaluations"] = float(len(arm["loss_median"]) - 1)
    own = groups[name]["arms"]
    patient = _patient(run, regression, own["gd"]["hyperparameters"])
    for arm in own.values():
        costs = (arm["seconds"], own["gd"]["seconds"], played.steps)
        arm["gd_in_equal_seconds"] = in_equal_seconds(*costs, patient)
        arm["epochs"] = {str(t): arm["loss_median"][t] for t in epochs(played.steps)}
        if "hyperparameters" in arm:
            arm["at_an_end"] = at_an_end(arm["hyperparameters"]["rate"])
    for found in groups.values():
        found |= {"against": "lr-tele"} if "lr-tele" in found["arms"] else {}
    return groups


def _patient(run: Run, regression: AbstractTaskFamily, hyper: dict[str, float]) -> list[float]:
    """The median losses of tuned gradient descent that goes on for long."""
    same = {name: jnp.full(run.study.seeds, value) for name, value in hyper.items()}
    options: Any = {"steps": run.study.settings.patient_steps, "watch": (), "measure": None}
    ran = Match(run, regression).roll_out(descent, same, regression, **options)
    losses = np.where(np.isfinite(ran.losses), ran.losses, np.inf)
    return np.median(losses, axis=(0, 1)).astype(float).tolist()
