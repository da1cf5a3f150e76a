"""Tasks with parameters in random units, so that no optimizer can memorize their scale."""

from collections.abc import Hashable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._rescaled import RescaledSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily


class ScaledTask(AbstractTask):
    """`task` in other units: its loss at `params * scale`, starting from `init(key) / scale`.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = ScaledTask(sx.tasks.booth(start=[5.0, -5.0]), scale=jnp.array([2.0, 0.5]))
    >>> print(task.init(jax.random.key(0)), task.loss(jnp.array([2.5, -10.0])))
    [  2.5 -10. ] 144.0
    """

    task: AbstractTask
    scale: PyTree

    def init(self, key: Key[Array, ""]) -> PyTree:
        return optax.tree.div(self.task.init(key), self.scale)

    @property
    def same_batch(self) -> bool:
        return self.task.same_batch

    def batch(self, key: Key[Array, ""]) -> PyTree:
        return self.task.batch(key)

    def loss(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        return self.task.loss(optax.tree.mul(params, self.scale), batch)

    def symmetry(self) -> RescaledSymmetry | None:
        symmetry = self.task.symmetry()
        return None if symmetry is None else RescaledSymmetry(symmetry, self.scale)

    def optimum(self) -> PyTree | None:
        optimum = self.task.optimum()
        return None if optimum is None else optax.tree.div(optimum, self.scale)


class RandomlyScaled(AbstractTaskFamily):
    """The tasks of `family`, with every parameter of each task scaled by its own exp(U[-spread, spread]).

    The loss is loss(params * scale) and the start init / scale. So losses at the start are those of `family`,
    while a step of a given length changes each parameter by a different amount: a learned optimizer must
    infer the scale from the gradients. Shapes and symmetries are those of `family`, the latter in the new
    units (`RescaledSymmetry`). A spread of 0 changes nothing; a negative one raises ValueError.
    Source: Lv, Jiang and Li 2017 (arXiv:1703.03633), "random scaling", with spread 3.

    >>> import jax, symmetrax as sx
    >>> family = RandomlyScaled(sx.tasks.make_family("regression"), spread=1.0)
    >>> task = family.task(family.draw(jax.random.key(0)))
    >>> {name: leaf.shape for name, leaf in sorted(task.init(jax.random.key(1)).items())}
    {'w1': (6, 5), 'w2': (7, 6), 'w3': (8, 7)}
    """

    name: str = eqx.field(static=True)
    family: AbstractTaskFamily
    spread: float | int | Float[Array, ""]

    def __init__(self, family: AbstractTaskFamily, spread: float | int | Float[Array, ""] = 3.0):
        # A traced spread cannot be checked; the comparison also rejects NaN.
        if isinstance(spread, float | int) and not spread >= 0:
            raise ValueError(f"`spread` must be at least 0, got spread={spread}.")
        self.name, self.family, self.spread = f"{family.name}-scaled", family, spread

    @property
    def shapes(self) -> tuple[Hashable, ...]:
        return self.family.shapes

    def draw(self, key: Key[Array, ""]) -> tuple[PyTree, Float[Array, " parameters"]]:
        """Draws a task of the family, and a number in [-1, 1] for each parameter of the largest shape."""
        # The largest shape, so that tasks of every shape have drawn arrays of the same shape.
        inner, units = jax.random.split(key)
        drawn = self.family.draw(inner)
        size = max(_size(self._start(drawn, shape)) for shape in self.shapes)
        return drawn, jax.random.uniform(units, (size,), minval=-1.0)

    def task(self, drawn: tuple[PyTree, Float[Array, " parameters"]], shape: Hashable = None) -> ScaledTask:
        inner, units = drawn
        like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._start(inner, shape))
        flat, unravel = ravel_pytree(like)
        # The spread enters here, not in `draw`, so that the same draw can be scaled more or less.
        scale = jnp.exp(self.spread * units[: flat.size])
        return ScaledTask(task=self.family.task(inner, shape), scale=unravel(scale.astype(flat.dtype)))

    def _start(self, drawn: PyTree, shape: Hashable) -> PyTree:
        """The shapes and dtypes of the parameters."""
        return jax.eval_shape(lambda d, k: self.family.task(d, shape).init(k), drawn, jax.random.key(0))


def _size(tree: PyTree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
