"""Rollouts: run an optimizer on one task or on many.

`unroll` and `unroll_many` take all steps in one compiled program and return a `Trace` of losses and gradient
norms; they accept any optax optimizer. `Environment` takes one step at a time, for your own training loop.

>>> import jax, optax, symmetrax as sx
>>> task = sx.tasks.booth(start=[5.0, -5.0])
>>> trace = sx.rollout.unroll(optax.sgd(0.05), task, jax.random.key(0), steps=12)
>>> [round(loss, 1) for loss in trace.loss[:3].tolist()]
[144.0, 59.0, 47.2]
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
