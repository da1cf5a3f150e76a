"""Teleportation: move parameters along an orbit, once or inside an optimizer.

`teleport` moves parameters once, `teleported` wraps an optax optimizer so that it teleports at scheduled
steps, and `online_teleported` learns the group element while it trains. A `Guard` rejects harmful jumps;
`OUTCOMES` lists the reasons. `teleport_gain` measures beforehand how much the objective varies on an orbit.

>>> import jax.numpy as jnp, symmetrax as sx
>>> task, x = sx.tasks.booth(), jnp.array([5.0, -5.0])
>>> moved, info = sx.teleportation.teleport(task.loss, x, task.symmetry())
>>> bool(info.after > info.before), sx.teleportation.OUTCOMES[int(info.outcome)]
(True, 'accepted')
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
