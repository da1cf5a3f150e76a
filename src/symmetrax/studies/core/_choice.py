"""One learned arm of several, chosen on tasks that nothing is trained on or reported for."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from symmetrax.studies.core._statistics import DIVERGED, FLOOR
from symmetrax.studies.core._streams import Streams

Losses = Float[np.ndarray, "seeds tasks points"]


def validation(streams: Streams) -> Key[Array, " seeds"]:
    """The keys of the validation tasks.

    >>> validation(Streams.of(0, seeds=3)).shape
    (3,)
    """
    return jax.random.split(jax.random.fold_in(streams.tune, 3), len(streams.test))


def quality(losses: Losses, horizons: Sequence[int]) -> tuple[int, float]:
    """How good an arm is on a validation stream, the lower the better; `horizons` are indices of points.

    First the number of runs that have diverged at one of the horizons: an arm that may ruin a run is not to
    be chosen while another does not. Then the mean, over all runs and horizons, of ln(loss / first loss),
    floored at the 1e-12 of all comparisons.

    >>> diverged, mean = quality(np.array([[[1.0, 0.1], [1.0, 0.001]]]), [1])
    >>> diverged, round(mean, 2)
    (0, -4.61)
    """
    first, there = losses[..., :1], losses[..., list(horizons)]
    with np.errstate(over="ignore"):  # ratios that overflow are cut at DIVERGED all the same
        ratio = np.where(np.isfinite(there), there, np.inf) / first
    diverged = ratio > DIVERGED
    return int(np.sum(diverged.any(axis=-1))), float(np.mean(np.log(np.clip(ratio, FLOOR, DIVERGED))))


def choose_arm(losses: dict[str, Losses], horizons: Sequence[int]) -> str:
    """The arm of the best `quality`.

    >>> choose_arm({"a": np.array([[[1.0, 0.1]]]), "b": np.array([[[1.0, 20.0]]])}, [1])
    'a'
    """
    return min(losses, key=lambda name: quality(losses[name], horizons))
