"""A study's arms on one family: how each is trained or tuned, and run on all tests."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax.learned._artifact import save
from symmetrax.learned._update_rule import UpdateRule
from symmetrax.rollout._unroll import MakeTransform
from symmetrax.studies.core._arm import Control, Learned, Tuned
from symmetrax.studies.core._artifacts import usage
from symmetrax.studies.core._choice import validation
from symmetrax.studies.core._meta_training import Trained, train
from symmetrax.studies.core._played import OWN, VALIDATION, Played
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._run_facts import due, facts
from symmetrax.studies.core._runs import Runs, joined, resumable, run_many
from symmetrax.studies.core._statistics import summary
from symmetrax.studies.core._tuning import for_seeds, tune
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily


class Match:
    """A study's arms on one family: training and tuning them, and running them on all tests."""

    def __init__(self, run: Run, family: AbstractTaskFamily):
        self.run, self.study, self.family = run, run.study, family
        self.arms = run.study.arms_on(family)
        self.horizons = run.study.horizons_on(family)
        self.steps = max(self.horizons)
        self.tests = {OWN: family}
        #: What `tune` found, by optimizer, name of the family, and shape.
        self._found: dict[Any, dict[int, dict[str, dict[str, float]]]] = {}
        if run.study.tests is not None:
            self.tests |= run.study.tests(run.study, family)

    def played(self) -> Played:
        """Train or tune all arms and run them; parts that an earlier process made are kept."""
        runs: dict[tuple[str, str, int], Runs] = {}
        cards: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            if isinstance(arm, Control):
                continue  # with the arm that it is of
            controls = [c for c in self.arms if isinstance(c, Control) and c.of == arm.name]

            def compute(arm: Learned | Tuned = arm, controls: list[Control] = controls):
                return self.learned(arm, controls) if isinstance(arm, Learned) else self.tuned(arm, controls)

            found, own = resumable(self.run.folder, f"{self.family.name}-{arm.name}", compute)
            runs |= {_place(name): ran for name, ran in found.items()}
            cards |= own
        order = {arm.name: k for k, arm in enumerate(self.arms)}
        runs = dict(sorted(runs.items(), key=lambda item: order[item[0][1]]))
        return Played(runs, {arm.name: cards[arm.name] for arm in self.arms}, self.horizons)

    def learned(self, arm: Learned, controls: Sequence[Control]) -> tuple[dict[str, Runs], dict[str, Any]]:
        """Train an arm; run it and its controls."""
        run = self.run
        named = dataclasses.replace(
            arm, name=f"{self.family.name}-{arm.name}", family=arm.family or self.family
        )
        trained = train(named, run.budget(arm), run.streams, run.folder, run.reporter)
        run.reporter.note(f"run {named.name} and {len(controls)} controls on unseen tasks")
        rule = arm.rule_for(self.steps)
        shared = arm.wrapped is not Learned.wrapped  # with controls that teleport: one program is cheaper
        if not shared and not (trained.networks.proposes_elements and len(due(rule, self.steps))):
            rule = dataclasses.replace(rule, schedule=())  # the same, without the cost of a symmetry
        plain = arm.wrapped(trained.networks)
        uses: dict[str, tuple[MakeTransform, PyTree, float]] = {arm.name: (rule, plain, arm.extra)}
        described: dict[str, dict[str, Any]] = {}
        for control in controls:
            changed = control.change(plain, functools.partial(self._seen, rule, plain, named.family))
            described[control.name] = control.describe(changed)
            extra = arm.extra if control.extra is None else control.extra
            uses[control.name] = control.rule(rule), changed, extra
        runs, cards = {}, {}
        for name, (how, networks, extra) in uses.items():
            tests: dict[str, tuple[AbstractTaskFamily, Any]] = {
                test: (named.family if test == OWN else tasks_of, None)
                for test, tasks_of in self.tests.items()
            }
            if name in self.study.candidates + self.study.validated:
                tests[VALIDATION] = named.family, validation(run.streams)
            for test, (tasks_of, keys) in tests.items():
                ran = self.roll_out(how, networks, tasks_of, keys, look=self.study.look)
                if test != VALIDATION:
                    _note(cards, name, test, _facts(ran, how, extra))
                runs |= dict.fromkeys((_name(test, name, steps) for steps in self.horizons), self._kept(ran))
            own_card = {"networks_of": arm.name, "skipped_windows": trained.facts["skipped_windows"]}
            cards[name] |= trained.facts if name == arm.name else own_card | described[name]
        if arm.saved:
            self._save(named, arm.name, trained, runs[_name(OWN, arm.name, self.steps)])
        return runs, cards

    def tuned(self, arm: Tuned, controls: Sequence[Control]) -> tuple[dict[str, Runs], dict[str, Any]]:
        """Tune an arm for every horizon and shape, and run each choice; so do its controls, with the same."""
        self.run.reporter.note(f"{self.family.name}: tune and run {arm.name}")
        best = {
            test: self._best(arm, tasks_of)
            for test, tasks_of in self.tests.items()
            if arm.anew or test == OWN
        }
        chosen = {test: _chosen(by) for test, by in best.items()}
        runs: dict[str, Runs] = {}
        cards: dict[str, dict[str, Any]] = {}
        watch = _watched(arm)
        for name, make in {arm.name: arm.make, **{c.name: c.rule(arm.make) for c in controls}}.items():
            for test, tasks_of in self.tests.items():
                made: dict[str, Runs] = {}
                for steps, hyper in best.get(test, best[OWN]).items():
                    if str(hyper) not in made:
                        same = {
                            shape: for_seeds({**arm.fixed, **point}, self.study.seeds)
                            for shape, point in hyper.items()
                        }
                        # Tests of other shapes have the hyperparameters of the first one.
                        same |= {s: next(iter(same.values())) for s in tasks_of.shapes if s not in same}
                        ran = self.roll_out(make, same, tasks_of, watch=watch)
                        made[str(hyper)] = self._kept(ran)
                        # Only at first: at the optimum a line search tries in vain.
                        trials = sum(np.mean(ran.recorded[x][..., : self.horizons[0]]) for x in watch)
                        found = _facts(ran, None, float(arm.extra(self._example) + trials))
                        _note(cards, name, test, found | {"hyperparameters": chosen.get(test, chosen[OWN])})
                    runs[_name(test, name, steps)] = made[str(hyper)]
        return runs, cards

    def _best(self, arm: Tuned, family: AbstractTaskFamily) -> dict[int, dict[Any, dict[str, float]]]:
        """The hyperparameters of an arm on a family, by horizon and shape.

        All arms of the same optimizer are tuned together, once.
        """
        best: dict[int, dict[Any, dict[str, float]]] = {steps: {} for steps in self.horizons}
        arms = [other for other in self.arms if isinstance(other, Tuned) and other.make is arm.make]
        tasks = self.study.tuning_tasks
        if self.study.tasks_of is not None:
            tasks = min(tasks, self.study.tasks_on(family))
        for shape in family.shapes:
            place = arm.make, family.name, shape
            if place not in self._found:
                size, parts = self._size(family)
                self._found[place] = tune(
                    arms,
                    family,
                    self.run.streams.tune,
                    horizons=self.horizons,
                    tasks=tasks,
                    shape=shape,
                    measure=self.study.measure,
                    by=self.study.tuned_by,
                    watch=_watched(arm),
                    block=(self.study.seeds, size // (parts or 1)),
                )
            for steps, by_arm in self._found[place].items():
                best[steps][shape] = by_arm[arm.name]
        return best

    def _kept(self, ran: Runs) -> Runs:
        return ran if self.study.points is None else ran.at(self.study.points(self.horizons))

    @functools.cached_property
    def _example(self) -> AbstractTask:
        """A task of the family, compiled as a whole: to draw it op by op takes longer."""
        drawn = eqx.filter_jit(lambda family, key: family.draw(key))(self.family, jax.random.key(0))
        return self.family.task(drawn, self.family.shapes[0])

    def _size(self, family: AbstractTaskFamily) -> tuple[int, int | None]:
        """The number of unseen tasks of each seed, and of the parts in which they run."""
        tasks, parts = self.study.tasks_on(family), self.study.parts
        # Two parts time the second; an odd number of tasks runs twice.
        return tasks, None if parts and tasks % parts else parts

    def roll_out(
        self,
        make: MakeTransform,
        networks: PyTree,
        family: AbstractTaskFamily,
        keys: Key[Array, " seeds"] | None = None,
        shapes: tuple[Any, ...] = (),
        **options: Any,
    ) -> Runs:
        """Run every seed's network on unseen tasks of a family, of all its shapes (or some) side by side.

        `networks` may be a dict with those for each shape. `options` replace the study's own, of `run_many`.
        """
        study, keys = self.study, self.run.streams.test if keys is None else keys
        tasks, parts = self._size(family)
        given: dict[str, Any] = {"steps": self.steps, "tasks": tasks, "parts": parts}
        given |= {"watch": study.watch, "measure": study.measure, **options}
        shapes = shapes or family.shapes
        by_shape = isinstance(networks, Mapping) and all(shape in networks for shape in shapes)
        return joined(
            [
                run_many(make, networks[s] if by_shape else networks, family, keys, shape=s, **given)
                for s in shapes
            ]
        )

    def _seen(
        self, rule: UpdateRule, networks: PyTree, family: AbstractTaskFamily, shape: Any = None
    ) -> Runs:
        """The runs of an arm on the training stream, from which controls take their constants."""
        keys = jax.random.split(jax.random.fold_in(self.run.streams.tune, 2), self.study.seeds)
        parts = max((self.study.parts or 1) // 2, 1)
        tasks = max(self.study.tasks * parts // (self.study.parts or 1), 1)
        only = {} if shape is None else {"shapes": (shape,)}
        return self.roll_out(rule, networks, family, keys, tasks=tasks, parts=parts, **only)

    def _save(self, arm: Learned, name: str, trained: Trained, ran: Runs) -> None:
        """Write the network of the first meta-seed, with what it was trained on and how it did."""
        budget = self.run.budget(arm)
        steps = due(arm.rule, budget.steps)
        training = {
            "family": arm.family.name,
            "arm": name,
            "horizon": budget.steps,
            "unroll": budget.unroll,
            "runs": budget.runs,
            "seed": self.study.seed,
            "schedule": None if len(steps) == budget.steps else steps.tolist(),
            "guarded": arm.rule.teleports and arm.rule.guard is not None,
            "use": usage(arm.rule_for(self.steps)),
            **({"stages": list(budget.stages)} if budget.stages else {}),
        }
        did = summary(ran.losses, ran.runs)
        evaluation = {"runs": did["runs"], "diverged": did["diverged"], "steps": self.steps}
        evaluation["loss_median"] = did["loss_median"][-1]
        evaluation |= {f"test_{key}": float(np.mean(values)) for key, values in ran.measured.items()}
        path = self.run.folder.path / "artifacts" / f"{arm.name if self.run.several else name}.safetensors"
        # On the host: on a device the slice of every shape is a program.
        first = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x)[0]) if eqx.is_array(x) else x, trained.networks
        )
        save(first, path, training=training, evaluation=evaluation)


def _watched(arm: Tuned) -> tuple[str, ...]:
    """What runs of an arm record of its optimizer's state."""
    return () if arm.counts is None else (arm.counts,)


def _facts(ran: Runs, how: MakeTransform | None, extra: float | int) -> dict[str, Any]:
    """The entries of `results.json` for an arm beside its losses."""
    found = facts(ran, how if isinstance(how, UpdateRule) else None)
    found["gradient_evaluations"] *= 1.0 + extra
    return found | {f"test_{name}": float(np.mean(values)) for name, values in ran.measured.items()}


def _chosen(best: dict[int, dict[Any, dict[str, float]]]) -> dict[str, Any]:
    """Hyperparameters as JSON, by horizon, and by shape if there are several."""
    return {
        str(steps): next(iter(by.values())) if len(by) == 1 else {str(s): x for s, x in by.items()}
        for steps, by in best.items()
    }


def _note(cards: dict[str, dict[str, Any]], arm: str, test: str, found: dict[str, Any]) -> None:
    """Add facts about an arm on a test; those on other tests than the first are apart."""
    card = cards.setdefault(arm, {})
    card |= found if test == OWN else {"tests": {**card.get("tests", {}), test: found}}


def _name(test: str, arm: str, steps: int) -> str:
    return f"{test}@{arm}@{steps}"


def _place(name: str) -> tuple[str, str, int]:
    test, arm, steps = name.split("@")
    return test, arm, int(steps)
