"""Every proposition about teleportation and Newton's step, as numbers: both sides of it.

A statement is a function. It returns `Sides(left, right, applies)`: what is measured, what the statement says
of it, and whether its conditions are met at the given point. `docs/theory.md` goes through the claims of
the papers, and `symmetrax claims` checks all of them.

>>> import jax.numpy as jnp
>>> from symmetrax import theory
>>> sides = theory.norm_growth(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, 2.0])))
>>> bool(sides.applies), bool(sides.left >= 0)
(True, True)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
