"""Which axes of matrices are outputs: told by biases, gains, and the layout of the other matrices."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from symmetrax.discovery._exports._places import Place
from symmetrax.groups._diagonal import AbstractGroup, NonzeroDiagonal, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear

#: The groups of which an element and its inverse act on the two sides of a space.
_DIRECTED = (GeneralLinear, PositiveDiagonal, NonzeroDiagonal)


def sides(places: Sequence[Place]) -> tuple[list[Place], list[Place], bool]:
    """The places that scale up with an element and those that scale down, producers first if that is known.

    A bias scales with the outputs to which it is added, and the gain of a norm is read by projections.

    >>> from symmetrax.discovery._exports._places import Factor
    >>> units = (Factor("s", 3, 1),)
    >>> gain = Place("s", None, "gain", (3,), 0, 0, units, -1.0, {}, None, 0.0)
    >>> read = Place("s", None, "w", (3, 5), 0, 0, units, 1.0, {}, None, 0.0)
    >>> first, second, known = sides([read, gain])
    >>> first[0].path, second[0].path, known
    ('gain', 'w', True)
    """
    up = [place for place in places if place.power > 0]
    down = [place for place in places if place.power < 0]
    vectors = [any(place.is_vector for place in side) for side in (up, down)]
    known = vectors[0] != vectors[1]
    return (down, up, known) if known and vectors[1] else (up, down, known)


def outputs(spaces: Mapping[str, tuple[AbstractGroup, list[Place]]]) -> dict[tuple[str, int], bool]:
    """Axes of matrices that are known to be outputs (True) or inputs (False) of their arrays.

    Where the producing side of a space is one vector and the other side one matrix, nothing is said: the
    gain of a norm before a projection looks like a gain behind one.

    >>> outputs({})
    {}
    """
    known: dict[tuple[str, int], bool] = {}
    for group, places in spaces.values():
        if not isinstance(group, _DIRECTED):
            continue
        produce, consume, told = sides(places)
        matrices = [[place for place in side if not place.is_vector] for side in (produce, consume)]
        if told and (matrices[0] or len(matrices[1]) > 1):
            known |= {(place.path, place.axis): True for place in matrices[0]}
            known |= {(place.path, place.axis): False for place in matrices[1]}
    return known


def layout_of(
    known: Mapping[tuple[str, int], bool], pairs: Iterable[tuple[str, Sequence[int], Sequence[int]]]
) -> Literal["in out", "out in"]:
    """The layout of most matrices, given the axes of their two sides; "in out" if nothing is known.

    >>> layout_of({("w", 0): True}, [("w", [0], [1])])
    'out in'
    """
    votes = 0
    for path, first, second in pairs:
        for axes, vote in ((first, -1), (second, 1)):
            for axis in axes:
                if (path, axis) in known:
                    votes += vote if known[path, axis] else -vote
    return "out in" if votes < 0 else "in out"
