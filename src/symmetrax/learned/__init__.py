"""Learned optimizers: networks that propose steps and teleports.

Every network has a `transform()`, an optax transformation. `CoordinatewiseLSTM` and `RNNProp` serve
parameters of any shape, `FlatGradientLSTM` and `OrbitLSTM` a fixed number of them, `PerNeuronLSTM` teleports
networks of any size, and `Joint` combines several. Train them with `meta_train`; `save` and `load` keep them
in a file.

>>> import jax, jax.numpy as jnp, symmetrax as sx
>>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)}
>>> optimizer = sx.learned.CoordinatewiseLSTM(width=4, key=jax.random.key(0)).transform()
>>> updates, state = optimizer.update(params, optimizer.init(params), params)
>>> updates["w"].shape
(3, 2)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
