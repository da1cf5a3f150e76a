"""Learned teleports in other groups than the rotations of the plane: SO(n), scalings, permutations.

The arms are those of `_orbit_arms.py`. Permutations have no algebra: no teleport along them can be
learned, and what a random one does to an optimizer's memory is measured instead.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._orbit import OrbitLSTM
from symmetrax.learned._transformation import LearnedState
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.rollout._unroll import MakeTransform
from symmetrax.studies import plots_groups
from symmetrax.studies._group_families import (
    RotationFamily,
    dimensions,
    group_family,
    invariance,
)
from symmetrax.studies._orbit_arms import (
    CANDIDATES,
    GUARD,
    SLOPES,
    VANILLA,
    VARIANTS,
    Training,
    as_used,
    orbit_arm,
    quality,
    trained_arm,
    validation,
)
from symmetrax.studies.core._arm import Build, Learned, Tuned, switched_off
from symmetrax.studies.core._console import Reporter, arms_table, number, titled_table, verdict_table
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._hand_made import MOMENTA, adam, descent
from symmetrax.studies.core._runs import Runs, facts, resumable, run_many
from symmetrax.studies.core._statistics import Interval, compare, log_ratios, verdict
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._tuning import tune
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.teleportation._probe import teleport_gain
from symmetrax.teleportation._transport import carry

SOURCE = "asked in a review of arXiv:2504.15399"
#: Beside losses, what is kept of every step.
WATCH = ("algebra", "gate", "outcome", "loss_change")

#: What arms did at each horizon, and what to tell of them.
ByHorizon = dict[str, dict[int, Runs]]
Cards = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. `runs` shortens the training of families whose group elements are dear.

    Left out: the whole of SO(10) and SO(20), with 45 and 190 angles. One run of 64 tasks and 20 steps would
    take seconds to minutes on two cores. Learned arms look along a torus there, `PlaneTurns`, of 5 and 10
    angles; of the whole groups only the headroom is `probed`.

    >>> config("groups", "quick").families
    ('scaling-3', 'permutation-4')
    """

    seed: int = 0
    seeds: int = 4
    tasks: int = 250
    tuning_tasks: int = 128
    families: tuple[str, ...] = ("so-2", "so-5", "torus-10", "torus-20", "scaling-3", "permutation-4")
    probed: tuple[str, ...] = ("so-10", "so-20")
    candidates: tuple[str, ...] = CANDIDATES
    horizons: tuple[int, ...] = (12, 50)
    training: Training = dataclasses.field(default_factory=Training)
    runs: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"so-5": 300, "torus-10": 500, "torus-20": 400}
    )
    trials: int = 200
    samples: int = 64

    def trained(self, family: str) -> Training:
        """How the arms of a family are trained, all of them equally."""
        return dataclasses.replace(self.training, runs=self.runs.get(family, self.training.runs))

    @property
    def steps(self) -> int:
        """How long unseen runs are."""
        return max(self.horizons)


def config(name: str, preset: str = "full", seed: int = 0) -> Config:
    """The settings under a preset: "full", or "quick" with few families, seeds, tasks and runs.

    >>> config("groups").horizons
    (12, 50)
    """
    if preset == "full":
        return Config(seed=seed)
    return Config(
        seed=seed,
        seeds=2,
        tasks=60,
        tuning_tasks=64,
        families=("scaling-3", "permutation-4"),
        probed=(),
        candidates=("crest-near",),
        training=Training(runs=150, tasks=32),
        trials=50,
        samples=32,
    )


def arm(name: str, family: AbstractTaskFamily, training: Training) -> Learned:
    """The arm called "vanilla" or like one of `VARIANTS`, as large as the tasks and the algebra are.

    Where the algebra has no coordinates vanilla sees nothing of the orbit. Raises ValueError for a learned
    teleport there.

    >>> arm("crest", group_family("so-5"), Training()).make(jax.random.key(0)).algebra
    10
    >>> arm("crest", group_family("permutation-4"), Training())
    Traceback (most recent call last):
    ValueError: No teleport can be learned on permutation-4: its symmetry has no algebra. Use "vanilla", ...
    """
    size, coordinates = dimensions(family)
    variant = None if name == VANILLA else VARIANTS[name]
    if not coordinates:
        if variant is not None:
            raise ValueError(
                f"No teleport can be learned on {family.name}: its symmetry has no algebra. "
                f'Use "{VANILLA}", got {name!r}.'
            )
        blind = Build.of(OrbitLSTM, size=size, sees=(), width=training.width)
        return dataclasses.replace(orbit_arm(name, family, training, None), make=blind)
    found = orbit_arm(name, family, training, variant, size=size, coordinates=coordinates)
    # Numbers that are arrays: arms that differ in them alone share compiled programs.
    guard = jax.tree.map(jnp.asarray, found.rule.guard)
    return dataclasses.replace(found, rule=dataclasses.replace(found.rule, guard=guard))


class Shuffled(eqx.Module):
    """`make(network, task)`, followed at every step by a random element of the task's symmetry.

    What the optimizer remembers stays as it is, or moves along if it is `carried`: averages and last steps
    do, the state of a recurrent network has no way to.

    >>> from symmetrax.rollout._unroll import unroll
    >>> task = group_family("permutation-4").task({"w": jnp.arange(4.0), "a": jnp.ones(4)})
    >>> hyper = {"rate": jnp.array(0.1), "momentum": jnp.array(0.0)}
    >>> runs = [make(hyper, task) for make in (descent, Shuffled(descent))]
    >>> plain, shuffled = (unroll(run, task, jax.random.key(0), steps=9).loss for run in runs)
    >>> bool(jnp.allclose(plain, shuffled, rtol=1e-4))
    True
    """

    make: MakeTransform
    carried: bool = eqx.field(static=True, default=False)

    def __call__(self, network: PyTree, task: AbstractTask) -> optax.GradientTransformationExtraArgs:
        inner, symmetry = optax.with_extra_args_support(self.make(network, task)), task.symmetry()
        if symmetry is None:
            raise ValueError(f"Shuffled moves along a symmetry, and {type(task).__name__} describes none.")

        def update(updates, state, params=None, *, key=None, **extra):
            if params is None or key is None:
                raise ValueError("Shuffled draws at random: call update(grads, state, params, key=...).")
            step, state = inner.update(updates, state, params, key=key, **extra)
            there = optax.tree.add(params, step)
            element = symmetry.sample(key)
            if self.carried:
                state = _carried(state, symmetry, element, there)
            return optax.tree.add(step, symmetry.displacement(element, there)), state

        return optax.GradientTransformationExtraArgs(inner.init, update)


def _carried(state: PyTree, symmetry: AbstractLieSymmetry, element: PyTree, params: PyTree) -> PyTree:
    if isinstance(state, LearnedState):
        return state._replace(previous=symmetry.transport_tangent(element, params, state.previous))
    return carry(state, symmetry, element, params)


def evaluations(name: str, family: AbstractTaskFamily) -> float:
    """Gradient evaluations of one step of an arm, its own gradient included.

    The slopes count `SLOPES` for each coordinate where the action is not linear, else nothing: one gradient
    tells those of the whole orbit. A teleport costs the guard's two losses.

    >>> [round(evaluations(name, group_family("so-5")), 1) for name in ("gd", "vanilla", "crest")]
    [1.0, 41.0, 41.7]
    """
    learned = name == VANILLA or name in VARIANTS
    slopes = 0.0
    if learned:
        like = eqx.filter_eval_shape(lambda key: family.task(family.draw(key)), jax.random.key(0))
        symmetry = like.symmetry()
        assert symmetry is not None
        slopes = 0.0 if symmetry.linear else SLOPES * dimensions(family)[1]
    return 1.0 + slopes + (GUARD if name in VARIANTS else 0.0)


def run(settings: Config, folder: RunFolder, reporter: Reporter) -> dict[str, Any]:
    """Probe, train and run on every family; write arrays and a plot; return groups and verdicts."""
    streams = Streams.of(settings.seed, settings.seeds)
    key = jax.random.fold_in(streams.tune, 4)
    results: dict[str, Any] = {"families": {}, "groups": {}, "verdicts": []}
    for name in (*settings.families, *settings.probed):
        reporter.note(f"{name}: invariance and headroom")
        results["families"][name] = probe(group_family(name), key, settings.trials, settings.samples)
    for name in settings.families:
        ran, cards = _family(name, settings, streams, folder, reporter)
        chosen, arrays = choice(cards), {}
        results["families"][name]["chosen"] = chosen
        for steps in settings.horizons:
            losses = {own: r[steps].losses for own, r in ran.items()}
            references = (VANILLA, *(own for own in losses if own.endswith("-off")))
            arms = compare(losses, references, settings.seeds * settings.tasks)
            arms = {own: {**arms[own], **cards[own][str(steps)]} for own in losses}
            results["groups"][f"{name} after {steps} steps"] = {"arms": arms}
            results["verdicts"] += verdicts(name, steps, arms, chosen)
            if "gd-shuffled" in losses:
                worst = float(np.max(np.abs(log_ratios(losses["gd-shuffled"], losses["gd"]))))
                results["families"][name].setdefault("gd_shuffled", {})[str(steps)] = worst
            arrays |= {f"{own} {steps}": x.astype(np.float32) for own, x in losses.items()}
        folder.arrays(f"losses-{name}", arrays)
        # Hundreds of compiled programs are more memory maps than a process may have.
        jax.clear_caches()
    plots_groups.draw(folder.path / "groups.png", results["groups"], VANILLA)
    return results


def show(settings: Config, results: dict[str, Any], reporter: Reporter) -> None:
    """Print the tables of a run."""
    columns = ("parameters", "angles", "invariance", "headroom", "best / here", "whole group")
    table = titled_table("what the orbits are like: medians over random starts", "family", columns)
    for name, found in results["families"].items():
        shown = [number(found[key]) for key in ("invariance", "headroom", "over_here", "reachable")]
        shown = ["" if np.isnan(x) else f"{x:.2g}" for x in shown]
        table.add_row(name, str(found["parameters"]), str(found["coordinates"]), *shown)
    reporter.print(table)
    for name, group in results["groups"].items():
        runs = next(iter(group["arms"].values()))["runs"]
        reporter.print(arms_table(f"{name}: loss, all {runs:,} unseen runs", group["arms"], VANILLA))
    reporter.print(verdict_table(results["verdicts"]))


def probe(family: AbstractTaskFamily, key: Key[Array, ""], trials: int, samples: int) -> dict[str, Any]:
    """Invariance in float64, and medians over random starts of what the orbit has to offer.

    `headroom` and `over_here` are those of `teleport_gain` for the squared gradient norm, with elements up to
    exp(1) (rotations: N(0, 1) angles), NaN where there is no algebra; `reachable` is the largest squared
    gradient norm over that at the start among *all* rotations of a sum of squares, NaN elsewhere. `refusal`
    is what the library says where there is no algebra.

    >>> found = probe(group_family("permutation-4"), jax.random.key(0), 5, 4)
    >>> found["refusal"].partition(":")[0]
    'NetworkSymmetry has no continuous part to search in'
    """
    size, coordinates = dimensions(family)
    found = {
        "parameters": size,
        "coordinates": coordinates,
        "invariance": invariance(family, key, trials),
        "headroom": float("nan"),
        "over_here": float("nan"),
        "reachable": float("nan"),
        "refusal": "",
    }

    def one(key: Key[Array, ""]) -> tuple[Array, Array]:
        draw, start, search = jax.random.split(key, 3)
        task = family.task(family.draw(draw))
        symmetry = task.symmetry()
        assert symmetry is not None
        gain = teleport_gain(task.loss, task.init(start), symmetry, search, samples=samples, guard=None)
        return gain.headroom, gain.over_here

    try:
        headroom, over_here = jax.jit(jax.vmap(one))(jax.random.split(key, trials))
    except ValueError as error:
        return found | {"refusal": str(error)}
    found |= {"headroom": float(np.median(headroom)), "over_here": float(np.median(over_here))}
    if isinstance(family, RotationFamily):
        found["reachable"] = _reachable(family, key, trials)
    return found


def _reachable(family: RotationFamily, key: Key[Array, ""], trials: int) -> float:
    """The largest there is, s^2 ||h(x)||^2 / ||A' h(x)||^2 with s the largest singular value of A."""

    def one(key: Key[Array, ""]) -> tuple[Array, Array]:
        draw, start, _ = jax.random.split(key, 3)
        h = family.draw(draw)
        u = h(family.task(h).init(start))
        return h.matrix, jnp.sum(u**2) / jnp.sum((u @ h.matrix) ** 2)

    matrices, shares = jax.jit(jax.vmap(one))(jax.random.split(key, trials))
    return float(np.median(np.linalg.norm(np.asarray(matrices), 2, axis=(1, 2)) ** 2 * np.asarray(shares)))


def _family(name: str, settings: Config, streams: Streams, folder, reporter) -> tuple[ByHorizon, Cards]:
    """What all arms of a family did, and what to tell of it, by arm and horizon."""
    family = group_family(name)
    ran: ByHorizon = {}
    recorded: Cards = {}
    names = (VANILLA, *settings.candidates) if dimensions(family)[1] else (VANILLA,)
    for own in names:
        found, cards = resumable(
            folder,
            f"{name}-{own}",
            lambda own=own: _learned(own, family, settings, streams, folder, reporter),
        )
        ran |= {key: {steps: _until(r, steps) for steps in settings.horizons} for key, r in found.items()}
        recorded |= cards
    found, cards = resumable(folder, f"{name}-tuned", lambda: _tuned(family, settings, streams, reporter))
    for key in cards:
        ran[key] = {steps: _until(found[f"{key} {steps}"], steps) for steps in settings.horizons}
    recorded |= cards
    return ran, recorded


def _learned(
    name: str, family: AbstractTaskFamily, settings: Config, streams: Streams, folder, reporter
) -> tuple[dict[str, Runs], Cards]:
    """Train an arm; run it on unseen tasks and on those of validation, and with its teleports switched off,
    or where there are none with random elements of the group."""
    own = arm(name, family, settings.trained(family.name))
    trained = trained_arm(own, settings.trained(family.name), streams, folder, reporter)
    how = as_used(own.rule, settings.steps)
    uses: dict[str, MakeTransform] = {name: how}
    if name in VARIANTS:
        uses[f"{name}-off"] = switched_off(how)
    elif not dimensions(family)[1]:
        uses |= {"vanilla-shuffled": Shuffled(how), "vanilla-shuffled-carried": Shuffled(how, carried=True)}
    common = {"steps": settings.steps, "watch": WATCH}
    ran = {
        key: run_many(use, trained.networks, family, streams.test, tasks=settings.tasks, **common)
        for key, use in uses.items()
    }
    # As many tasks as one part of the others: the same program.
    keys = validation(streams)
    seen = run_many(how, trained.networks, family, keys, tasks=settings.tasks // 2, parts=1, **common)
    evaluations_needed = evaluations(name, family)
    cards: Cards = {}
    for key, r in ran.items():
        use = uses[key]
        rule = use if isinstance(use, UpdateRule) and name in VARIANTS else None
        cards[key] = {}
        for steps in settings.horizons:
            card = facts(_until(r, steps), rule)
            del card["recorded"]
            card["gradient_evaluations"] = steps * (evaluations_needed - GUARD * key.endswith("-off"))
            cards[key][str(steps)] = card
    cards[name]["quality"] = quality(seen.losses, settings.horizons)
    for steps in settings.horizons:
        cards[name][str(steps)] |= trained.facts
    return ran, cards


def _tuned(
    family: AbstractTaskFamily, settings: Config, streams: Streams, reporter: Reporter
) -> tuple[dict[str, Runs], Cards]:
    """Gradient descent and Adam, tuned for each horizon; where there is no algebra also with random elements
    of the group. Runs are all of full length, so that horizons share programs."""
    reporter.note(f"{family.name}: tuning gradient descent and Adam")
    discrete = not dimensions(family)[1]
    ran, cards = {}, {}
    for name, make, momenta in (("gd", descent, (0.0,)), ("adam", adam, tuple(MOMENTA.tolist()))):
        arm = Tuned(name, make, momenta=momenta)
        options = {"horizons": settings.horizons, "tasks": settings.tuning_tasks}
        best = {h: found[name] for h, found in tune([arm], family, streams.tune, **options).items()}
        uses: dict[str, MakeTransform] = {name: make}
        if discrete:
            uses[f"{name}-shuffled"] = Shuffled(make)
        if discrete and name == "adam":  # descent remembers nothing
            uses[f"{name}-shuffled-carried"] = Shuffled(make, carried=True)
        for key, use in uses.items():
            cards[key] = {}
            for steps, chosen in best.items():
                hyper = {field: jnp.full(settings.seeds, value) for field, value in chosen.items()}
                options = {"steps": settings.steps, "tasks": settings.tasks, "watch": ()}
                r = run_many(use, hyper, family, streams.test, **options)
                ran[f"{key} {steps}"] = r
                card = facts(_until(r, steps)) | {"hyperparameters": chosen}
                del card["recorded"]
                cards[key][str(steps)] = card
    return ran, cards


def _until(ran: Runs, steps: int) -> Runs:
    """The first steps of runs."""
    recorded = {name: values[..., :steps] for name, values in ran.recorded.items()}
    seconds = ran.seconds * steps / ran.steps
    return dataclasses.replace(ran, losses=ran.losses[..., : steps + 1], recorded=recorded, seconds=seconds)


def choice(cards: Cards) -> str | None:
    """The learned teleport with the best `quality` on validation tasks, over all horizons, if there are any.

    >>> choice({"crest": {"quality": [0, -3.0]}, "teleport": {"quality": [2, -5.0]}, "vanilla": {}})
    'crest'
    """
    found = {name: cards[name]["quality"] for name in CANDIDATES if name in cards}
    return min(found, key=lambda name: tuple(found[name])) if found else None


def verdicts(family: str, steps: int, arms: dict[str, Any], chosen: str | None) -> list[dict[str, str]]:
    """Whether the chosen learned teleport beats vanilla and needs its teleports; without any, whether random
    elements of the group cost an optimizer something.

    >>> arms = {"vanilla-shuffled": {"versus": {"vanilla": {"log_ratio": 1.0, "low": 0.5, "high": 1.5}}}}
    >>> verdicts("permutation-4", 12, arms, None)[0]["outcome"]
    'reproduced'
    """

    def ask(ours: str, theirs: str, claim: str, **options: Any) -> dict[str, str]:
        interval = Interval(**{key: number(x) for key, x in arms[ours]["versus"][theirs].items()})
        return verdict(f"{claim}, on {family} after {steps} steps", SOURCE, interval, **options)

    if chosen is None:
        claim = "a random permutation at every step costs the learned optimizer something"
        return [ask("vanilla-shuffled", VANILLA, claim, negative=False)]
    return [
        ask(chosen, VANILLA, f"the learned teleport chosen by validation ({chosen}) beats vanilla"),
        ask(chosen, f"{chosen}-off", f"{chosen} needs its teleports at test"),
    ]
