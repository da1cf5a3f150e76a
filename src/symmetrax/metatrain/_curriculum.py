"""A curriculum over horizons: short rollouts first, longer ones as long as they help."""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax.metatrain._estimators import AbstractMetaGradient
from symmetrax.metatrain._loop import MetaTrained, Progress, meta_train
from symmetrax.metatrain._stopping import EarlyStopping, better, validations

#: The horizons used by the public code, for windows of 20 steps.
HORIZONS = (100, 200, 500, 1000, 1500, 2000, 2500, 3000)


class Stage(NamedTuple):
    """One stage of a curriculum.

    Networks were trained for `steps` steps and validated on `validated_on`; `before` is the validation value
    they started from (infinite in the first stage), `trained` the result of `meta_train`, and `improved`
    marks the seeds that got below `before`. The other seeds keep their previous networks.

    >>> Stage._fields
    ('steps', 'validated_on', 'before', 'trained', 'improved')
    """

    steps: int
    validated_on: int
    before: Float[np.ndarray, " seeds"]
    trained: MetaTrained
    improved: Bool[np.ndarray, " seeds"]


class CurriculumTrained(NamedTuple):
    """The best networks at the end, all seeds stacked, and all stages.

    >>> CurriculumTrained._fields
    ('networks', 'stages')
    """

    networks: PyTree
    stages: tuple[Stage, ...]

    def network(self, seed: int = 0) -> PyTree:
        """Returns the network of one seed."""
        return jax.tree.map(lambda x: x[seed], self.networks)


def curriculum_train(
    make_network: Callable[[Key[Array, ""]], PyTree],
    make_estimator: Callable[[int], AbstractMetaGradient],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    validate: Callable[[PyTree, int], Float[Array, ""]],
    *,
    outer_steps: int,
    horizons: tuple[int, ...] = HORIZONS,
    seeds: int = 1,
    chunk: int = 50,
    patience: int = 3,
    checkpoints: str | pathlib.Path | None = None,
    save_every: float = 0.0,
    progress: Callable[[int, Progress], None] | None = None,
    identity: str = "",
) -> CurriculumTrained:
    """Meta-trains on rollouts of growing length: each of `horizons` is a stage of `meta_train`.

    A stage trains `make_estimator(steps)` from the best networks so far, with a fresh outer state. After each
    `chunk` outer steps the networks are validated on the horizon of the *next* stage, by `validate(network,
    steps)` (the last stage on its own). The stage ends after `patience` validations without improvement, or
    after `outer_steps`. A seed keeps its stage's best network only if it beats, on the next horizon, the
    network that it started from. The curriculum ends after a stage that improves no seed. Source: Chen et
    al., Training stronger baselines for learning to optimize, 2020 (arXiv:2010.09089): windows of 20 steps,
    and patience 3.

    **Arguments:** as in `meta_train`; stage i uses `fold_in(key, i)`. `checkpoints` is a folder with one file
    per stage, `stage-0.safetensors` and so on, from which the same call resumes bit for bit; `identity`
    distinguishes the call from others. `progress(stage, Progress)` is called after every chunk.

    Raises ValueError unless the horizons increase.

    >>> import jax, optax, symmetrax as sx
    >>> family, rule = sx.tasks.make_family("booth"), sx.UpdateRule()
    >>> estimator = lambda steps: sx.metatrain.TruncatedBPTT(family, rule, steps=steps, truncation=5, tasks=4)
    >>> def validate(network, steps):
    ...     trace = sx.unroll_many(rule, network, family, jax.random.key(7), steps=steps, tasks=8)
    ...     return trace.loss[-1].mean()
    >>> make = lambda key: sx.learned.CoordinatewiseLSTM(width=4, key=key)
    >>> trained = curriculum_train(
    ...     make, estimator, optax.adam(1e-2), jax.random.key(0), validate,
    ...     outer_steps=4, chunk=2, horizons=(5, 10),
    ... )
    >>> [(stage.steps, stage.validated_on) for stage in trained.stages]
    [(5, 10), (10, 10)]
    """
    check_key(key)
    if not horizons or any(later <= earlier for earlier, later in itertools.pairwise(horizons)):
        raise ValueError(f"`horizons` must be numbers of steps, each larger than the last, got {horizons}.")
    folder = None if checkpoints is None else pathlib.Path(checkpoints)
    # A horizon is validated in two stages (at the end of one, at the start of the next): the same function
    # object means that its program is compiled once.
    checks = {steps: _on(validate, steps) for steps in horizons}
    networks, stages = None, []
    for index, (steps, validated_on) in enumerate(zip(horizons, [*horizons[1:], horizons[-1]], strict=True)):
        check = checks[validated_on]
        before = np.full(seeds, np.inf, np.float32) if networks is None else _numbers(check, networks)
        trained = meta_train(
            make_network,
            make_estimator(steps),
            optimizer,
            jax.random.fold_in(key, index),
            outer_steps=outer_steps,
            seeds=seeds,
            chunk=chunk,
            checkpoint=None if folder is None else folder / f"stage-{index}.safetensors",
            save_every=save_every,
            progress=None if progress is None else functools.partial(progress, index),
            stopping=EarlyStopping(check, patience),
            networks=networks,
            identity=identity,
        )
        # `trained` are the best networks of the stage, which may be worse on the next horizon than the ones
        # that it started from: longer training on short rollouts can hurt there.
        lowest = np.min(np.where(np.isfinite(trained.validation), trained.validation, np.inf), axis=1)
        improved = lowest < before
        stages.append(Stage(steps, validated_on, before, trained, improved))
        if networks is None:
            networks = trained.networks
        else:
            networks = better(jnp.asarray(improved), trained.networks, networks)
        if not improved.any():
            break
    return CurriculumTrained(networks, tuple(stages))


def _on(validate: Callable[[PyTree, int], Float[Array, ""]], steps: int) -> Callable[[PyTree], Any]:
    return lambda network: validate(network, steps)


def _numbers(validate: Callable[[PyTree], Any], networks: PyTree) -> Float[np.ndarray, " seeds"]:
    """Validation value of every seed's network; infinite if not finite."""
    found = np.asarray(validations(validate, networks))
    return np.where(np.isfinite(found), found, np.inf)
