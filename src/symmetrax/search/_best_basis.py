"""The best of several random bases, under an objective of the parameters that need not be differentiable."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from symmetrax._keys import check_key
from symmetrax._tree import select
from symmetrax.objectives._base import Objective, cost_of
from symmetrax.search._basis import AbstractElementSearch, RandomBasis, check_rotations, no_loss


class BestBasis(AbstractElementSearch):
    """Teleports to the best of `samples` random bases and the present one, under `objective`.

    The objective is evaluated, not differentiated, so steps and ties do no harm. It must be one of the
    parameters alone, such as `sx.objectives.QuantizationError`; others raise ValueError. Since the present
    basis takes part, the objective never becomes smaller. All spaces with rotations are drawn together, anew
    at each teleport, from `key` and the step number.

    Source: random rotations before quantization are QuaRot's (arXiv:2404.00456); SpinQuant (arXiv:2405.16406)
    chooses among them.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> normal = lambda key, *shape: jax.random.normal(jax.random.key(key), shape)
    >>> params = {"A": normal(0, 4, 20), "B": normal(1, 20, 4)}
    >>> symmetry = sx.models.low_rank_symmetry(params, "A", "B")
    >>> error = sx.objectives.QuantizationError(4)
    >>> loss = lambda p, _: jnp.sum((p["B"] @ p["A"]) ** 2)
    >>> search = BestBasis(jax.random.key(0), error)
    >>> _, info = sx.teleport(loss, params, symmetry, search=search, objective=error)
    >>> bool(info.after > info.before)
    True
    """

    key: Key[Array, ""]
    objective: Objective
    samples: int = eqx.field(static=True, default=16)
    largest: int = eqx.field(static=True, default=1024)

    def __check_init__(self):
        check_key(self.key)
        if self.samples < 1:
            raise ValueError(f"BestBasis needs at least one sample, got samples={self.samples}.")
        if cost_of(self.objective):
            raise ValueError(
                f"BestBasis needs an objective of the parameters alone, got {self.objective}, which "
                "evaluates the loss: use sx.objectives.QuantizationError(bits), or another search."
            )

    def check(self, symmetry):
        check_rotations(symmetry, self.largest)

    def __call__(self, memory, symmetry, params, count):
        keys = jax.random.split(jax.random.fold_in(self.key, count), self.samples)

        def value(element):
            return self.objective(no_loss, symmetry.act(element, params))

        def better(best, key):
            element = RandomBasis(key, self.largest)((), symmetry, params, 0)
            there = (value(element), element)
            return select(there[0] > best[0], there, best), None

        # One after another, so that a single copy of the moved parameters is in memory.
        here = symmetry.identity()
        start = jax.tree.map(jnp.asarray, (value(here), here))
        kinds = jax.eval_shape(better, start, keys[0])[0]
        start = jax.tree.map(lambda x, kind: x.astype(kind.dtype), start, kinds)
        return jax.lax.scan(better, start, keys)[0][1]
