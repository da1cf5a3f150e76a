"""Measurements of the experiment on Algorithm 2: losses on one ellipse, and teleports on many tasks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from symmetrax.studies._online_arms import ANEW, FIRST, ONLINE, PLAIN, Arm, OnlineArm, run_arm
from symmetrax.studies._online_tasks import UNIT, Group
from symmetrax.studies.core._run_facts import facts
from symmetrax.studies.core._runs import SOLVED, Runs, run_many
from symmetrax.studies.core._shares import average, middle, share
from symmetrax.studies.core._statistics import DIVERGED, compare
from symmetrax.studies.core._tuning import for_seeds
from symmetrax.symmetry._maps import Affine
from symmetrax.tasks._plane import PlaneFamily

#: One ellipse, and learning rates: 1 / L and less, and one above 1 / (l1 + l2); rates of the angle.
VALUES, START = np.array([0.25, 9.0]), np.array([-5.0, 3.5])
PAIRS = [(rate, beta) for rate in (1 / 18, 0.05, 0.02, 0.11) for beta in (1e-3, 1e-2, 1e-1)]
#: Arms that have no rate of the angle.
ALONE = ("gd", "oracle")
#: What the number of an arm beside its learning rate is.
NUMBERS = {"plain": "momentum", "online": "beta", "anew": "beta", "given": "angle"}
REFERENCES = ("gd", "gd-twice", "gd-tuned", "gd-tuned-twice", "momentum-tuned", "momentum-tuned-twice")


def one_ellipse(cap: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Steps until f < 1e-6 f(x_0) on one ellipse, at most `cap`, and the losses, at all rates of `PAIRS`.

    The same on a circle tells whether there is anything to learn: `circle` is the largest difference of
    Algorithm 2's losses from those of gradient descent there, relative to the first one.

    >>> found, losses = one_ellipse(5)
    >>> found["table"]["0.05556"]["oracle"]["steps"], losses["gd"].shape
    (1, (12, 6))
    """
    keys = jax.random.split(jax.random.key(0), len(PAIRS))
    rates, betas = map(jnp.asarray, np.array(PAIRS).T)
    fixed = for_seeds({"heavy": 0.0, "pace": UNIT}, len(PAIRS))

    def losses(make: OnlineArm, values: np.ndarray, start: np.ndarray) -> np.ndarray:
        root = Affine(jnp.diag(jnp.sqrt(jnp.asarray(values))), jnp.zeros(2))
        family = PlaneFamily("ellipse", "booth", root, jnp.asarray(start), jnp.zeros(()))
        hyper = {**fixed, "rate": rates, "momentum": 0 * betas if make is PLAIN else betas}
        ran = run_many(make, hyper, family, keys, steps=cap, tasks=1, watch=(), parts=1)
        return ran.losses[:, 0]

    short = np.array([0.0, np.sqrt(np.sum(VALUES * START**2) / VALUES[1])])
    curves = {"gd": losses(PLAIN, VALUES, START), "oracle": losses(PLAIN, VALUES, short)}
    arms = {"online": ONLINE, "first": FIRST, "anew": ANEW}
    curves |= {name: losses(make, VALUES, START) for name, make in arms.items()}
    table: dict[str, Any] = {}
    for i, (rate, beta) in enumerate(PAIRS):
        row = table.setdefault(f"{rate:.4g}", {})
        for name, found in curves.items():
            ratio = found[i] / found[i, 0]
            below = np.flatnonzero(ratio < SOLVED)
            label = name if name in ALONE else f"{name} {beta:g}"
            row[label] = {"steps": int(below[0]) if len(below) else None, "last": float(ratio[-1])}
    circle = np.full(2, VALUES[1])
    plain, turning = (losses(make, circle, START) for make in (PLAIN, ONLINE))
    return {"table": table, "circle": float(np.max(np.abs(turning - plain) / plain[:, :1]))}, curves


def run_arms(arms: dict[str, Arm], group: Group, key: Key[Array, ""]) -> dict[str, Runs]:
    """Run all arms on the tasks of a group, those after others whose angles they copy the sizes of."""
    runs: dict[str, Runs] = {}
    for name, arm in arms.items():
        steps = 2 * group.steps if arm.twice else group.steps
        sizes = _sizes(runs[arm.sizes_of]) if arm.sizes_of else 0.0
        runs[name] = run_arm(arm.make, arm.hyper, group, key, steps=steps, sizes=sizes, timings=1)
    return runs


def ends(ran: Runs) -> Float[np.ndarray, "seeds tasks 2"]:
    """First and last losses, since arms may differ in length.

    A run that has diverged counts as infinite, so that two such runs are a tie.

    >>> ends(Runs(np.array([[[1.0, 3.0, 20.0]]]), {}, {}, 0.1)).tolist()
    [[[1.0, inf]]]
    """
    found = ran.losses[..., [0, -1]]
    lost = ~(found[..., 1:] <= DIVERGED * found[..., :1])
    return np.where(lost & np.array([False, True]), np.inf, found)


def described(arms: dict[str, Arm], runs: dict[str, Runs]) -> dict[str, dict[str, Any]]:
    """The statistics of all arms of a group over all runs, and of their teleports."""
    found = compare({name: ends(ran) for name, ran in runs.items()}, REFERENCES, runs["gd"].runs)
    last = {name: np.nan_to_num(ran.losses[..., -1], nan=np.inf) for name, ran in runs.items()}
    for name, ran in runs.items():
        size, farther = _sizes(ran), ran.recorded["farther"]
        moved = (size > 0) & np.isfinite(farther)
        with np.errstate(invalid="ignore"):
            away = np.sum((farther > 1e-6) & moved, axis=-1) / np.sum(moved, axis=-1)
        found[name] |= facts(ran) | {
            "not_worse": share(last[name] <= last["gd"]),
            "steps": ran.steps,
            "farther": average(away[np.isfinite(away)]),
            "rejected": average(np.mean(ran.recorded.get("outcome", np.zeros(size.shape)) > 0, axis=-1)),
            "size": middle(np.mean(size, axis=-1)),
            "hyperparameters": _named(arms[name]),
        }
        found[name]["gradient_evaluations"] *= 1.0 + (arms[name].make is ANEW)
        if "there" in ran.recorded:
            found[name] |= _angles(ran, arms[name])
    return found


def _sizes(ran: Runs) -> Float[np.ndarray, "seeds tasks steps"]:
    """Norms of the coordinates of all teleports; zero where they are not finite."""
    size = np.abs(ran.recorded.get("algebra", np.zeros(ran.recorded["length"].shape)))
    return np.nan_to_num(size.astype(float), posinf=0.0)


def _named(arm: Arm) -> dict[str, float]:
    """The hyperparameters of an arm by name, without a learning rate that differs from task to task."""
    named = {"rate": arm.hyper["rate"] if arm.hyper["pace"] == UNIT else 0.0, "momentum": arm.hyper["heavy"]}
    named[NUMBERS[arm.make.kind]] = arm.hyper["momentum"]
    return {name: float(value) for name, value in named.items() if value}


def _angles(ran: Runs, arm: Arm) -> dict[str, Any]:
    """Degrees between the last point and the short axis, where level sets are circles, before and after the
    last step, and the share of runs where every update of the angle has the sign that the theory gives it."""
    values, axes = np.linalg.eigh(ran.measured["matrix"].astype(float))
    axes[..., 1] *= np.linalg.det(axes)[..., None]
    # z = diag(l)^(1/2) Q' x after the teleport of every step.
    turned = np.einsum("stji,stpj->stpi", axes, ran.recorded["there"].astype(float))
    z = np.sqrt(values)[..., None, :] * turned
    rate = arm.hyper["rate"] * ran.measured["rates"][..., arm.hyper["pace"], None].astype(float)
    keep = 1 - 2 * rate * values
    found: dict[str, Any] = {}
    for name, end in {"angle": z[..., -1, :], "angle_after": keep * z[..., -1, :]}.items():
        size = np.degrees(np.arctan2(np.abs(end[..., 0]), np.abs(end[..., 1])))
        found |= {name: middle(size), f"{name}_aligned": share(size < 5)}
    if arm.make.kind in ("online", "anew"):
        mu = keep if arm.make.order == 1 else keep**2
        product = z[..., :-1, 0] * z[..., :-1, 1]
        slope = (mu[..., 1:] - mu[..., :1]) * product
        change = np.sign(arm.hyper["momentum"]) * np.diff(ran.recorded["algebra"], axis=-1)
        found["signs"] = share(np.all(change * slope <= 0, axis=-1))
        found["toward_short"] = average(np.mean(change * np.sign(product) >= 0, axis=-1))
    return found
