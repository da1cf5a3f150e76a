"""Optimizers made by hand, beside those of figure 7: tuned, or with what was learned as constants."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from symmetrax.studies._fig7_arms import FIRST
from symmetrax.studies.core._arm import Control, Tuned
from symmetrax.studies.core._hand_made import descent
from symmetrax.studies.core._run_facts import learned_constant, learned_course, left_out
from symmetrax.studies.core._runs import Runs
from symmetrax.tasks._base import AbstractTask

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
    Tuned("gd-3e-4", descent, (PUBLISHED,), (0.0,)),
    Tuned("gd", descent, RATES, (0.0,)),
    Tuned("momentum", descent, RATES),
    Tuned("warm", warm, RATES, (0.0,)),
    Tuned("warm-momentum", warm, RATES),
)
#: Learned arms whose constant step size and step lengths gradient descent is given.
FOLLOWED = ("lr", "lr-tele", "lr-tele-momentum")


def at_an_end(rate: float) -> bool:
    """Whether a tuned rate is at an end of those that were tried.

    >>> at_an_end(RATES[0]), at_an_end(PUBLISHED)
    (True, False)
    """
    return rate in (RATES[0], RATES[-1])


def followers(arm: str) -> list[Control]:
    """Gradient descent with what an arm has learned, if it is one of `FOLLOWED`.

    As "gd-at-ARM" it has, after a first step at 1e-4, the median of each meta-seed's learned step size, as
    "as-long-as-ARM" steps of the learned median lengths, without teleports.

    >>> [control.name for control in followers("lr")]
    ['gd-at-lr', 'as-long-as-lr']
    """
    if arm not in FOLLOWED:
        return []
    return [
        Control(f"gd-at-{arm}", arm, rule=lambda used: warm, change=_rates, describe=_learned),
        Control(f"as-long-as-{arm}", arm, rule=lambda used: as_long, change=_lengths),
    ]


def _rates(networks: PyTree, seen: Callable[..., Runs]) -> dict[str, Array]:
    ran = seen()
    rates = learned_constant(ran, "step_size")
    left = jnp.full(len(rates), left_out(ran))
    return {"rate": rates, "momentum": jnp.zeros(len(rates)), "left_out": left}


def _learned(hyper: dict[str, Array]) -> dict[str, Any]:
    """The step sizes, and how many runs were left out when they were found."""
    return {"learned_step_size": hyper["rate"].tolist(), "left_out": int(hyper["left_out"][0])}


def _lengths(networks: PyTree, seen: Callable[..., Runs]) -> dict[str, Array]:
    return {"lengths": jnp.asarray(learned_course(seen(), "previous"), jnp.float32)}


def in_equal_seconds(seconds: float, gd_seconds: float, steps: int, patient: list[float]) -> dict[str, float]:
    """What tuned gradient descent reaches in the `seconds` that another took for `steps` steps.

    `patient` are its median losses, `gd_seconds` what it took for as many steps. Where they end too soon, the
    last one is given.

    >>> in_equal_seconds(2.0, 1.0, 2, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    {'steps': 4.0, 'loss_median': 1.0}
    """
    affordable = min(int(steps * seconds / gd_seconds), len(patient) - 1)
    return {"steps": float(affordable), "loss_median": patient[affordable]}
