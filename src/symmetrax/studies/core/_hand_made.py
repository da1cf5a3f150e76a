"""Optimizers made by hand: functions of their hyperparameters and a task, to be tuned."""

import equinox as eqx
import numpy as np
import optax
from jaxtyping import Array

from symmetrax.rollout._unroll import MakeTransform
from symmetrax.search._searches import AbstractSearch, Oracle
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._transform import teleported

#: 25 learning rates from 1e-3 to 3, equally spaced in their logarithm.
RATES = np.geomspace(1e-3, 3, 25)
#: Values of momentum, and of Adam's b1.
MOMENTA = np.array([0.0, 0.3, 0.5, 0.7, 0.8, 0.9])


def descent(hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
    """Gradient descent with momentum.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> optimizer = descent({"rate": jnp.array(0.5), "momentum": jnp.array(0.0)}, sx.tasks.booth())
    >>> optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(1.0)))[0].item()
    -0.5
    """
    return optax.sgd(hyper["rate"], momentum=hyper["momentum"])


def adam(hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
    """Adam, whose b1 is the hyperparameter "momentum".

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> optimizer = adam({"rate": jnp.array(0.5), "momentum": jnp.array(0.9)}, sx.tasks.booth())
    >>> round(optimizer.update(jnp.array(3.0), optimizer.init(jnp.array(3.0)))[0].item(), 5)
    -0.5
    """
    return optax.adam(hyper["rate"], b1=hyper["momentum"])


class FromTheBest(eqx.Module):
    """The optimizer `make` after an unguarded teleport to the largest gradient on the orbit.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> hyper = {"rate": jnp.array(1 / 18), "momentum": jnp.array(0.0)}
    >>> task = sx.tasks.booth()
    >>> trace = sx.unroll(FromTheBest(descent)(hyper, task), task, jax.random.key(0), steps=1)
    >>> bool(trace.loss[1] < 1e-6)  # the best rate on the steep axis: solved at once
    True
    """

    make: MakeTransform = eqx.field(static=True)
    search: AbstractSearch = Oracle()

    def __call__(self, hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
        return teleported(self.make(hyper, task), symmetry_of(task), search=self.search, guard=None)


def oracle_evaluations(task: AbstractTask) -> float | int:
    """What the oracle spends per step: its search, and the gradient at the point it finds.

    >>> import symmetrax as sx
    >>> oracle_evaluations(sx.tasks.booth())
    1
    """
    return search_evaluations(Oracle(), task)


def search_evaluations(search: AbstractSearch, task: AbstractTask) -> float | int:
    """What a teleport by `search` spends before a step: the search, and the gradient at the point it finds.

    >>> import symmetrax as sx
    >>> search_evaluations(sx.search.SinusoidPeak(), sx.tasks.booth())
    5
    """
    return 1 + search.evaluations(symmetry_of(task))


def symmetry_of(task: AbstractTask) -> AbstractLieSymmetry:
    """The task's symmetry, for an arm that teleports; ValueError if it describes none.

    >>> import symmetrax as sx
    >>> symmetry_of(sx.tasks.booth()).algebra
    (1,)
    """
    symmetry = task.symmetry()
    if symmetry is None:
        raise ValueError(f"This arm teleports, and {type(task).__name__} describes no symmetry.")
    return symmetry
