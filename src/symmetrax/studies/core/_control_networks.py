"""Controls: a trained network with some of what it emits replaced."""

from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import safe_norm
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, Want
from symmetrax.symmetry._base import AbstractLieSymmetry


class AbstractControl(AbstractLearnedOptimizer):
    """A network whose moves are changed before they are made; everything else is its own.

    >>> "change" in AbstractControl.__abstractmethods__
    True
    """

    network: eqx.AbstractVar[AbstractLearnedOptimizer]

    @property
    def wants(self) -> tuple[Want, ...]:
        return self.network.wants

    @property
    def algebra_bound(self) -> float | None:
        return self.network.algebra_bound

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> PyTree:
        return self.network.memory(params, symmetry)

    def propose(self, observation: Observation, memory: PyTree) -> tuple[Proposal, PyTree]:
        proposal, memory = self.network.propose(observation, memory)
        return self.change(proposal, observation), memory

    @abstractmethod
    def change(self, proposal: Proposal, observation: Observation) -> Proposal:
        """The move that is made in place of `proposal`."""

    def example(self) -> Observation:
        return self.network.example()

    def config(self) -> dict[str, Any]:
        return self.network.config()

    def contract(self) -> dict[str, Any]:
        return self.network.contract()


class RandomDirection(AbstractControl):
    """A network whose algebra coordinates keep their norm but point in a random direction.

    The control for a learned teleport: with one coordinate, the angle's sign is drawn. `update` needs the
    extra argument `key`.

    >>> import symmetrax as sx
    >>> network = RandomDirection(sx.learned.FlatGradientLSTM(2, algebra=1, width=4, key=jax.random.key(0)))
    >>> network.contract()["emits"]
    ['update', 'algebra in a random direction']
    """

    kind: ClassVar[str] = "random-direction"
    network: AbstractLearnedOptimizer

    def change(self, proposal: Proposal, observation: Observation) -> Proposal:
        if observation.key is None:
            raise ValueError("RandomDirection draws: pass key=... to `update`.")
        direction = jax.random.normal(observation.key, proposal.algebra.shape, proposal.algebra.dtype)
        direction = direction / safe_norm(direction)
        return proposal._replace(algebra=safe_norm(proposal.algebra) * direction)

    def contract(self) -> dict[str, Any]:
        emits = self.network.contract()["emits"]
        changed = [f"{name} in a random direction" if name == "algebra" else name for name in emits]
        return {**self.network.contract(), "emits": changed}


class Fixed(AbstractControl):
    """A network with constants in place of some of what it emits; None leaves what it is.

    The controls for learned numbers: a constant step size at what was learned, no momentum (0), no teleport
    (`algebra` of zeros, or the number 0).

    >>> import symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, emits=("step_size",), width=4, key=jax.random.key(0))
    >>> constant = Fixed(network, step_size=jnp.array(0.1))
    >>> optimizer = constant.transform()
    >>> updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
    >>> print(updates)
    [-0.1 -0.1]
    """

    kind: ClassVar[str] = "fixed"
    network: AbstractLearnedOptimizer
    step_size: float | Float[Array, "*seeds"] | None = None
    momentum: float | Float[Array, "*seeds"] | None = None
    algebra: float | Float[Array, "..."] | None = None

    @property
    def algebra_bound(self) -> float | None:
        return self.network.algebra_bound if self.algebra is None else None

    def change(self, proposal: Proposal, observation: Observation) -> Proposal:
        given = {"step_size": self.step_size, "momentum": self.momentum}
        proposal = proposal._replace(**{name: jnp.asarray(x) for name, x in given.items() if x is not None})
        if self.algebra is None or proposal.algebra is None:
            return proposal
        return proposal._replace(algebra=jnp.broadcast_to(self.algebra, proposal.algebra.shape))
