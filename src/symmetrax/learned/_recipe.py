"""How a learned optimizer is used on a task: what it is allowed to do there."""

import equinox as eqx
import optax
from jaxtyping import Array, Bool

from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._guard import Guard


class Recipe(eqx.Module):
    """From a network and a task to an optax transformation: `recipe(network, task)`.

    Where a task brings its own symmetry, this hands it to `AbstractLearnedOptimizer.transform`. It is a
    module, so that the schedule and the guard are arguments of compiled programs: arms that differ in them
    share one program. `teleports[t]` says whether step t teleports; no entry, or None, means never.

    >>> import jax, symmetrax as sx
    >>> network = sx.WholeLSTM(2, algebra=1, key=jax.random.key(0))
    >>> optimizer = Recipe(teleports=jax.numpy.ones(20, bool))(network, sx.booth())
    >>> trace = sx.unroll(optimizer, sx.booth(), jax.random.key(1), steps=3)
    >>> trace.loss.shape
    (4,)
    """

    teleports: Bool[Array, " steps"] | None = None
    guard: Guard | None = Guard()
    meta_order: int = eqx.field(static=True, default=1)

    def __call__(
        self, network: AbstractLearnedOptimizer, task: AbstractTask
    ) -> optax.GradientTransformationExtraArgs:
        symmetry = None
        if self.teleports is not None or network.wants_orbit_derivative:
            symmetry = task.symmetry()
            if symmetry is None:
                raise ValueError(
                    f"{type(task).__name__} describes no symmetry, so nothing can teleport on it: use "
                    "Recipe(teleports=None) and a network without the input 'orbit_derivative'."
                )
        schedule = () if self.teleports is None else self.teleports
        return network.transform(symmetry, schedule=schedule, guard=self.guard, meta_order=self.meta_order)
