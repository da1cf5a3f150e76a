"""The recorded steps of a network: what it proposes on its example, to verify it where it is loaded."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from symmetrax._files import named_arrays, restore
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Observation
from symmetrax.learned._joint import Joint
from symmetrax.learned._transformation import update_from

#: Relative error of the recorded steps: float32 products differ by this much between processors.
TOLERANCE = 1e-5


# Each recorded step multiplies the example's gradient by one of these; the memory carries over between steps.
FACTORS = (1.0, -0.5, 2.0)


def record_steps(network: AbstractLearnedOptimizer) -> dict[str, Any]:
    """Returns the network's example input, and the proposals it makes on it.

    >>> import jax, symmetrax as sx
    >>> sorted(record_steps(sx.learned.RNNProp(width=4, key=jax.random.key(0))))[-2:]
    ['step1.update', 'step2.update']
    """
    seen = _seen(network.example())
    return named_arrays(seen) | named_arrays(_steps(network, seen))


# Compiled when saving and when loading, because an eager and a compiled network round differently.
@eqx.filter_jit
def _steps(network: AbstractLearnedOptimizer, seen: dict[str, Any]) -> dict[str, Any]:
    """Returns the network's proposals in its first steps; from the second on they depend on its memory."""
    observation, recorded = network.example()._replace(**seen), {}
    memory = network.memory(observation.params, observation.symmetry)
    for step, factor in enumerate(FACTORS):
        gradient = jax.tree.map(lambda g, factor=factor: factor * g, observation.gradient)
        proposal, memory = network.propose(observation._replace(gradient=gradient), memory)
        proposal = proposal._replace(update=update_from(proposal, gradient))
        recorded |= {f"step{step}.{name}": x for name, x in named_arrays(proposal._asdict()).items()}
    return recorded


def check_recorded_steps(where: str, network: AbstractLearnedOptimizer, arrays: dict[str, Any]) -> None:
    """Raises ValueError if the network does not reproduce the recorded steps among `arrays`.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.RNNProp(width=4, key=jax.random.key(0))
    >>> arrays = {f"recorded.{name}": x for name, x in record_steps(network).items()}
    >>> check_recorded_steps("The file", network, arrays)
    """
    floating = [x.dtype for x in jax.tree.leaves(arrays_of(network)) if jnp.issubdtype(x.dtype, jnp.floating)]
    # The steps are computed in the precision of the weights, so half precision reproduces fewer digits.
    tolerance = max([TOLERANCE, *(8 * float(jnp.finfo(dtype).eps) for dtype in floating)])
    for prefix, part in recorded_parts(network):
        recorded = under(prefix, arrays)
        for name, found in _steps(part, restore(_seen(part.example()), recorded)).items():
            found, wanted = (np.asarray(x).astype(complex) for x in (found, recorded[name]))
            worst = np.max(np.abs(found - wanted), initial=0) / np.max(np.abs(wanted), initial=1e-30)
            # Negated, so that NaN is an error.
            if not worst <= tolerance:
                raise ValueError(
                    f"{where} does not reproduce its recorded steps: {name} has a relative error of "
                    f"{worst:.1e}, more than {tolerance:.0e}. Its weights, or the network's code, have "
                    "changed: load it with the version that saved it."
                )


def _seen(observation: Observation) -> dict[str, Any]:
    """Returns the arrays that a network sees."""
    return {name: value for name, value in observation._asdict().items() if name != "symmetry"}


def recorded_parts(network: AbstractLearnedOptimizer, prefix: str = "recorded.") -> list[tuple[str, Any]]:
    """Lists the networks whose steps are recorded (each part of a `Joint`), with their name prefixes.

    >>> import jax, symmetrax as sx
    >>> network = sx.learned.RNNProp(width=4, key=jax.random.key(0))
    >>> [prefix for prefix, _ in recorded_parts(sx.learned.Joint((network, network)))]
    ['recorded.0.', 'recorded.1.']
    """
    if type(network) is Joint:
        found = [recorded_parts(part, f"{prefix}{i}.") for i, part in enumerate(network.networks)]
        return [part for parts in found for part in parts]
    return [(prefix, network)]


def arrays_of(network: AbstractLearnedOptimizer) -> AbstractLearnedOptimizer:
    """Returns the weights only, as arrays or as their shapes.

    >>> import jax, symmetrax as sx
    >>> len(jax.tree.leaves(arrays_of(sx.learned.RNNProp(width=4, depth=1, key=jax.random.key(0)))))
    7
    """
    return eqx.filter(network, is_array)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or the shape of one.

    >>> import jax.numpy as jnp
    >>> is_array(jnp.ones(2)), is_array(2.0)
    (True, False)
    """
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Selects the arrays whose names start with `prefix`, and strips it.

    >>> under("weights.", {"weights.a": 1, "recorded.b": 2})
    {'a': 1}
    """
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
