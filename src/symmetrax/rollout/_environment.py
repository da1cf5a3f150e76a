"""Optimization as a control problem: a gym-style reset/step interface to a task."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, Want, example_info
from symmetrax.learned._transformation import look
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.rollout._unroll import Carry, begin, step
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask


class _Given(AbstractLearnedOptimizer):
    """A network that ignores its inputs and returns a given proposal.

    It lets `Environment` process actions with the code that processes the proposals of a network, so that
    both take the same steps bit for bit.
    """

    kind: ClassVar[str] = "given"
    proposal: Proposal
    elements: bool = eqx.field(static=True)

    @property
    def proposes_elements(self) -> bool:
        return self.elements

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> tuple[()]:
        return ()

    def propose(self, observation: Observation, memory: tuple[()]) -> tuple[Proposal, tuple[()]]:
        return self.proposal, memory

    def example(self) -> Observation:
        return example_info(1)

    def config(self) -> dict[str, Any]:
        return {}

    def contract(self) -> dict[str, Any]:
        return {"version": 1, "reads": [], "emits": ["the given proposal"]}


class Environment(eqx.Module):
    """A task as an environment with `reset` and `step`, for policies trained with any other method.

    The state s_t is everything carried from one step to the next: the parameters x_t, the loss and its
    gradient there, the velocity, the batch. The action is a `Proposal`: an update (or a step size), and if
    `rule` schedules a teleport at step t, the coordinates of a group element. The cost is the loss at x_t+1.
    Proposals are processed exactly as in `unroll`, so calling a network step by step here reproduces its
    trajectory there. Works under `jit`, `vmap` and `scan`. Source: section 3.2 of arXiv:2504.15399, which
    formulates learning to optimize as reinforcement learning.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> environment = Environment(sx.tasks.booth(start=[5.0, -5.0]), sx.UpdateRule.at([0], 3))
    >>> state = environment.reset(jax.random.key(0))
    >>> observation = environment.observe(state)
    >>> proposal = sx.learned.Proposal(update=-0.05 * observation.gradient, algebra=jnp.zeros(1))
    >>> state, cost = environment.step(state, proposal)
    >>> float(cost) < float(observation.value)
    True
    """

    task: AbstractTask
    rule: UpdateRule = UpdateRule()

    def reset(self, key: Key[Array, ""]) -> Carry:
        """Returns the random start of the task, as `unroll` draws it from the same key."""
        check_key(key)
        # The proposal of the stand-in does not matter: an optimizer\'s `init` proposes nothing.
        return begin(self._transform(Proposal()), self.task, key)

    def observe(self, state: Carry, wants: tuple[Want, ...] = ()) -> Observation:
        """Returns a network's observation of a state; `wants` lists the expensive parts (`network.wants`)."""
        # The second half of the split: the key that `step` passes to the optimizer.
        key = jax.random.split(jax.random.fold_in(state.key, state.count))[1]

        def value_fn(params: PyTree) -> Float[Array, ""]:
            return self.task.loss(params, state.batch)

        return look(
            wants,
            state.gradient,
            state.params,
            optax.tree.get(state.state, "previous"),
            self.task.symmetry(),
            value=state.value,
            value_fn=value_fn,
            batch=state.batch,
            key=key,
        )

    def step(self, state: Carry, proposal: Proposal) -> tuple[Carry, Float[Array, ""]]:
        """Applies a proposal; returns the state after it and the loss there."""
        after = step(self._transform(proposal), self.task, state)
        return after, after.value

    def _transform(self, proposal: Proposal) -> optax.GradientTransformationExtraArgs:
        return self.rule(_Given(proposal, self.task.symmetry() is not None), self.task)
