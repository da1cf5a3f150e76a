"""Objectives: functions of a point that a teleport maximizes along an orbit.

`GradientNorm` is the default. `LookaheadLoss`, `GuaranteedDecrease`, `Sharpness` and `Curvature` measure more
than the slope, at a higher `cost`. `QuantizationError` measures what rounding to few bits loses. To minimize
an objective, pass it to `negate`. A plain function `(value_fn, params) -> scalar` is an objective, too.

>>> import jax.numpy as jnp, symmetrax as sx
>>> float(sx.objectives.GradientNorm()(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0])))
100.0
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
