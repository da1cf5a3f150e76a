"""Scales of stacked layers, split into independent scales per layer: scanned hidden layers of equal width.

For such layers the search finds a single space with the same scales in every layer, which acts on both axes
of the stacked matrices. If each layer has its own scales, the output of one layer is the input of the next:
`h[1:]` on one axis, `h[:-1]*` on the other, and `h[0]` and the last one on the arrays before and after the
stack.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._spaces import LETTERS, Refinement, Space, with_per
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal

#: Maximum number of arrays of ambiguous shape that are tried both as stacked and as not stacked.
MOST_UNCLEAR = 3


@dataclasses.dataclass(frozen=True)
class Chain(Refinement):
    """A space per layer of a stack, plus one; `entries` has the axis and the spec entry of every site.

    >>> entries = ("w", 3, 1, "[1:]"), ("w", 3, 2, "[:-1]*"), ("first", 2, 0, "[0]"), ("last", 2, 1, "[4]*")
    >>> chain = Chain(PositiveDiagonal(5, per={"h": 5}), entries, frozenset({"w"}), (0.0, 0.5))
    >>> chain.named(0)[1]
    {'w': 'h0 s0[1:] s0[:-1]*', 'first': 's0[0] _', 'last': '_ s0[4]*'}
    """

    group: AbstractGroup
    entries: tuple[tuple[str, int, int, str], ...]  # path, number of axes, axis, index and star of the space
    stacked: frozenset[str]
    gap: tuple[float, float]

    def named(self, number: int) -> tuple[dict[str, AbstractGroup], dict[str, str]]:
        """The space under its own name, and its specs in spec notation."""
        name, index = f"{LETTERS[type(self.group)]}{number}", f"h{number}"
        specs: dict[str, list[str]] = {}
        for path, axes, axis, entry in self.entries:
            spec = specs.setdefault(path, [index if path in self.stacked else "_", *["_"] * (axes - 1)])
            spec[axis] = name + entry
        group = dataclasses.replace(self.group, per=((index, self.group.lengths[0]),))
        return {name: group}, {path: " ".join(spec) for path, spec in specs.items()}

    @property
    def axes(self) -> frozenset[tuple[str, int]]:
        """The axes on which the chain acts."""
        return frozenset((path, axis) for path, _, axis, _ in self.entries)

    def of(self, kind: type[AbstractGroup]) -> "Chain":
        """The same specs with a self-dual group."""
        entries = tuple((path, axes, axis, entry.rstrip("*")) for path, axes, axis, entry in self.entries)
        group: Any = with_per(kind, (self.group.lengths, self.group.size))
        return dataclasses.replace(self, group=group, entries=entries)


@dataclasses.dataclass(frozen=True)
class StackedScales(Question):
    """Whether scales shared by the layers of a stack are independent per layer; then signs and permutations.

    It builds on scales that hold, so ask it last. Its evaluations are certificates only.

    >>> from symmetrax.discovery._scope import Scope
    >>> StackedScales().cost(Scope((), arrays=2, size=64)).total  # beyond what every search needs
    3
    """

    finds = (PositiveDiagonal, SignDiagonal, Permutation)

    def answers(self, evidence: Evidence) -> Iterator[Answer]:
        # A chain that holds is followed by the same specs for signs and for permutations: three certificates.
        most = 3 * evidence.scope.trials
        for space in evidence.spaces:
            for chain in _chains(space):
                if evidence.lacks(most, "scales of every layer of a stack", spare=0):
                    return
                yield Answer([[chain]])
                if evidence.holds(chain):
                    yield Answer([[chain.of(SignDiagonal)], [chain.of(Permutation)]])
                    break


def _chains(space: Space) -> Iterator[Chain]:
    """Enumerates the ways to split scales shared by all layers into scales per layer."""
    if not isinstance(space.group, PositiveDiagonal) or space.group.per:
        return
    sites = [spec.site for spec in space.specs]
    both = {
        site.path for site in sites if len(site.shape) > 2 and sum(s.path == site.path for s in sites) == 2
    }
    if not both or any(
        site.copies > 1 or site.shift or abs(spec.power) != 1
        for site, spec in zip(sites, space.specs, strict=True)
    ):
        return
    depth = next(site.shape[0] for site in sites if site.path in both)
    # An array whose first axis has the length of the stack may be a bias per layer, or a plain matrix.
    unclear = {
        site.path for site in sites if site.path not in both and site.axis > 0 and site.shape[0] == depth
    }
    for flip, count in itertools.product((1, -1), range(min(len(unclear), MOST_UNCLEAR) + 1)):
        for chosen in itertools.combinations(sorted(unclear), count):
            stacked = both | set(chosen)
            entries = []
            for site, spec in zip(sites, space.specs, strict=True):
                out = spec.power * flip > 0
                inside, outside = ("[1:]", "[0]") if out else ("[:-1]*", f"[{depth}]*")
                entry = inside if site.path in stacked else outside
                entries.append((site.path, len(site.shape), site.axis, entry))
            group = PositiveDiagonal(space.group.size, per={"h": depth + 1})
            yield Chain(group, tuple(entries), frozenset(stacked), space.gap)
