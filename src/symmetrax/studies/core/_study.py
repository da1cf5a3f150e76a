"""A study as data: which arms meet which tasks, how long they are trained, and which claims that decides."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from symmetrax.studies.core._arm import Control, Learned, Tuned
from symmetrax.studies.core._digest import digest
from symmetrax.studies.core._meta_training import Budget
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._families import make_family

Arm = Learned | Control | Tuned
_DEFINED = AbstractTaskFamily | Learned | Control | Tuned


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claim that the arm `first` ends at a lower loss than `second`; with `lower=False`, at a higher one.

    In `first`, `second` and `text`, "{chosen}" is the arm that was chosen for the family (see `Study`).

    >>> Claim("teleport", "vanilla", "a learned teleport helps").source
    'ours'
    """

    first: str
    second: str
    text: str
    source: str = "ours"
    lower: bool = True

    def about(self, chosen: str) -> "Claim":
        """The claim with the name of the chosen arm."""
        words = {
            name: getattr(self, name).replace("{chosen}", chosen) for name in ("first", "second", "text")
        }
        return dataclasses.replace(self, **words)


#: Draws a picture into a folder of a run, from `results.json` and the arrays beside it.
Figure = Callable[[pathlib.Path, dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment: arms trained or tuned on families of tasks, and compared on tasks that none has seen.

    Every family gives a group of results for each horizon. All arms of a group meet the same tasks: `tasks`
    of them for each of `seeds` meta-seeds. A learned arm is trained anew for each meta-seed; a tuned arm gets
    hyperparameters for each horizon, from `tuning_tasks` tasks of the training stream.

    **Arguments:** `families` are families or names that `make_family` knows, or a function of the study that
    returns them, where they need data that are read when the study runs. `arms` are `Learned`, `Tuned`
    and `Control` arms, or a function of the study and a family that returns them, where they depend on it; so
    may be `horizons`, and `claims` a function of the study and the name of a family. `references` name the
    arms that all others are compared with, at first the one of the tables. `horizons` are the numbers of
    steps after which losses are compared, by default those of training. `tests(study, family)` are further
    families on which the arms of `family` are run, by name. `measure(task, params)` is evaluated where the
    runs end; with `tuned_by`, the name of a value that it measures, arms are tuned by the median of that in
    place of the last loss. `look` is evaluated at every step of learned arms (see `run_many`).
    `analyse(run)` returns further results, `figures` draw them, and `tables(study, results)` are printed with
    them. A study that does not compare arms on families of tasks has neither, and does everything in these
    three. `settings` holds
    whatever else the functions of the study read; like all numbers here it is written to `config.json`, and a
    folder is resumed only with equal ones. `quick` are the fields that the preset "quick" replaces.

    `tasks_of(study, family)`, where tasks of some families or tests are expensive, is the number that run
    there in place of `tasks`; it is also the most that arms are tuned on there.

    One of the learned arms `candidates` is chosen for each family, by `quality` on a stream of tasks that
    nothing else is reported for; on it the arms `validated` run too. The choice and the claims are about the
    horizons `judged` (by default all). `points`, for long runs, are the steps whose losses are kept.

    >>> import optax, symmetrax as sx
    >>> arms = tuple(Tuned(str(r), lambda h, task: optax.sgd(h["rate"]), rates=(r,)) for r in (0.01, 0.05))
    >>> study = Study("rates", "Which rate is better?", ("booth",), arms, quick={"seeds": 2})
    >>> study.preset("quick").seeds, [family.name for family in study.made()]
    (2, ['booth'])
    """

    name: str
    title: str
    families: (
        Sequence[str | AbstractTaskFamily] | Callable[["Study"], Sequence[str | AbstractTaskFamily]]
    ) = ()
    arms: Sequence[Arm] | Callable[["Study", AbstractTaskFamily], Sequence[Arm]] = ()
    references: tuple[str, ...] = ()
    claims: Iterable[Claim] | Callable[["Study", str], Iterable[Claim]] = ()
    budget: Budget = Budget()  # noqa: RUF009 (frozen)
    seed: int = 0
    seeds: int = 8
    tasks: int = 100
    tuning_tasks: int = 100
    tasks_of: Callable[["Study", AbstractTaskFamily], int] | None = None
    horizons: tuple[int, ...] | Callable[["Study", AbstractTaskFamily], tuple[int, ...]] = ()
    parts: int | None = 2
    watch: tuple[str, ...] = ("algebra", "loss_change", "outcome")
    tests: Callable[["Study", AbstractTaskFamily], Mapping[str, AbstractTaskFamily]] | None = None
    measure: Callable[[AbstractTask, Any], dict[str, Array]] | None = None
    tuned_by: str = ""
    look: Callable[..., dict[str, Array]] | None = None
    candidates: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    judged: tuple[int, ...] = ()
    points: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
    analyse: Callable[[Any], dict[str, Any]] | None = None
    figures: Sequence[Figure] = ()
    tables: Callable[["Study", dict[str, Any]], Iterable[Any]] | None = None
    settings: Any = None
    quick: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        fields = {field.name for field in dataclasses.fields(self)}
        if unknown := [name for name in self.quick if name not in fields]:
            raise ValueError(
                f"The study {self.name!r} has no field {unknown[0]!r} for the preset quick to replace: the "
                f"fields are {', '.join(sorted(fields))}."
            )
        for name in ("seeds", "tasks", "tuning_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"A study needs at least one of its {name}, got {getattr(self, name)}.")

    def preset(self, name: str, seed: int = 0) -> "Study":
        """The study under a preset, "full" or "quick", with another seed of all random draws."""
        return dataclasses.replace(self, seed=seed, **(self.quick if name == "quick" else {}))

    def made(self) -> list[AbstractTaskFamily]:
        """The families."""
        families = self.families(self) if callable(self.families) else self.families
        return [make_family(family) if isinstance(family, str) else family for family in families]

    def arms_on(self, family: AbstractTaskFamily) -> list[Arm]:
        """The arms that meet a family. Raises ValueError if names repeat, or a control's arm is missing."""
        arms = list(self.arms(self, family) if callable(self.arms) else self.arms)
        names = [arm.name for arm in arms]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"Two arms of the study {self.name!r} have the name {repeated[0]!r}: rename one."
            )
        own = [arm.name for arm in arms if not isinstance(arm, Control)]
        for arm in arms:
            if isinstance(arm, Control) and arm.of not in own:
                raise ValueError(
                    f"The control {arm.name!r} is of {arm.of!r}, which is no learned or tuned arm of the "
                    f"study {self.name!r}: these are {', '.join(own) or 'none'}."
                )
        return arms

    def horizons_on(self, family: AbstractTaskFamily) -> tuple[int, ...]:
        """The horizons of a family. Raises ValueError for other things than numbers of steps."""
        horizons = tuple(self.horizons(self, family) if callable(self.horizons) else self.horizons)
        horizons = horizons or (self.budget.steps,)
        if any(type(steps) is not int or steps < 1 for steps in horizons):
            raise ValueError(f"`horizons` must be numbers of steps of at least 1, got {horizons!r}.")
        return horizons

    def tasks_on(self, family: AbstractTaskFamily) -> int:
        """The number of unseen tasks of a family for each meta-seed."""
        return self.tasks if self.tasks_of is None else self.tasks_of(self, family)

    @property
    def against(self) -> tuple[str, ...]:
        """The arms that all others are compared with: `references`, or else the first arm."""
        return self.references or tuple(arm.name for arm in self.arms_on(self.made()[0])[:1])

    def claims_on(self, family: str) -> list[Claim]:
        """The claims about a family."""
        return list(self.claims(self, family) if callable(self.claims) else self.claims)

    def identity(self) -> dict[str, Any]:
        """A folder is resumed if it agrees on this: numbers and words, and digests of definitions."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        skipped = ("name", "title", "quick", "claims", "figures", "analyse", "tables")
        return {name: _plain(value) for name, value in own.items() if name not in skipped}


def _plain(value: Any) -> Any:
    """A value of a study as JSON: definitions (arms, families, functions) have a digest beside their name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if any(isinstance(item, _DEFINED) for item in value):
            return {getattr(item, "name", item): digest(item) for item in value}
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, _DEFINED):
        return f"{value.name} {digest(value)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return f"{getattr(value, '__name__', type(value).__name__)} {digest(value)}"
