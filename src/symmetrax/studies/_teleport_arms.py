"""The published settings of teleports in gradient descent, and the optimizers that teleport by them."""

import dataclasses
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import safe_norm
from symmetrax.search._closed_form import ClosedForm
from symmetrax.search._levelset import LevelSet
from symmetrax.search._nullspace import NullSpace
from symmetrax.search._searches import Ascent, Oracle
from symmetrax.studies._published import FirstOrder, features
from symmetrax.studies.core._control_searches import AscentFrom, Displace, SameSize, Stay
from symmetrax.studies.core._recorded import drawn, teleporting
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._plane import SumOfSquares, booth, rosenbrock
from symmetrax.tasks._regression import Regression

ASCENT_STEPS = 10
FRESH = 64


@dataclasses.dataclass(frozen=True)
class Function:
    """The published settings of one function: `schedule` are the steps, from 0, before which it teleports.

    Learning rates are tuned over `rate` times powers of `ratio`, so that the published one is among them;
    `theta` is the rate of the ascent, in radians per unit of the squared gradient norm's slope.

    >>> FUNCTIONS["booth"].steps
    10
    """

    task: SumOfSquares
    start: tuple[float, float]
    steps: int
    rate: float
    theta: float
    schedule: tuple[int, ...]
    ratio: float

    def when(self, schedule: Any) -> np.ndarray:
        """A boolean for each step."""
        return np.isin(np.arange(self.steps), list(schedule))


FUNCTIONS = {
    "booth": Function(booth(), (5.0, -5.0), 10, 0.08, 1e-3, (4,), 1.2),
    "rosenbrock": Function(rosenbrock(), (-1.0, -1.0), 1000, 1e-3, 0.1, tuple(range(99, 1000, 100)), 1.4),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """The published settings of one optimizer: its rate, and the steps and rate of the ascent.

    Learning rates are tuned over `rate` times powers of `ratio`.

    >>> METHODS["adagrad"].ascent_steps
    2
    """

    rate: float
    ascent_steps: int
    theta: float
    ratio: float


METHODS = {"gd": Method(1e-4, 8, 1e-7, 1.4), "adagrad": Method(0.1, 2, 1e-5, 1.4)}


class PlaneArm(eqx.Module):
    """An optimizer of the plane: gradient descent with momentum, and a search before its steps that are due.

    `search` is "none" or one of "ascent", "oracle", "level-set" and "pseudo"; `transport` is what happens to
    the momentum at a teleport. The ascent starts at U[0, turn) plus the given size, radians.

    >>> PlaneArm("ascent").transport
    'keep'
    """

    search: str = eqx.field(static=True)
    transport: Any = eqx.field(static=True, default="keep")

    def __call__(self, hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformationExtraArgs:
        descent = optax.chain(optax.trace(hyper["momentum"]), optax.scale_by_learning_rate(hyper["rate"]))
        symmetry = None if self.search in ("level-set", "pseudo") else task.symmetry()

        def make(key) -> optax.GradientTransformation:
            size = hyper.get("size", jnp.zeros(()))
            angle = hyper["turn"] * jax.random.uniform(key) + size
            search = {
                "none": None,
                "ascent": AscentFrom(angle, hyper["theta"], ASCENT_STEPS),
                "oracle": Oracle(),
                "level-set": LevelSet(),
                "pseudo": Displace(key, size),
            }[self.search]
            return teleporting(descent, search, symmetry, task, hyper, plane_changes, self.transport)

        return drawn(make)


def plane_changes(task: AbstractTask, origin: Array, there: Array) -> dict[str, Float[Array, ""]]:
    """Relative change of the loss (or of 1e-6, if it is less); how much farther away the minimum is.

    >>> found = plane_changes(booth(), jnp.zeros(2), jnp.array([1.0, 3.0]))
    >>> {name: round(float(x), 2) for name, x in found.items()}
    {'loss change': -1.0, 'farther': -3.16}
    """
    here, after, minimum = task.loss(origin), task.loss(there), cast(SumOfSquares, task).optimum()
    away = [safe_norm(point - minimum) for point in (origin, there)]
    return {"loss change": (after - here) / jnp.maximum(here, 1e-6), "farther": away[1] - away[0]}


class NetworkArm(eqx.Module):
    """An optimizer, and what is searched before its steps that are due.

    `search` is "none" or one of "teleport" (the published action, kept exact), "first-order" (the published
    code's approximation of it), "random", "scaling", "null-space", "level-set", "pseudo" and "reset".

    >>> NetworkArm("gd", "scaling").transport
    'keep'
    """

    method: str = eqx.field(static=True)
    search: str = eqx.field(static=True)
    transport: Any = eqx.field(static=True, default="keep")

    def __call__(self, hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformationExtraArgs:
        task, rate = cast(Regression, task), hyper["rate"]
        optimizer = optax.sgd(rate)
        if self.method == "adagrad":
            optimizer = optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-10)
        action, steps = task.network.invertible_symmetry("preimage"), METHODS[self.method].ascent_steps

        def make(key) -> optax.GradientTransformation:
            size = hyper.get("size", jnp.zeros(()))
            symmetry, search = {
                "none": lambda: (None, None),
                "teleport": lambda: (action, Ascent(steps, hyper["theta"], hyper["bound"])),
                "first-order": lambda: (None, FirstOrder(steps, hyper["theta"])),
                "random": lambda: (action, SameSize(key, size)),
                "scaling": lambda: (task.symmetry(), ClosedForm(hyper["bound"])),
                "null-space": lambda: (None, NullSpace(features)),
                "level-set": lambda: (None, LevelSet()),
                "pseudo": lambda: (None, Displace(key, size)),
                "reset": lambda: (None, Stay()),
            }[self.search]()
            return teleporting(optimizer, search, symmetry, task, hyper, network_changes, self.transport)

        return drawn(make)


def network_changes(task: AbstractTask, origin: PyTree, there: PyTree) -> dict[str, Array]:
    """Relative change of the loss at a teleport: on the samples, and on fresh ones of the same law.

    >>> import symmetrax as sx
    >>> family = sx.tasks.RegressionFamily("regression")
    >>> task = family.task(family.draw(jax.random.key(0)))
    >>> params = task.init(jax.random.key(1))
    >>> {name: float(x) for name, x in network_changes(task, params, params).items()}
    {'loss change': 0.0, 'on fresh data': 0.0}
    """
    task, random = cast(Regression, task), np.random.default_rng(0)
    shapes = (task.inputs.shape[1], task.targets.shape[1])
    fresh = tuple(jnp.asarray(random.uniform(size=(FRESH, width)), task.inputs.dtype) for width in shapes)

    def change(batch):
        here, after = task.loss(origin, batch), task.loss(there, batch)
        return (after - here) / jnp.maximum(here, 1e-6)

    return {"loss change": change(None), "on fresh data": change(fresh)}
