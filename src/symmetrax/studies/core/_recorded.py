"""Optimizers that record what their teleports do, copy lengths from other arms, and draw at random."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from symmetrax._extras import updated
from symmetrax._tree import anywhere, safe_norm
from symmetrax.rollout._unroll import MakeTransform
from symmetrax.search._levelset import AbstractPointSearch, LevelSet
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._step import Transport
from symmetrax.teleportation._transform import teleported

#: The arm's own step, where a length is asked for.
OWN = -1.0


class Recorded(NamedTuple):
    """State of `recorded`: lengths of the last step and of the last teleport, and what was seen there.

    >>> Recorded._fields
    ('inner', 'step_length', 'jump', 'seen')
    """

    inner: optax.OptState
    step_length: Float[Array, ""]
    jump: Float[Array, ""]
    seen: dict[str, Array]


class Drawn(NamedTuple):
    """State of `drawn`: the number of the step, and the state of the optimizer.

    >>> Drawn._fields
    ('count', 'inner')
    """

    count: Int[Array, ""]
    inner: optax.OptState


def recorded(
    inner: optax.GradientTransformation,
    when: Bool[Array, " steps"] | None = None,
    watch: Callable[[PyTree, PyTree], dict[str, Array]] = lambda origin, there: {},
    *,
    length: Any = OWN,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer `inner` with steps of a given length (negative: its own), and a record of what it did.

    Use it inside `teleported`, so that its parameters are those after the teleport, and inside `drawn`, which
    tells it the parameters before. At the steps that `when` marks, the record has the length of the teleport,
    the factor by which it raised the gradient norm ("rise"), and the scalars `watch(origin, there)`, by name.

    >>> optimizer = drawn(lambda key: recorded(optax.sgd(0.1), length=3.0))
    >>> x, g = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
    >>> print(optimizer.update(g, optimizer.init(x), x, key=jax.random.key(0))[0])
    [-3. -0.]
    """

    def see(origin, there, rise):
        return {"rise": rise, **watch(origin, there)} if when is not None else {}

    def init(params: PyTree) -> Recorded:
        zero = jnp.zeros(())
        seen = jax.tree.map(jnp.zeros_like, see(params, params, zero))
        return Recorded(inner.init(params), zero, zero, seen)

    def update(updates, state, params=None, *, origin=None, **extra):
        if origin is None:
            raise ValueError("`recorded` needs the `origin` of a step: use it inside of `drawn`.")
        before, gradient, count = origin
        step, after = updated(inner, updates, state.inner, params, extra)
        own = safe_norm(step)
        scale = jnp.where(length < 0, 1.0, length / jnp.where(own == 0, 1.0, own))
        step = optax.tree.scale(scale, step)

        def look():
            rise = safe_norm(updates) / safe_norm(gradient)
            return safe_norm(optax.tree.sub(params, before)), see(before, params, rise)

        def nothing():
            return jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.seen)

        # The schedule is one for all tasks: under `vmap` the other steps then cost nothing.
        due = jnp.array(False) if when is None else anywhere(when[count])
        jump, seen = jax.lax.cond(due, look, nothing)
        return step, Recorded(after, safe_norm(step), jump, seen)

    return optax.GradientTransformationExtraArgs(init, update)


def teleporting(
    inner: optax.GradientTransformation,
    search: AbstractSearch | AbstractPointSearch | None,
    symmetry: AbstractLieSymmetry | None,
    task: AbstractTask,
    hyper: dict[str, Array],
    watch: Callable[[AbstractTask, PyTree, PyTree], dict[str, Array]],
    transport: Transport = "keep",
) -> optax.GradientTransformationExtraArgs:
    """The optimizer `inner`, teleported by a search at the steps that `hyper["when"]` marks, and recorded.

    Steps have the length `hyper["length"]`, if there is one. Without a search it never teleports. A search of
    the level set spends less than the most that it may: with `hyper["counted"]` 1, "spent" is recorded too.

    >>> import symmetrax as sx
    >>> hyper = {"when": jnp.array([True, False])}
    >>> optimizer = teleporting(optax.sgd(0.1), None, None, sx.tasks.booth(), hyper, lambda task, x, y: {})
    >>> optimizer.init(jnp.ones(2)).seen
    {}
    """
    length, when = hyper.get("length", OWN), hyper["when"]
    if search is None:
        return recorded(inner, length=length)

    def look(origin, there) -> dict[str, Array]:
        seen = watch(task, origin, there)
        if isinstance(search, LevelSet):
            # Searching again takes time: runs that are timed do not count.
            spent = lambda level=search: level(task.loss, origin).evaluations.astype(float)  # noqa: E731
            seen["spent"] = jax.lax.cond(hyper["counted"] > 0, spent, lambda: jnp.zeros(()))
        return seen

    return teleported(
        recorded(inner, when, look, length=length),
        symmetry,
        search=search,
        schedule=lambda count: when[count],
        guard=None,
        transport=transport,
    )


def drawn(
    make: Callable[[Key[Array, ""]], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """The optimizer `make(key)`, made at every step from the `key` that `update` is given.

    It receives where the step starts as the extra argument `origin`: parameters, gradient, and the number
    of the step, which a reset of the optimizer's state must not lose.

    >>> noise = drawn(lambda key: optax.sgd(jax.random.uniform(key)))
    >>> x = jnp.array(1.0)
    >>> 0 < -noise.update(x, noise.init(x), x, key=jax.random.key(0))[0].item() < 1
    True
    """

    def init(params: PyTree) -> Drawn:
        return Drawn(jnp.zeros((), int), make(jax.random.key(0)).init(params))

    def update(updates, state, params=None, *, key=None, **extra):
        if key is None:
            raise ValueError("`drawn` needs a key for each step: call update(..., key=...).")
        given = {**extra, "origin": (params, updates, state.count)}
        step, inner = updated(make(key), updates, state.inner, params, given)
        return step, Drawn(state.count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


class Given(eqx.Module):
    """An arm whose hyperparameters may differ from step to step: those that `run_many` is given `along`.

    >>> import symmetrax as sx
    >>> arm = Given(lambda hyper, task: optax.sgd(hyper["rate"] * hyper["factor"]))
    >>> optimizer = arm(({"rate": 0.5}, {"factor": 2.0}), sx.tasks.booth())
    >>> optimizer.update(1.0, optimizer.init(1.0))[0]
    -1.0
    """

    make: MakeTransform

    def __call__(self, inputs: Any, task: AbstractTask) -> optax.GradientTransformation:
        # At the start of a run there is nothing of a step yet.
        hyper, along = inputs if isinstance(inputs, tuple) else (inputs, {})
        return self.make({**hyper, **along}, task)
