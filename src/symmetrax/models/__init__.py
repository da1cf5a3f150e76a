"""Ready-made symmetries of common layers: perceptrons, attention, residual networks and others.

Each function takes your parameters and the paths of the arrays, and returns a `NetworkSymmetry`. Combine
several with `|`, and check the result with `sx.verify`.

>>> import jax.numpy as jnp, symmetrax as sx
>>> params = {"w1": jnp.ones((5, 3)), "b1": jnp.ones(5), "w2": jnp.ones((2, 5))}
>>> print(sx.models.mlp_symmetry(params))
hidden1: PositiveDiagonal(5)
  w1  hidden1 _
  w2  _ hidden1*
  b1  hidden1
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
