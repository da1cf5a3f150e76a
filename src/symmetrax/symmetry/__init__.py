"""Symmetries: transformations of parameters that leave a loss unchanged.

`NetworkSymmetry` places groups on the axes of arrays and covers almost every symmetry of a network; `verify`
measures whether a symmetry holds, and `orbit_curve`, `project_horizontal`, `conserved_quantities`,
`match` and `weight_matching` use it. To write your own, subclass `AbstractSymmetry` or `AbstractLieSymmetry`.

>>> import jax.numpy as jnp, symmetrax as sx
>>> params = {"w1": jnp.ones((2, 3)), "w2": jnp.ones((1, 2))}  # x -> w2 relu(w1 x)
>>> hidden = {"h": sx.groups.PositiveDiagonal(2)}
>>> symmetry = sx.symmetry.NetworkSymmetry(hidden, {"w1": "h _", "w2": "_ h*"}, like=params)
>>> print(symmetry.act({"h": jnp.array([2.0, 4.0])}, params)["w2"])
[[0.5  0.25]]
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
