"""A control: an optimizer that is moved by a random element of the symmetry at every step."""

import equinox as eqx
import optax
from jaxtyping import PyTree

from symmetrax.learned._transformation import LearnedState
from symmetrax.rollout._unroll import MakeTransform
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._transport import carry


class Shuffled(eqx.Module):
    """`make(network, task)`, followed at every step by a random element of the task's symmetry.

    The optimizer's memory stays as it is, or moves along if it is `carried`: averages and last steps do, the
    state of a recurrent network has no way to.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> from symmetrax.studies.core._hand_made import descent
    >>> task = sx.tasks.make_family("permutation-4").task({"w": jnp.arange(4.0), "a": jnp.ones(4)})
    >>> hyper = {"rate": jnp.array(0.1), "momentum": jnp.array(0.0)}
    >>> runs = [make(hyper, task) for make in (descent, Shuffled(descent))]
    >>> plain, shuffled = (sx.unroll(run, task, jax.random.key(0), steps=9).loss for run in runs)
    >>> bool(jnp.allclose(plain, shuffled, rtol=1e-4))
    True
    """

    make: MakeTransform
    carried: bool = eqx.field(static=True, default=False)

    def __call__(self, network: PyTree, task: AbstractTask) -> optax.GradientTransformationExtraArgs:
        inner, symmetry = optax.with_extra_args_support(self.make(network, task)), task.symmetry()
        if symmetry is None:
            raise ValueError(f"Shuffled moves along a symmetry, and {type(task).__name__} describes none.")

        def update(updates, state, params=None, *, key=None, **extra):
            if params is None or key is None:
                raise ValueError("Shuffled draws at random: call update(grads, state, params, key=...).")
            step, state = inner.update(updates, state, params, key=key, **extra)
            there = optax.tree.add(params, step)
            element = symmetry.sample(key)
            if self.carried:
                state = _carried(state, symmetry, element, there)
            return optax.tree.add(step, symmetry.displacement(element, there)), state

        return optax.GradientTransformationExtraArgs(inner.init, update)


def _carried(state: PyTree, symmetry: AbstractLieSymmetry, element: PyTree, params: PyTree) -> PyTree:
    if isinstance(state, LearnedState):
        return state._replace(previous=symmetry.transport_tangent(element, params, state.previous))
    return carry(state, symmetry, element, params)
