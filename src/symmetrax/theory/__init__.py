"""The statements of the papers about teleportation and Newton's step, as functions that evaluate both sides.

A function returns `Sides(left, right, applies)`: the measured value, the value or bound that the statement
predicts, and whether its conditions hold at the given point. `docs/theory.md` discusses every claim, and
`symmetrax claims` checks all of them.

>>> import jax.numpy as jnp, symmetrax as sx
>>> sides = sx.theory.norm_growth(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, 2.0])))
>>> bool(sides.applies), bool(sides.left >= 0)
(True, True)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
