"""Searches for the best point of an orbit, or of a level set if you know no group.

Searches such as `Ascent`, `ClosedForm` and `Grid` return algebra coordinates at which an objective on an
`Orbit` is large; `LevelSet` and `NullSpace` need no symmetry and return a `SearchResult`. Pass either kind as
`search` to `teleport` and `teleported`, or call it directly:

>>> import jax.numpy as jnp, symmetrax as sx
>>> task = sx.tasks.booth()
>>> orbit = sx.search.Orbit(task.loss, jnp.array([5.0, -5.0]), task.symmetry())
>>> best = sx.search.SinusoidPeak()(orbit)
>>> round(float(orbit(orbit.zero())), 1), round(float(orbit(best)), 1)
(2880.0, 5184.0)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
