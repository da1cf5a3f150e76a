"""How arXiv:2205.10637 teleports a network: its action, and the approximation of it in the published code."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import squared_norm
from symmetrax.search._levelset import AbstractPointSearch, SearchResult
from symmetrax.tasks._networks import LeakyReLU

#: The activation of the regressions, and its inverse.
leaky = LeakyReLU(0.1)
unleaky = leaky.inverse


def features(params: PyTree, batch: PyTree) -> dict[str, Array]:
    """What each layer of the network receives on the samples."""
    x, inputs = batch[0], {}
    for name in sorted(params):
        inputs[name] = x
        x = leaky(x @ params[name].T)
    return inputs


class FirstOrder(AbstractPointSearch):
    """The search as the published code has it, which keeps the loss only to first order in its steps.

    Each of `steps` steps starts anew at T = 0, climbs by T = rate * d ||gradient||^2 / dT, and moves every
    pair of layers (U, V) to (U (I - T), s^-1((I + T) s(VX)) X^+): I - T stands for the inverse of I + T, and
    the inputs X of a layer are those before anything moved. Reconstructed from a description of the code
    beside arXiv:2205.10637.

    >>> FirstOrder(8, jnp.array(1e-7)).evaluations()
    24
    """

    steps: int = eqx.field(static=True)
    rate: Float[Array, ""]

    def __call__(self, value_fn, params, batch=None) -> SearchResult:
        def climb(params, _):
            seen = features(params, batch)
            fits = {name: jnp.linalg.pinv(x) for name, x in seen.items()}

            def moved(steps):
                new, names = dict(params), sorted(params)
                for name, after in itertools.pairwise(names):
                    step = steps[name]
                    target = unleaky(leaky(seen[name] @ new[name].T) @ (jnp.eye(len(step)) + step).T)
                    new[name] = (fits[name] @ target).T
                    new[after] = new[after] @ (jnp.eye(len(step)) - step)
                return new

            def height(steps):
                return squared_norm(jax.grad(value_fn)(moved(steps)))

            zero = {name: jnp.zeros((len(params[name]),) * 2) for name in sorted(params)[:-1]}
            slope = jax.grad(height)(zero)
            return moved(optax.tree.scale(self.rate, slope)), None

        there, _ = jax.lax.scan(climb, params, None, length=self.steps)
        return SearchResult(there, jnp.zeros(()), jnp.asarray(self.evaluations(), jnp.int32), jnp.array(True))

    def evaluations(self) -> int:
        return 3 * self.steps
