"""Base class of learned optimizers."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import optax
from jaxtyping import PyTree

from symmetrax.learned._features import Observation, Proposal, Want
from symmetrax.learned._transformation import Transformation
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.symmetry._base import AbstractLieSymmetry


class AbstractLearnedOptimizer(eqx.Module):
    """Base class of learned optimizers: a network whose weights are the leaves of the module.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> network = sx.learned.FlatGradientLSTM(2, key=jax.random.key(0))
    >>> optimizer = network.transform()  # an optax transformation
    >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    >>> updates.shape
    (2,)
    """

    #: Name that identifies this class in saved artifacts.
    kind: eqx.AbstractClassVar[str]

    @property
    def wants(self) -> tuple[Want, ...]:
        """Fields of `Observation` that the network reads and that are computed only on request.

        All of them need a symmetry, even if the network never teleports; all but "symmetry" also need further
        derivatives of the loss.
        """
        return ()

    @property
    def algebra_bound(self) -> float | None:
        """A bound on the norm of the emitted coordinates, or of each layer's, or None if they are unbounded.

        With a bound, `exp` is cheaper.
        """
        return None

    def vector_products(self) -> list[Any]:
        """The matrices that the network multiplies by exactly one vector per step, with `product`.

        `TruncatedBPTT` computes their gradients once per window wherever that is faster.
        """
        return []

    @abstractmethod
    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> PyTree:
        """Returns the recurrent state before the first step."""

    @abstractmethod
    def propose(self, observation: Observation, memory: PyTree) -> tuple[Proposal, PyTree]:
        """Returns a proposal, and the recurrent state after it."""

    @abstractmethod
    def example(self) -> Observation:
        """Returns an input of the right shape; artifacts record the step that the network takes on it.

        Gradient and parameters are flat vectors if the network accepts any structure.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Returns keyword arguments, as JSON values, from which the class builds a network of this shape."""

    @abstractmethod
    def contract(self) -> dict[str, Any]:
        """Returns the network's inputs and outputs, in order, as JSON values.

        Two networks with equal contracts agree on the meaning of every input and output. If the network
        proposes group elements, an entry of `contract()["emits"]` contains "algebra".
        """

    @property
    def proposes_elements(self) -> bool:
        """Whether the network proposes group elements, as its contract says."""
        return any("algebra" in name for name in self.contract().get("emits", ()))

    def transform(
        self,
        symmetry: AbstractLieSymmetry | None = None,
        rule: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen module)
    ) -> optax.GradientTransformationExtraArgs:
        """Converts this network to an optax transformation.

        Without `symmetry` the network only steps. With it, it also teleports, as `rule` says; by default at
        every step, unless the guard rejects it. The returned update is v + (a.(x + v) - e.(x + v)), with both
        terms computed by the same code, so that zero coordinates give exactly v. `update` takes the extra
        arguments `value`, `value_fn`, `batch` and `key`, and ignores others.

        Raises ValueError if you pass a `symmetry` to a network without algebra coordinates of its shape, and
        if the network emits no step, or no momentum where the rule needs one.

        >>> import jax, jax.numpy as jnp, symmetrax as sx
        >>> task = sx.tasks.booth(start=[5.0, -5.0])
        >>> network = sx.learned.FlatGradientLSTM(2, algebra=1, key=jax.random.key(0))
        >>> optimizer = network.transform(task.symmetry(), sx.UpdateRule([0], guard=sx.Guard(jump=1.0)))
        >>> trace = sx.unroll(optimizer, task, jax.random.key(1), steps=3)
        >>> trace.watched["outcome"].tolist()
        [0, 0, 0, 0]
        """
        return Transformation(self, symmetry, rule).build()
