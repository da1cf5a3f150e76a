"""The axes of a spec as pieces of plain factors: brackets multiplied out."""

import itertools
import math
from collections.abc import Iterator, Mapping

from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._specs import Concatenated, Merged, Node
from symmetrax.symmetry._walk import node_size

#: Nodes that are no brackets, with their lengths and strides.
Factors = tuple[tuple[Node, int, int], ...]


def pieces(
    node: Node, length: int, groups: Mapping[str, AbstractGroup], lengths: Mapping[str, int]
) -> Iterator[tuple[int, Factors]]:
    """The pieces of an axis: their starts, and their factors, slowest first.

    >>> from symmetrax.symmetry._specs import parse
    >>> for start, factors in pieces(parse("4+(h 3)")[0], 10, {}, {"h": 2}):
    ...     print(start, [(str(node), length, stride) for node, length, stride in factors])
    0 [('4', 4, 1)]
    4 [('h', 2, 3), ('3', 3, 1)]
    """
    if not isinstance(node, Merged | Concatenated):
        size = node_size(node, groups, lengths)
        if size is not None and size != length:
            raise ValueError(
                f"the discovery has {node} of size {size} where the parameters have {length} entries: pass "
                "the parameters that were searched."
            )
        yield 0, ((node, length, 1),)
        return
    sizes = [node_size(part, groups, lengths) for part in node.parts]
    known = [size for size in sizes if size is not None]
    total = math.prod(known) if isinstance(node, Merged) else sum(known)
    free = length // total if isinstance(node, Merged) else length - total
    sizes = [free if size is None else size for size in sizes]
    if (math.prod(sizes) if isinstance(node, Merged) else sum(sizes)) != length:
        raise ValueError(
            f"the discovery has {node} where the parameters have {length} entries: pass the parameters that "
            "were searched."
        )
    parts = [list(pieces(part, size, groups, lengths)) for part, size in zip(node.parts, sizes, strict=True)]
    if isinstance(node, Concatenated):
        starts = itertools.accumulate(sizes, initial=0)
        for begin, part in zip(starts, parts, strict=False):
            yield from ((begin + start, factors) for start, factors in part)
        return
    strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    for chosen in itertools.product(*parts):
        start = sum(begin * stride for (begin, _), stride in zip(chosen, strides, strict=True))
        yield (
            start,
            tuple(
                (inner, size, step * stride)
                for (_, factors), stride in zip(chosen, strides, strict=True)
                for inner, size, step in factors
            ),
        )
