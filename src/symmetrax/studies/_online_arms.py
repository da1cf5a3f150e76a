"""Arms of the experiment on Algorithm 2: how they teleport, and how they are tuned."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax._tree import safe_norm
from symmetrax.studies._online_tasks import (
    FASTEST,
    OWN,
    UNIT,
    Group,
    Quadratic,
    Quadratics,
    Settings,
)
from symmetrax.studies.core._arm import Tuned
from symmetrax.studies.core._hand_made import symmetry_of
from symmetrax.studies.core._recorded import Given
from symmetrax.studies.core._runs import Runs, run_many
from symmetrax.studies.core._tuning import for_seeds, tune_by_runs
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask
from symmetrax.teleportation._guard import Guard
from symmetrax.teleportation._online import LastStep, jump_and_step, online_teleported, step_end

#: Rates of the angle that are not tuned.
BETAS = (0.01, 0.1, 1.0)
#: Arms whose updates and angles the controls copy: a rate of the angle that is not tuned, and the tuned one.
CONTROLLED = ("online-0.1", "online")


class TurnedState(NamedTuple):
    """State of `turned`: the inner state, the coordinates of the last teleport, and whether it was rejected.

    >>> TurnedState._fields
    ('inner', 'algebra', 'outcome')
    """

    inner: optax.OptState
    algebra: Float[Array, "..."]
    outcome: Int[Array, ""]


def turned(
    inner: optax.GradientTransformation, symmetry: AbstractLieSymmetry, choose: Callable, guard: Guard | None
) -> optax.GradientTransformationExtraArgs:
    """Teleport before every step by coordinates that nothing remembers: the controls of Algorithm 2.

    `choose(slope, key)` gives them; `slope()` is the derivative, at the identity, of the loss after the step.

    >>> import symmetrax as sx
    >>> task = sx.tasks.booth()
    >>> optimizer = turned(optax.sgd(0.1), task.symmetry(), lambda slope, key: jnp.array([jnp.pi]), None)
    >>> x = jnp.array([1.0, 3.0])  # the minimum, which no rotation moves
    >>> updates, _ = optimizer.update(jnp.zeros(2), optimizer.init(x), x, value_fn=task.loss)
    >>> bool(jnp.max(jnp.abs(updates)) < 1e-5)
    True
    """
    stepper = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> TurnedState:
        return TurnedState(stepper.init(params), symmetry.zero(), jnp.array(0))

    def update(updates, state, params=None, *, value_fn=None, batch=None, key=None, **extra):
        if params is None or value_fn is None:
            raise ValueError("`turned` needs params and value_fn: call update(..., params, value_fn=...).")
        start = LastStep(params, updates, state.inner, jnp.array(True))

        def after(xi):
            return value_fn(step_end(stepper, symmetry, start, xi, batch))

        xi = choose(lambda: jax.grad(after)(symmetry.zero()), key)
        displacement, stepped, jumped = jump_and_step(
            stepper, symmetry, start, xi, batch, guard=guard, value_fn=value_fn
        )
        xi = jnp.where(jumped.outcome == 0, xi, 0.0)
        return displacement, TurnedState(stepped, xi, jumped.outcome)

    return optax.GradientTransformationExtraArgs(init, update)


class OnlineArm(eqx.Module):
    """Gradient descent with momentum, and a teleport before each step.

    `kind` is "plain" (none), "online" (Algorithm 2), "anew" (the angle is learned from zero at every step)
    or "given" (coordinates of the norm `size` in a random direction, or all equal and of norm `momentum`).
    Hyperparameters are `rate`, on quadratics in the unit that `pace` says, and "momentum": that of descent if
    it is plain, else the rate of the coordinates, or their norm; descent then has the momentum `heavy`.

    >>> OnlineArm("online").order
    2
    """

    kind: str = eqx.field(static=True)
    order: Any = eqx.field(static=True, default=2)
    guarded: bool = eqx.field(static=True, default=False)

    def __call__(self, hyper: dict[str, Array], task: AbstractTask) -> optax.GradientTransformation:
        unit = task.rates[hyper["pace"]] if isinstance(task, Quadratic) else 1.0
        number = hyper["momentum"]
        heavy = number if self.kind == "plain" else hyper["heavy"]
        inner = optax.chain(optax.trace(heavy), optax.scale_by_learning_rate(hyper["rate"] * unit))
        if self.kind == "plain":
            return inner
        symmetry, guard = symmetry_of(task), Guard(tolerance=1e-3) if self.guarded else None
        if self.kind == "online":
            return online_teleported(inner, symmetry, number, order=self.order, guard=guard)
        if self.kind == "anew":
            return turned(inner, symmetry, lambda slope, _: symmetry.bounded(-number * slope(), 1.0), guard)
        equal = jnp.ones(symmetry.algebra)

        def given(slope, key):
            random = jax.random.normal(key, symmetry.algebra)
            size = hyper.get("size", 0.0)
            return size * random / safe_norm(random) + number * equal / safe_norm(equal)

        return turned(inner, symmetry, given, guard)


PLAIN, ONLINE, FIRST = OnlineArm("plain"), OnlineArm("online"), OnlineArm("online", order=1)
ANEW, GIVEN = OnlineArm("anew"), OnlineArm("given")
GUARDED = dataclasses.replace(ONLINE, guarded=True)


class Arm(NamedTuple):
    """An arm with its hyperparameters; it may run `twice` as many steps, or by angles of another arm's size.

    >>> Arm(PLAIN, {"rate": 0.1}).twice
    False
    """

    make: OnlineArm
    hyper: dict[str, Any]
    twice: bool = False
    sizes_of: str = ""


def run_arm(
    make: OnlineArm,
    hyper: dict[str, Any],
    group: Group,
    key: Key[Array, ""],
    *,
    steps: int,
    sizes: Any = 0.0,
    timings: int = 0,
) -> Runs:
    """Run an arm on the tasks of a group: what `run_many` records, and by what its teleports were.

    >>> from symmetrax.studies._online_tasks import Settings, group_of
    >>> group = group_of("rosenbrock-random", Settings(), 2, 3)
    >>> hyper = {"rate": 0.01, "momentum": 0.0, "heavy": 0.0, "pace": UNIT}
    >>> run_arm(PLAIN, hyper, group, jax.random.key(0), steps=4).recorded["farther"].shape
    (2, 3, 4)
    """
    shape = group.seeds, group.tasks
    options: dict[str, Any] = {"watch": ("algebra", "outcome"), "look": _look, "measure": _measure}
    how: Any = make
    if make.kind == "given":
        how, given = Given(make), np.broadcast_to(sizes, (*shape, steps)).astype(float)
        options["along"] = {"size": given.reshape(1, -1, steps)}
    options |= {"steps": steps, "tasks": math.prod(shape), "parts": None, "timings": timings}
    # All tasks at once: nothing is learned that a seed's tasks would share, and few tasks at a time are slow.
    ran = run_many(how, for_seeds(hyper, 1), group.family, key[None], **options)
    found = {"losses": ran.losses, "recorded": ran.recorded, "measured": ran.measured}
    return dataclasses.replace(ran, **jax.tree.map(lambda x: x.reshape(*shape, *x.shape[2:]), found))


def _look(
    make: Any, task: AbstractTask, params: PyTree, state: optax.OptState, after: PyTree
) -> dict[str, Array]:
    """By how much the teleport raised the distance to the minimum, if known; where it led, in the plane."""
    symmetry, best = symmetry_of(task), task.optimum()
    if best is None:
        return {"farther": jnp.zeros(())}
    there = symmetry.act(symmetry.exp(optax.tree.get(state, "algebra", symmetry.zero())), params)
    found = {"farther": safe_norm(there - best) / safe_norm(params - best) - 1}
    return found | ({"there": there} if isinstance(task, Quadratic) and len(there) == 2 else {})


def _measure(task: AbstractTask, params: PyTree) -> dict[str, Array]:
    return {"matrix": task.form.matrix, "rates": task.rates} if isinstance(task, Quadratic) else {}


def arms_on(group: Group, settings: Settings, key: Key[Array, ""]) -> dict[str, Arm]:
    """All arms of a group, tuned on other draws by the upper quartile of f / f(x_0)."""
    steps, quadratic = group.steps, isinstance(group.family, Quadratics)
    rates = np.geomspace(*group.rates, settings.rates).tolist()
    betas = np.geomspace(1e-5, 10.0, settings.betas).tolist()
    fixed = {"heavy": 0.0, "pace": UNIT}

    def tuned(arms: list[Tuned], *horizons: int) -> dict[int, dict[str, Any]]:
        def run(make: Any, hyper: dict[str, Any]) -> Runs:
            return run_arm(make, hyper, group, key, steps=max(horizons))

        return tune_by_runs(arms, run, horizons=horizons, score=0.75)

    def best(make: OnlineArm, rates: Any, numbers: Any, **others: Any) -> Arm:
        arm = Tuned("arm", make, tuple(rates), tuple(numbers), fixed={**fixed, **others})
        return Arm(make, tuned([arm], steps)[steps]["arm"])

    momenta = {"gd": (0.0,), "momentum": settings.momenta}
    plain = [Tuned(name, PLAIN, tuple(rates), values, fixed=fixed) for name, values in momenta.items()]
    found = tuned(plain, steps, 2 * steps)
    arms = {f"{name}-tuned": Arm(PLAIN, found[steps][name]) for name in momenta}
    arms |= {f"{name}-tuned-twice": Arm(PLAIN, found[2 * steps][name], twice=True) for name in momenta}
    own = {**fixed, "pace": OWN, "rate": 1.0, "momentum": 0.0} if quadratic else arms["gd-tuned"].hyper
    arms |= {"gd": Arm(PLAIN, own), "gd-twice": Arm(PLAIN, own, twice=True)}

    def at_own_rate(make: OnlineArm, numbers: Any) -> Arm:
        return best(make, (own["rate"],), numbers, pace=own["pace"])

    arms |= {f"online-{beta:g}": Arm(ONLINE, own | {"momentum": beta}) for beta in BETAS}
    arms |= {"online": at_own_rate(ONLINE, betas), "online-first": at_own_rate(FIRST, betas)}
    for of in CONTROLLED:
        hyper = arms[of].hyper
        arms[f"{of}-opposite"] = Arm(ONLINE, hyper | {"momentum": -hyper["momentum"]})
        arms[f"{of}-random"] = Arm(GIVEN, own, sizes_of=of)
        if not quadratic:
            arms[f"{of}-guarded"] = Arm(GUARDED, hyper)
    arms["anew"] = at_own_rate(ANEW, betas)
    arms["constant"] = at_own_rate(GIVEN, np.geomspace(1e-3, 1.5, settings.betas).tolist())
    arms["online-tuned"] = best(ONLINE, rates[::3], betas)
    heavy = found[steps]["momentum"]
    slower = [heavy["rate"] * factor for factor in (1.0, 0.7, 0.5, 0.35)]
    arms["online-momentum"] = best(ONLINE, slower, betas, heavy=heavy["momentum"])
    if quadratic:
        for name in ("gd", "online", "online-first"):
            arms[f"{name}-best"] = Arm(arms[name].make, arms[name].hyper | {"pace": FASTEST})
    return arms
