"""`transfer`: symmetries of a small copy of a model, carried to the full one and certified there."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._text import listed
from symmetrax.discovery._certify import symmetry_of
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._find import carry_out
from symmetrax.discovery._found import Found
from symmetrax.discovery._leaves import is_searched
from symmetrax.discovery._plan import Plan
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._report import Discovery
from symmetrax.discovery._scope import GROUPS
from symmetrax.discovery._twin._carried import Carried, Twin
from symmetrax.discovery._twin._names import Names
from symmetrax.discovery._twin._solve import Unsolved
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._paths import named_shapes


def transfer(
    found: Iterable[Found],
    loss: Callable[..., Array],
    params: PyTree,
    key: Key[Array, ""],
    *,
    batch: Any = None,
    heads: int | Sequence[int] | None = None,
    budget: int | None = None,
    trials: int = 3,
) -> Discovery:
    """Carries the symmetries of a small twin of a model to the full one, and certifies them there.

    Searching a large model with gradients takes long. Make a twin of it from the same configuration, with
    one or two layers and small widths, search that, and transfer what was found: about three gradients of the
    large loss for each kind of group, and a few for checks.

    Arrays are matched by pattern: numbers in paths (`blocks.0.w`, `layers_0.w`) are placeholders wherever the
    two models have different ones. A space of one layer becomes one space per layer, and a space that reaches
    beyond the layers, such as the stream, becomes one space of all of them. The lengths of spaces, indices
    and segments are solved for from the shapes of the large arrays and what the specs have in common.

    **Arguments:** `found` is the discovery of the twin (or some of it); approximate symmetries are not
    carried. `loss`, `params`, `key`, `batch`, `budget` and `trials` are those of the large model, as for
    `find_symmetries`. `heads` is the number of heads of the large model, or several (of queries and of keys),
    which the shapes leave open where heads are merged with their entries in one axis.

    **Returns** a `Discovery` of the large model. Its notes list what was not carried, and why: no array of
    that pattern, lengths that do not fit, or a certificate that failed. Raises ValueError if no pattern fits,
    or if the lengths depend on the number of heads and `heads` is not given; and as `find_symmetries` does.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> def model(layers, width):
    ...     return {"blocks": [{"a": jnp.ones((2, width)), "b": jnp.ones((width, 2))} for _ in range(layers)]}
    >>> def loss(p, x):
    ...     for block in p["blocks"]:
    ...         x = x + jax.nn.relu(x @ block["a"]) @ block["b"]
    ...     return jnp.mean((x - 1) ** 2)
    >>> batch = lambda key: jax.random.normal(key, (8, 2))
    >>> only = {"groups": [sx.groups.PositiveDiagonal], "method": "program"}
    >>> twin = sx.find_symmetries(loss, model(1, 3), jax.random.key(0), batch=batch, **only)
    >>> large = transfer(twin, loss, model(2, 8), jax.random.key(1), batch=batch)
    >>> for one in large:
    ...     print(one.group, one.certificate.outcome, dict(one.symmetry.specs))
    PositiveDiagonal(8) exact {'blocks.0.a': '_ s0', 'blocks.0.b': 's0* _'}
    PositiveDiagonal(8) exact {'blocks.1.a': '_ s1', 'blocks.1.b': 's1* _'}
    """
    check_key(key)
    known = tuple(found)
    exact = tuple(one for one in known if one.certificate.holds and isinstance(one.group, GROUPS))
    if not exact:
        raise ValueError("There is nothing to transfer: the discovery of the twin has no exact symmetry.")
    carried = _Carry.of(exact, params, heads)
    groups = tuple(group for group in GROUPS if any(isinstance(one.group, group) for one in exact))
    plan = Plan.of(params, groups, heads, trials, questions=[carried])
    result = carry_out(plan, loss, params, key, batch=batch, budget=budget)
    notes = list(carried.notes)
    if left := [one.name for one in known if one not in exact]:
        notes.insert(0, f"Not carried, since they hold only approximately in the twin: {listed(left)}.")
    made = {_made(one.group, one.symmetry.specs) for one in result}
    failed = [
        text
        for options, text in carried.spaces
        if made.isdisjoint(_made(one.group, one.specs) for one in options)
    ]
    if failed:
        notes.append(f"Carried, but certificates failed or were beyond the budget: {listed(failed)}.")
    # Nothing was searched for, so that nothing is known to be absent.
    absent = tuple(sorted(group.__name__ for group in groups))
    return dataclasses.replace(result, notes=(*result.notes, *notes), unfinished=absent)


@dataclasses.dataclass(frozen=True, eq=False)
class _Carry(Question):
    """The question whether the spaces of a twin are those of the large model."""

    spaces: tuple[tuple[tuple[Carried, ...], str], ...]
    notes: tuple[str, ...]
    finds = GROUPS

    @classmethod
    def of(cls, found: Sequence[Found], params: PyTree, heads: int | Sequence[int] | None) -> "_Carry":
        given = named_shapes(eqx.filter(params, is_searched))
        shapes = {path: leaf.shape for path, leaf in given.items()}
        small = list(dict.fromkeys(path for one in found for path in one.symmetry.specs))
        names = Names(small, shapes)
        missing = [path for path in small if names.missing(path)]
        if len(missing) == len(small):
            raise ValueError(
                f"No array of the large model answers to one of the twin: it has {listed(list(shapes), 3)}, "
                f"the twin {listed(small, 3)}. Make both from one configuration, with the same names."
            )
        twin = Twin(found, shapes, None if heads is None else (heads,) if isinstance(heads, int) else heads)
        spaces: dict[tuple, tuple[tuple[Carried, ...], str]] = {}
        notes = [f"No array of the large model answers to {listed(missing)}."] if missing else []
        for k, one in enumerate(found):
            for choices in names.choices(one.symmetry.specs):
                options: list[Carried] = []
                reason = ""
                for choice in choices:
                    try:
                        options += _expressible(twin.carried(k, names, choice), given)
                    except (Unsolved, ValueError) as error:
                        if isinstance(error, Unsolved) and error.heads:
                            raise ValueError(
                                f"The lengths of {one.name}, {one.group} of the twin, are open: {error}. "
                                "Pass `heads=`, the number of heads of the large model, or several."
                            ) from None
                        reason = reason or f"Not carried: {one.name}, {one.group} of the twin: {error}."
                if options:
                    spaces.setdefault(options[0].key, (tuple(options), f"{one.group} of {_first(options)}"))
                elif reason and reason not in notes:
                    notes.append(reason)
        return cls(tuple(spaces.values()), tuple(notes))

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        for group in GROUPS:
            here = [options for options, _ in self.spaces if isinstance(options[0].group, group)]
            if here:
                yield Answer(here, likely=True)


def _expressible(options: Sequence[Carried], given: dict[str, jax.ShapeDtypeStruct]) -> list[Carried]:
    """The options themselves; raises ValueError if one does not fit the arrays."""
    for one in options:
        symmetry_of(*one.named(0), given)
    return list(options)


def _made(group: AbstractGroup, specs: Iterable[str]) -> tuple:
    """A space without its names: its group, and the arrays on which it acts."""
    return type(group), group.size, group.lengths, frozenset(specs)


def _first(options: Sequence[Carried]) -> str:
    return next(iter(options[0].specs))
