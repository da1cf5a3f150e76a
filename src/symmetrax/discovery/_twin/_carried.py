"""The spaces of a twin on the arrays of the large model: candidates to certify."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from symmetrax.discovery._found import Found
from symmetrax.discovery._spaces import INDICES, LETTERS, Refinement
from symmetrax.discovery._twin._equalities import Equalities
from symmetrax.discovery._twin._lengths import Length, counts_of, length_of, unknowns, value
from symmetrax.discovery._twin._names import Choice, Names
from symmetrax.discovery._twin._solve import Unsolved, Values, solve
from symmetrax.groups._diagonal import AbstractGroup, Permutation
from symmetrax.symmetry._specs import Both, Entry, Merged, Node, Plain, entries, offset_of, parse, written


@dataclasses.dataclass(frozen=True)
class Carried(Refinement):
    """A space of the twin on arrays of the large model, with its lengths there.

    >>> import symmetrax as sx
    >>> space = Carried(sx.groups.Permutation(8), (0.0, 1.0), "p2", {"w": "p2 _"})
    >>> space.named(5)
    ({'p5': Permutation(size=8)}, {'w': 'p5 _'})
    """

    group: AbstractGroup
    gap: tuple[float, float]
    name: str
    specs: Mapping[str, str]

    @property
    def axes(self) -> frozenset[tuple[str, int]]:
        axes = {path: range(len(parse(text))) for path, text in self.specs.items()}
        return frozenset((path, axis) for path, here in axes.items() for axis in here)

    @property
    def key(self) -> tuple:
        """What two spaces of the twin may become alike."""
        group, specs = self.named(0)
        return str(group), *sorted(specs.items())

    def named(self, number: int) -> tuple[dict[str, AbstractGroup], dict[str, str]]:
        name = f"{LETTERS[type(self.group)]}{number}"
        indices = [index for index, _ in self.group.per]
        names = {index: f"{letter}{number}" for letter, index in zip(INDICES, indices, strict=False)}
        per = {names[index]: length for index, length in self.group.per}
        group: Any = dataclasses.replace(self.group, per=tuple(per.items()))
        specs = {path: _renamed(text, names | {self.name: name}) for path, text in self.specs.items()}
        return {name: group}, specs


def _renamed(text: str, names: Mapping[str, str]) -> str:
    def made(node: Node) -> Node:
        if isinstance(node, Entry):
            return dataclasses.replace(node, name=names[node.name])
        return node if isinstance(node, Plain) else type(node)(tuple(made(part) for part in node.parts))  # pyright: ignore[reportArgumentType]

    return written(map(made, parse(text)), offset_of(text))


def _entries(specs: Mapping[str, str]) -> list[Entry]:
    return [entry for text in specs.values() for node in parse(text) for entry in entries(node)]


class Twin:
    """What a twin's discovery says about lengths: the axes of all its specs, and what they have in common.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    >>> loss = lambda p: jnp.sum((p["a"] @ p["b"]) ** 2)
    >>> search = {"groups": [sx.groups.GeneralLinear], "method": "program"}
    >>> found = sx.find_symmetries(loss, params, jax.random.key(0), **search)
    >>> shapes = {"a": (4, 16), "b": (16, 4)}
    >>> names = Names(shapes, shapes)
    >>> (carried,) = Twin(list(found), shapes, None).carried(0, names, {})
    >>> str(carried.group), carried.specs
    ('GeneralLinear(16)', {'a': '_ g0', 'b': 'g0* _'})
    """

    def __init__(
        self, found: Sequence[Found], shapes: Mapping[str, tuple[int, ...]], heads: Sequence[int] | None
    ):
        self._found, self._shapes, self._heads = found, shapes, heads
        self._equal = Equalities()
        #: The lengths of all axes: by array and axis, from every space that says something.
        self._axes: dict[tuple[str, int], list[Length]] = {}
        self._solved: dict[tuple, list[Values]] = {}
        for k, one in enumerate(found):
            for path, text in one.symmetry.specs.items():
                nodes = parse(text)
                for axis in (axis for axis, node in enumerate(nodes) if not isinstance(node, Plain)):
                    length = length_of(nodes, axis, k, path, one.symmetry.spaces)
                    self._axes.setdefault((path, axis), []).append(length)
        # Twice, since what is bound late may align what was met early.
        for lengths in [*self._axes.values()] * 2:
            for one, other in itertools.pairwise(lengths):
                self._equal.unify(one, other)
            if len(lengths) > 2:
                self._equal.unify(lengths[0], lengths[-1])

    def carried(self, k: int, names: Names, choice: Choice) -> list[Carried]:
        """The space number k under a choice of numbers: options, or none if no array answers to its arrays.

        Raises `Unsolved` if no lengths fit, or if they depend on the number of heads.
        """
        one = self._found[k]
        images = names.images(one.symmetry.specs, choice)
        for image, path in images.items():
            axes, shape = len(parse(one.symmetry.specs[path])), self._shapes[image]
            if axes != max(len(shape), 1):
                raise Unsolved(f"{image} has shape {shape}, and {path} has {axes} axes", heads=False)
        made = []
        for values in self._values(k, names, choice, images) if images else ():
            group: Any = one.group
            per = [(index, values["index", k, index]) for index, _ in group.per]
            # A single head is no index, unless elements are picked along it, as in `g[0]`.
            picked = any(entry.index is not None for entry in _entries(one.symmetry.specs))
            gone = set() if picked else {index for index, length in per if length == 1}
            group = dataclasses.replace(group, per=tuple(pair for pair in per if pair[0] not in gone))
            if ("size", k, one.name) in values:  # pairs of units have a fixed size
                group = dataclasses.replace(group, size=values["size", k, one.name])
            if isinstance(group, Permutation) and group.size == 1:
                continue
            specs = {image: self._written(k, path, values, gone) for image, path in sorted(images.items())}
            made.append(Carried(group, one.gap, one.name, specs))
        return made

    def _values(
        self, k: int, names: Names, choice: Choice, images: Mapping[str, str]
    ) -> list[dict[tuple, int]]:
        """The lengths of a space's unknowns in the large model, by key: all solutions."""
        at = [*((path, image) for image, path in images.items())]
        # Arrays of other spaces tell lengths too: queries those of keys.
        rest = dict.fromkeys(path for path, _ in self._axes if path not in images.values())
        at += [(path, image) for path in rest if (image := names.beside(path, choice)) is not None]
        equations = []
        for path, image in at:
            shape = self._shapes[image] or (1,)
            for axis in range(len(shape)):
                for length in self._axes.get((path, axis), ()):
                    equations.append((self._equal.resolved(length), shape[axis]))
        own = dict.fromkeys(
            unknown
            for (path, _), lengths in self._axes.items()
            if path in images.values()
            for length in lengths
            for unknown in unknowns(length)
            if unknown.key[1] == k and unknown.small is not None
        )
        needed = tuple(dict.fromkeys(u for one in own for u in unknowns(self._equal.resolved(one))))
        key = needed, *equations
        if key not in self._solved:  # layers of one size share a solution
            counts = [count for length, _ in equations for count in counts_of(length)]
            self._solved[key] = solve(equations, needed, counts, self._heads)
        return [
            {one.key: made for one in own if (made := value(self._equal.resolved(one), known)) is not None}
            for known in self._solved[key]
        ]

    def _written(self, k: int, path: str, values: Mapping[tuple, int], gone: set[str]) -> str:
        """The spec of an array of the twin with the numbers of the large model."""
        text = self._found[k].symmetry.specs[path]

        def made(node: Node, axis: int, numbers: Any) -> Node:
            if isinstance(node, Plain):
                key = ("number", k, path, axis, next(numbers))
                return node if node.size is None else Plain(values[key])
            if isinstance(node, Entry) and node.name in gone:
                return Plain()
            if isinstance(node, Entry | Both):
                return node
            parts = tuple(made(part, axis, numbers) for part in node.parts)
            if isinstance(node, Merged):
                kept = [
                    part
                    for part, was in zip(parts, node.parts, strict=True)
                    if not (isinstance(was, Entry) and was.name in gone)
                ]
                return Merged(tuple(kept)) if len(kept) > 1 else kept[0]
            return type(node)(parts)

        nodes = [
            Plain() if isinstance(node, Plain) else made(node, axis, itertools.count())
            for axis, node in enumerate(parse(text))
        ]
        return written(nodes, offset_of(text))
