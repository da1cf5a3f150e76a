"""The interfaces of optimization tasks and of the families from which tasks are drawn."""

from abc import abstractmethod
from collections.abc import Hashable

import equinox as eqx
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry


class AbstractTask(eqx.Module):
    """A loss to minimize from a random start.

    >>> import jax, symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> params = task.init(jax.random.key(0))
    >>> task.loss(params, task.batch(jax.random.key(1))).shape
    ()
    """

    @abstractmethod
    def init(self, key: Key[Array, ""]) -> PyTree:
        """Returns random initial parameters."""

    @property
    def same_batch(self) -> bool:
        """Whether `batch` returns the same arrays for every key.

        If so, computations that depend only on them run once, not at every step.
        """
        return False

    @abstractmethod
    def batch(self, key: Key[Array, ""]) -> PyTree:
        """Returns random data for one step; None for a loss without data."""

    @abstractmethod
    def loss(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        """The loss of `params` on `batch`."""

    @abstractmethod
    def symmetry(self) -> AbstractLieSymmetry | None:
        """Returns the symmetry that leaves the loss unchanged, if known."""

    def optimum(self) -> PyTree | None:
        """Returns the parameters that minimize the loss, if known."""
        return None


class AbstractTaskFamily(eqx.Module):
    """A distribution over tasks, structured so that a thousand tasks compile to a single program.

    Anything that changes the shapes of arrays (such as the width of a network) is a *shape*, chosen on the
    host from `shapes`. Everything else is *drawn* under `vmap` as a pytree of arrays. Data shared by all
    tasks stay in the family. `task(drawn, shape)` combines the three.

    >>> import jax, symmetrax as sx
    >>> family = sx.tasks.make_family("ellipse-random")
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
        """Draws the arrays of one random task; works under `vmap`."""

    @abstractmethod
    def task(self, drawn: PyTree, shape: Hashable = None) -> AbstractTask:
        """Returns the task with these arrays and this shape (by default the first of `shapes`)."""
