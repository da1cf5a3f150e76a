"""Discovery of symmetries from the program and the gradients of a loss, with certificates.

`find_symmetries` returns a `Discovery`: print it for a table, `joined()` is one symmetry to teleport along,
`text` is code that constructs everything found. `discovery_cost` predicts the cost, in evaluations of the
loss.

>>> import jax.numpy as jnp, symmetrax as sx
>>> params = {"w": jnp.ones((4, 3)), "out": jnp.ones((2, 4))}
>>> cost = sx.discovery.discovery_cost(params, groups=[sx.groups.PositiveDiagonal])
>>> cost.points  # gradients at generic points
14
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
