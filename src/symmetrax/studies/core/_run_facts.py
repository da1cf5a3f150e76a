"""Statistics of runs: the facts in `results.json`, and the constants that controls take from an arm."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from symmetrax.learned._update_rule import UpdateRule
from symmetrax.schedules._schedule import times
from symmetrax.studies.core._runs import Runs


def learned_constant(seen: Runs, name: str) -> Float[Array, " seeds"]:
    """The median of what each seed's network emitted under a name ("step_size"), over steps and tasks.

    The first step, which often is special, and tasks whose losses did not stay finite are left out.

    >>> seen = Runs(np.ones((2, 3, 5)), {"step_size": np.full((2, 3, 4), 0.5)}, {}, 0.1)
    >>> learned_constant(seen, "step_size")
    Array([0.5, 0.5], dtype=float32)
    """
    return jnp.asarray(np.nanmedian(_kept(seen, name)[..., 1:], axis=(1, 2)), jnp.float32)


def learned_course(seen: Runs, name: str) -> Float[np.ndarray, "seeds steps"]:
    """The median over tasks of what each seed's network did at each step, without tasks that diverged.

    >>> learned_course(Runs(np.ones((2, 3, 5)), {"length": np.ones((2, 3, 4))}, {}, 0.1), "length").shape
    (2, 4)
    """
    return np.nanmedian(_kept(seen, name), axis=1)


def left_out(seen: Runs) -> int:
    """How many runs have losses that are not all finite.

    >>> left_out(Runs(np.array([[[1.0, np.inf], [1.0, 2.0]]]), {}, {}, 0.1))
    1
    """
    return int(np.sum(~np.isfinite(seen.losses).all(axis=-1)))


def _kept(seen: Runs, name: str) -> Float[np.ndarray, "seeds tasks steps"]:
    finite = np.isfinite(seen.losses).all(axis=-1, keepdims=True)
    if np.any(np.sum(finite, axis=1) == 0):
        raise ValueError(f"No run of some seed stayed finite, so nothing was learned of {name}.")
    return np.where(finite, seen.recorded[name], np.nan)


def due(rule: UpdateRule, steps: int) -> Int[np.ndarray, " due"]:
    """The steps at which a rule teleports.

    >>> due(UpdateRule.at((0, 2), 4), 4).tolist()
    [0, 2]
    """
    if not rule.teleports:
        return np.zeros(0, int)
    return np.arange(steps) if rule.as_printed else np.flatnonzero(times(rule.schedule, steps))


def facts(ran: Runs, rule: UpdateRule | None = None) -> dict[str, Any]:
    """The entries of `results.json` for runs beside their losses.

    Seconds and gradient evaluations (one for each step; a learned teleport costs none); how often a gate was
    open; of the teleports that were due, the share rejected and, over those that were applied, the largest
    and median relative change of the loss that was found (None if nothing measured it).

    >>> facts(Runs(np.ones((2, 3, 5)), {"length": np.ones((2, 3, 4))}, {}, 0.1))
    {'seconds': 0.1, 'gradient_evaluations': 4.0}
    """
    found: dict[str, Any] = {"seconds": ran.seconds, "gradient_evaluations": float(ran.steps)}
    gate = ran.recorded.get("gate", np.full(1, -1.0))
    if np.any(gate >= 0):
        found["gate_open"] = float(np.mean(gate > 0.5))
    steps = np.zeros(0, int) if rule is None else due(rule, ran.steps)
    if len(steps) and rule is not None and rule.guard is not None:
        outcome, loss_change = (ran.recorded[name][..., steps] for name in ("outcome", "loss_change"))
        applied = loss_change[outcome == 0]
        found["rejected"] = float(np.mean(outcome > 0))
        found["loss_change_max"] = float(np.max(applied)) if applied.size else None
        found["loss_change_median"] = float(np.median(applied)) if applied.size else None
    return found


def step_medians(ran: Runs) -> dict[str, list[float]]:
    """The medians over all runs of what was recorded of each step, but for the outcomes of teleports.

    >>> step_medians(Runs(np.ones((2, 3, 5)), {"length": np.ones((2, 3, 4))}, {}, 0.1))["length"]
    [1.0, 1.0, 1.0, 1.0]
    """
    recorded = {name: x for name, x in ran.recorded.items() if name not in ("loss_change", "outcome")}
    # Nothing is -1 throughout but what the network does not emit; what was looked at has more axes.
    return {name: _medians(x) for name, x in recorded.items() if x.ndim == 3 and np.any(x != -1.0)}


def _medians(values: Float[np.ndarray, "seeds tasks steps"]) -> list[float]:
    flat = np.where(np.isfinite(values), values, np.inf).reshape(-1, values.shape[-1]).astype(float)
    return np.quantile(flat, 0.5, axis=0, method="inverted_cdf").tolist()
