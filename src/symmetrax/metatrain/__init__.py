"""Meta-training: train the weights of a learned optimizer on many tasks.

`meta_train` is the outer loop. It takes an estimator of the meta-gradient: `TruncatedBPTT` or `PES`, which
you can wrap in `RandomHorizon` or `Imitation`. `curriculum_train` repeats it on ever longer rollouts.

>>> import jax, optax, symmetrax as sx
>>> family = sx.tasks.make_family("booth")
>>> estimator = sx.metatrain.TruncatedBPTT(family, sx.UpdateRule(), steps=10, truncation=5, tasks=4)
>>> make = lambda key: sx.learned.CoordinatewiseLSTM(width=4, key=key)
>>> trained = sx.metatrain.meta_train(make, estimator, optax.adam(1e-2), jax.random.key(0), outer_steps=4)
>>> trained.losses.shape
(1, 4)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
