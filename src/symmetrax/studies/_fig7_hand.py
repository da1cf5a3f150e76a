"""Optimizers made by hand, beside those of figure 7: tuned, or with what was learned as constants."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from symmetrax.studies._fig7_arms import FIRST
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._hand_made import descent
from symmetrax.studies.core._runs import Runs, facts, run_many
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._tuning import tune
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily

#: Learning rates that are tried; the published one is 3e-4.
RATES = tuple(np.geomspace(1e-5, 1e-1, 33).tolist())
PUBLISHED = 3e-4


def warm(hyper: dict[str, Array], task: AbstractTask | None) -> optax.GradientTransformation:
    """Gradient descent with momentum, whose first step has the rate 1e-4.

    The published data make the first step special: a rate that is good later turns all units off at first.

    >>> optimizer = warm({"rate": jnp.array(0.5), "momentum": jnp.array(0.0)}, None)
    >>> first, state = optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(1.0)))
    >>> [round(x.item(), 5) for x in (first, optimizer.update(jnp.array(1.0), state)[0])]
    [-0.0001, -0.5]
    """
    return optax.sgd(lambda count: jnp.where(count == 0, FIRST, hyper["rate"]), momentum=hyper["momentum"])


def as_long(hyper: dict[str, Array], task: AbstractTask | None) -> optax.GradientTransformation:
    """Gradient descent whose t-th step has the length `hyper["lengths"][t]`.

    >>> optimizer = as_long({"lengths": jnp.array([0.5, 0.1])}, None)
    >>> round(optimizer.update(jnp.array(3.0), optimizer.init(jnp.array(1.0)))[0].item(), 3)
    -0.5
    """
    return optax.chain(
        optax.normalize_by_update_norm(), optax.scale_by_schedule(lambda count: -hyper["lengths"][count])
    )


TUNED = (
    Tuned("gd", descent, RATES, (0.0,)),
    Tuned("momentum", descent, RATES),
    Tuned("warm", warm, RATES, (0.0,)),
    Tuned("warm-momentum", warm, RATES),
)
#: Learned arms whose constant step size and step lengths gradient descent is given.
FOLLOWED = ("lr", "lr-tele", "lr-tele-momentum")


def part(
    family: AbstractTaskFamily,
    recorded: dict[str, dict[str, Any]],
    settings: Any,
    streams: Streams,
    reporter: Reporter,
) -> tuple[dict[str, Runs], dict[str, dict[str, Any]]]:
    """Tune on the training stream and run on the unseen trajectories; what to tell of each.

    What the learned arms learned comes from their facts, `recorded`. As "gd-at-ARM" gradient descent has,
    after a first step at 1e-4, the median of each meta-seed's learned step size, as "as-long-as-ARM" steps of
    the learned median lengths, without teleports. Of tuned hyperparameters it is told whether they are
    at an end of what was tried.
    """
    steps, seeds = settings.test_steps, settings.seeds
    reporter.note("tune gradient descent on the training stream, run it on unseen trajectories")
    found = tune(TUNED, family, streams.tune, horizons=(steps,), tasks=settings.tuning_tasks)[steps]
    tuned = {arm.name: (arm.make, found[arm.name]) for arm in TUNED}
    tuned = {"gd-3e-4": (descent, {"rate": PUBLISHED, "momentum": 0.0}), **tuned}
    arms: dict[str, Any] = {
        name: (make, {key: jnp.full(seeds, value) for key, value in hyper.items()})
        for name, (make, hyper) in tuned.items()
    }
    for name in FOLLOWED:
        if "learned_step_size" in recorded.get(name, {}):
            rates = jnp.asarray(recorded[name]["learned_step_size"], jnp.float32)
            arms[f"gd-at-{name}"] = (warm, {"rate": rates, "momentum": jnp.zeros(seeds)})
        if "lengths" in recorded.get(name, {}):
            lengths = jnp.asarray(recorded[name]["lengths"], jnp.float32)
            arms[f"as-long-as-{name}"] = (as_long, {"lengths": lengths})
    options = {"steps": steps, "tasks": settings.tasks, "watch": (), "parts": settings.parts}
    ran = {
        name: run_many(make, hyper, family, streams.test, **options) for name, (make, hyper) in arms.items()
    }
    card = {name: facts(r) for name, r in ran.items()}
    for name, (_, hyper) in tuned.items():
        card[name]["hyperparameters"] = hyper
        card[name]["at_an_end"] = hyper["rate"] in (RATES[0], RATES[-1])
    options["steps"] = settings.patient_steps
    patient = run_many(descent, arms["gd"][1], family, streams.test, **options)
    losses = np.where(np.isfinite(patient.losses), patient.losses, np.inf)
    card["gd"]["patient_losses"] = np.median(losses, axis=(0, 1)).astype(float).tolist()
    return ran, card


def in_equal_seconds(seconds: float, gd_seconds: float, steps: int, patient: list[float]) -> dict[str, float]:
    """What tuned gradient descent reaches in the `seconds` that another took for `steps` steps (C8).

    `patient` are its median losses, `gd_seconds` what it took for as many steps. Where they end too soon, the
    last one is given.

    >>> in_equal_seconds(2.0, 1.0, 2, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    {'steps': 4.0, 'loss_median': 1.0}
    """
    affordable = min(int(steps * seconds / gd_seconds), len(patient) - 1)
    return {"steps": float(affordable), "loss_median": patient[affordable]}
