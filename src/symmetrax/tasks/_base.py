"""The interfaces of optimization tasks, and of families that tasks are drawn from."""

from abc import abstractmethod
from collections.abc import Hashable

import equinox as eqx
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry


class AbstractTask(eqx.Module):
    """A loss to be minimized from a random start.

    >>> import jax, symmetrax as sx
    >>> task = sx.booth()
    >>> params = task.init(jax.random.key(0))
    >>> task.loss(params, task.batch(jax.random.key(1))).shape
    ()
    """

    @abstractmethod
    def init(self, key: Key[Array, ""]) -> PyTree:
        """Random initial parameters."""

    @property
    def same_batch(self) -> bool:
        """Whether `batch` gives the same arrays whatever the key: what follows from them alone is then
        computed once, not at every step."""
        return False

    @abstractmethod
    def batch(self, key: Key[Array, ""]) -> PyTree:
        """Random data for one step; None for a loss without data."""

    @abstractmethod
    def loss(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        """The loss of `params` on `batch`."""

    @abstractmethod
    def symmetry(self) -> AbstractLieSymmetry | None:
        """The symmetry that leaves the loss unchanged, if one is known."""

    def optimum(self) -> PyTree | None:
        """The parameters where the loss is least, if they are known."""
        return None


class AbstractTaskFamily(eqx.Module):
    """A distribution over tasks, split so that a thousand tasks are one compiled program.

    What changes the shapes of arrays (the width of a network) is a *shape*, chosen on the host from
    `shapes`. What does not is *drawn* under `vmap` as a pytree of arrays. Data that all tasks share stay in
    the family: `task(drawn, shape)` puts the three together.

    >>> import jax, symmetrax as sx
    >>> family = sx.make_family("ellipse-random")
    >>> drawn = jax.vmap(family.draw)(jax.random.split(jax.random.key(0), 1000))
    >>> losses = jax.vmap(lambda d: family.task(d).loss(jax.numpy.zeros(2)))(drawn)
    >>> losses.shape
    (1000,)
    """

    name: eqx.AbstractVar[str]

    @property
    def shapes(self) -> tuple[Hashable, ...]:
        """The static choices among which tasks vary; `(None,)` if there is only one."""
        return (None,)

    @abstractmethod
    def draw(self, key: Key[Array, ""]) -> PyTree:
        """Arrays of one random task; may be called under `vmap`."""

    @abstractmethod
    def task(self, drawn: PyTree, shape: Hashable = None) -> AbstractTask:
        """The task with these arrays and this shape (by default the first of `shapes`)."""
