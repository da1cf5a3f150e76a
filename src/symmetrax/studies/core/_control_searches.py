"""Searches that only experiments need: the published random start, and controls of what a search decides."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from symmetrax._tree import safe_norm
from symmetrax.search._levelset import AbstractPointSearch, SearchResult
from symmetrax.search._orbit import Orbit
from symmetrax.search._searches import AbstractSearch
from symmetrax.symmetry._base import AbstractLieSymmetry


class AscentFrom(AbstractSearch):
    """The published search on a circle of angles: gradient ascent from the angle `start`, radians.

    `Ascent` starts at the identity; arXiv:2205.10637 at a random angle. Without steps it is that
    random angle, a control.

    >>> AscentFrom(jnp.array(1.0), jnp.array(1e-3), steps=10).evaluations(None)
    30
    """

    start: Float[Array, ""]
    rate: Float[Array, ""]
    steps: int = eqx.field(static=True, default=10)

    def __call__(self, orbit):
        def climb(xi, _):
            return xi + self.rate * jax.grad(orbit)(xi), None

        first = jnp.full_like(orbit.zero(), 1.0) * self.start
        return jax.lax.scan(climb, first, None, length=self.steps)[0]

    def evaluations(self, symmetry) -> int:
        return 3 * self.steps


class SameSize(AbstractSearch):
    """Coordinates of a given norm in a random direction: the control for a direction that was searched.

    >>> SameSize(jax.random.key(0), jnp.array(1.0)).evaluations(None)
    0
    """

    key: Key[Array, ""]
    size: Float[Array, ""]

    def __call__(self, orbit):
        zero = orbit.zero()
        direction = jax.random.normal(self.key, zero.shape, zero.dtype)
        return self.size * direction / safe_norm(direction)

    def evaluations(self, symmetry) -> int:
        return 0


class RandomSigns(AbstractSearch):
    """Coordinates as large as those `search` finds, each with a random sign if `random`.

    >>> import symmetrax as sx
    >>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
    >>> control = RandomSigns(sx.search.Oracle(), jax.random.key(1), jnp.array(True))
    >>> orbit = Orbit(task.loss, x, task.symmetry())
    >>> found, drawn = (abs(s(orbit).item()) for s in (sx.search.Oracle(), control))
    >>> found == drawn
    True
    """

    search: AbstractSearch
    key: Key[Array, ""]
    random: Bool[Array, ""]

    def __call__(self, orbit: Orbit) -> Float[Array, "..."]:
        found = self.search(orbit)
        signs = jax.random.rademacher(self.key, found.shape, found.dtype)
        return jnp.where(self.random, signs * found, found)

    def evaluations(self, symmetry: AbstractLieSymmetry) -> float | int:
        return self.search.evaluations(symmetry)


class Displace(AbstractPointSearch):
    """A displacement of a given length in a random direction, which keeps no loss: the pseudo-teleport.

    >>> float(Displace(jax.random.key(0), jnp.array(2.0))(jnp.sum, jnp.zeros(1)).residual)
    0.0
    """

    key: Key[Array, ""]
    distance: Float[Array, ""]

    def __call__(self, value_fn, params, batch=None) -> SearchResult:
        direction = optax.tree.random_like(self.key, params)
        scale = self.distance / safe_norm(direction)
        there = jax.tree.map(lambda w, d: w + scale * d, params, direction)
        return SearchResult(there, jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.array(True))

    def evaluations(self) -> int:
        return 0


class Stay(AbstractPointSearch):
    """No displacement at all, for arms where something else happens at a teleport's time.

    >>> print(Stay()(jnp.sum, jnp.ones(1)).params)
    [1.]
    """

    def __call__(self, value_fn, params, batch=None) -> SearchResult:
        return SearchResult(params, jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.array(True))

    def evaluations(self) -> int:
        return 0
