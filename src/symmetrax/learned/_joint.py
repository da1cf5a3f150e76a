"""Several networks as one optimizer: for example, one for the step and another for the group element."""

from typing import Any, ClassVar

import equinox as eqx
import optax
from jaxtyping import PyTree

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation, Proposal, Want
from symmetrax.symmetry._base import AbstractLieSymmetry


class Joint(AbstractLearnedOptimizer):
    """Networks that read the same step, each with its own memory, and jointly emit one proposal.

    Algorithm 3 of arXiv:2504.15399 uses one network for the step size and another for the momentum and the
    group element. To transfer across network sizes, join the coordinate-wise LSTM, for the update, with the
    per-neuron LSTM, for the group element. You can train each network with its own learning rate: see
    `each_network`.

    Raises ValueError without a network and, on use, if two networks emit the same output.

    >>> import jax, symmetrax as sx
    >>> first, second = jax.random.split(jax.random.key(0))
    >>> network = Joint(
    ...     (
    ...         sx.learned.FlatGradientLSTM(8, emits=("step_size",), width=300, key=first),
    ...         sx.learned.FlatGradientLSTM(8, emits=("momentum",), algebra=4, width=300, key=second),
    ...     )
    ... )
    >>> network.contract()["emits"]
    ['step_size', 'momentum', 'algebra']
    """

    kind: ClassVar[str] = "joint"

    networks: tuple[AbstractLearnedOptimizer, ...]

    def __check_init__(self):
        if not self.networks:
            raise ValueError("Joint needs at least one network, got none: pass a tuple of networks.")

    @property
    def wants(self) -> tuple[Want, ...]:
        return tuple(dict.fromkeys(want for network in self.networks for want in network.wants))

    @property
    def algebra_bound(self) -> float | None:
        # At most one network emits coordinates, since two that emit the same output are an error.
        bounds = [network.algebra_bound for network in self.networks]
        return next((bound for bound in bounds if bound is not None), None)

    def vector_products(self) -> list[Any]:
        return [matrix for network in self.networks for matrix in network.vector_products()]

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> tuple[PyTree, ...]:
        return tuple(network.memory(params, symmetry) for network in self.networks)

    def propose(
        self, observation: Observation, memory: tuple[PyTree, ...]
    ) -> tuple[Proposal, tuple[PyTree, ...]]:
        # All networks see the observation from before the step: none sees what another one proposes.
        found, after = Proposal(), []
        for network, state in zip(self.networks, memory, strict=True):
            proposal, state = network.propose(observation, state)
            after.append(state)
            given = {name: value for name, value in proposal._asdict().items() if value is not None}
            twice = [name for name in given if getattr(found, name) is not None]
            if twice:
                raise ValueError(
                    f"Two networks of this Joint emit {' and '.join(twice)}: build one of them without it."
                )
            found = found._replace(**given)
        return found, tuple(after)

    def example(self) -> Observation:
        """Returns the first network's example; artifacts record a step of each network on its own example."""
        return self.networks[0].example()

    def config(self) -> dict[str, Any]:
        return {"networks": [{"kind": network.kind, **network.config()} for network in self.networks]}

    @property
    def proposes_elements(self) -> bool:
        return any(network.proposes_elements for network in self.networks)

    def contract(self) -> dict[str, Any]:
        parts = [network.contract() for network in self.networks]
        return {
            "version": 1,
            "reads": [part["reads"] for part in parts],
            "emits": [name for part in parts for name in part["emits"]],
        }


def each_network(*transforms: optax.GradientTransformation) -> optax.GradientTransformation:
    """An outer optimizer for `Joint` that trains each network with its own transformation, in order.

    Section 5.2 of arXiv:2504.15399 trains one of two networks at the rate 1e-4, the other at 1e-3. On first
    use, raises ValueError unless there are as many transformations as networks.

    >>> import jax, symmetrax as sx
    >>> first = sx.learned.FlatGradientLSTM(2, width=3, depth=1, key=jax.random.key(0))
    >>> second = sx.learned.FlatGradientLSTM(2, emits=(), algebra=1, width=3, depth=1, key=jax.random.key(1))
    >>> outer, both = each_network(optax.sgd(0.1), optax.sgd(0.2)), Joint((first, second))
    >>> updates, _ = outer.update(both, outer.init(both), both)
    >>> [round(float((u.core.cells[0].bias / n.core.cells[0].bias)[0]), 3)
    ...  for u, n in zip(updates.networks, both.networks)]
    [-0.1, -0.2]
    """

    def parts(network: Any) -> tuple[Any, ...]:
        if not isinstance(network, Joint):
            raise ValueError(
                f"each_network trains the networks of a Joint, got {type(network).__name__}: pass its "
                "optimizer directly."
            )
        if len(network.networks) != len(transforms):
            raise ValueError(
                f"each_network needs one transformation for each network, got {len(transforms)} for a Joint "
                f"of {len(network.networks)}."
            )
        return network.networks

    def init(params):
        return tuple(t.init(part) for t, part in zip(transforms, parts(params), strict=True))

    def update(updates, state, params=None, **extra):
        found = [
            optax.with_extra_args_support(transform).update(part, own, network, **extra)
            for transform, part, own, network in zip(
                transforms, parts(updates), state, parts(params), strict=True
            )
        ]
        # `tree_at` keeps everything else of the Joint, so that the updates have the structure of the network.
        stepped, after = zip(*found, strict=True)
        return eqx.tree_at(lambda tree: tree.networks, updates, stepped), after

    return optax.GradientTransformationExtraArgs(init, update)
