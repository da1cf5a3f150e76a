"""Spaces of the slices of stacked arrays, such as keys and values in one array, as one group."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from symmetrax.discovery._sites import Spec
from symmetrax.discovery._spaces import INDICES, LETTERS, Refinement, with_per
from symmetrax.discovery._spec_text import spec_text
from symmetrax.discovery._trace._candidates import (
    NO_GAP,
    Hidden,
    Place,
    lengths_of,
    site_of,
    specs_of,
    units_of,
)
from symmetrax.discovery._trace._nodes import Node
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal


@dataclasses.dataclass(frozen=True)
class Sliced(Refinement):
    """A group whose first index counts the slices of stacked arrays; others see the element of one slice.

    >>> from symmetrax.discovery._sites import Site
    >>> kv = Spec(Site("kv", (2, 5, 4), 2, 4, ((0, 2),), stride=4))
    >>> q, o = Spec(Site("q", (5, 4), 1, 4, stride=4), -1.0), Spec(Site("o", (4, 5), 0, 4, stride=4), -1.0)
    >>> Sliced(GeneralLinear(4, per={"h": 2}), (kv,), ((q,), (o,)), NO_GAP).named(0)[1]
    {'kv': 'h0 _ g0', 'q': '_ g0[0]*', 'o': 'g0[1]* _'}
    """

    group: AbstractGroup
    stacked: tuple[Spec, ...]
    others: tuple[tuple[Spec, ...], ...]
    gap: tuple[float, float]

    @property
    def axes(self) -> frozenset[tuple[str, int]]:
        """The axes on which it acts."""
        specs = [*self.stacked, *(spec for specs in self.others for spec in specs)]
        return frozenset((spec.site.path, spec.site.axis) for spec in specs)

    def named(self, number: int) -> tuple[dict[str, AbstractGroup], dict[str, str]]:
        """The space under its own name, and its specs in spec notation."""
        name = f"{LETTERS[type(self.group)]}{number}"
        indices = [f"{x}{number}" for x in INDICES[: len(self.group.per)]]
        group = dataclasses.replace(self.group, per=tuple(zip(indices, self.group.lengths, strict=True)))
        texts = {spec.site.path: spec_text([spec], name, indices) for spec in self.stacked}
        for k, specs in enumerate(self.others):
            by_path: dict[str, list[Spec]] = {}
            for spec in specs:
                by_path.setdefault(spec.site.path, []).append(spec)
            for path, own in by_path.items():
                if path in texts:
                    raise ValueError(f"several slices act on {path}")
                texts[path] = spec_text(own, f"{name}[{k}]", indices[1:])
        return {name: group}, texts


def sliced(hidden: Hidden) -> Iterator[list[Sliced]]:
    """Groups to certify for slices of stacked arrays that have spaces of their own, the largest first.

    >>> import jax, jax.numpy as jnp
    >>> from symmetrax.discovery._trace._reader import read
    >>> def loss(ab, x=jnp.ones((3, 4))):
    ...     return jnp.sum(jnp.tanh(x @ ab[0]) @ ab[1].T)
    >>> hidden = Hidden(read(jax.make_jaxpr(loss)(jnp.ones((2, 4, 5))), ["ab"]))
    >>> [*sliced(hidden)]  # both slices have the same units
    []
    """
    for roots, stacked in _stacks(hidden).items():
        options = []
        common = [node for node in hidden.common(roots[0]) if all(node in hidden.common(r) for r in roots)]
        for order in dict.fromkeys((tuple(common), ())):
            for kind in (GeneralLinear, Orthogonal, PositiveDiagonal, SignDiagonal, Permutation):
                with contextlib.suppress(ValueError):
                    options.append(_made(kind, roots, stacked, order, hidden))
        if options:
            yield options


def _stacks(hidden: Hidden) -> dict[tuple[Node, ...], list[list[Place]]]:
    """Axes on which every slice of an array has another space: their places, by these spaces."""
    trees: dict[Any, list[tuple[Node, Place]]] = {}
    for root, places in hidden.places.items():
        for part, axis, item in places:
            trees.setdefault((part.path, axis, item.tree, part.starts[axis]), []).append(
                (root, (part, axis, item))
            )
    found: dict[tuple[Node, ...], list[list[Place]]] = {}
    for (path, axis, _, _), own in trees.items():
        starts = [part.starts for _, (part, _, _) in own]
        along = [k for k in range(len(starts[0])) if len({start[k] for start in starts}) > 1]
        if not path or len(along) != 1 or along[0] == axis or len({root for root, _ in own}) < len(own):
            continue
        (k,) = along
        part = own[0][1][0]
        if sorted(start[k] for start in starts) != list(range(part.shape[k])) or part.items[k]:
            continue
        own.sort(key=lambda pair: pair[1][0].starts[k])
        found.setdefault(tuple(root for root, _ in own), []).append([place for _, place in own])
    return found


def _made(
    kind: type[AbstractGroup],
    roots: Sequence[Node],
    stacked: Sequence[Sequence[Place]],
    order: Sequence[Node],
    hidden: Hidden,
) -> Sliced:
    """One group for all slices. Raises ValueError if their laws do not leave it, or no spec expresses it."""
    options: dict[str, Any] = {}
    flags = set().union(*(root.flags for root in roots))
    if kind in (GeneralLinear, Orthogonal) and {"monomial", "ordered"} & flags:
        raise ValueError("units are not mixed")
    if (kind is GeneralLinear and {"ones", "norm"} & flags) or (kind is Permutation and "ordered" in flags):
        raise ValueError("not all elements keep the laws")
    if kind is Orthogonal and "ones" in flags:
        options["fix"] = "mean"
    others = []
    for k, root in enumerate(roots):
        places = hidden.places[root]
        powers = _powers(kind, root, [own[k] for own in stacked], hidden)
        there = {id(own[k][2]) for own in stacked}
        rest = [
            (place, power) for place, power in zip(places, powers, strict=True) if id(place[2]) not in there
        ]
        others.append(specs_of([place for place, _ in rest], [power for _, power in rest], order))
    whole = []
    for own in stacked:
        part, axis, item = own[0]
        (k,) = (
            k for k in range(len(part.shape)) if k != axis and part.shape[k] == len(own) and not part.items[k]
        )
        site = site_of(part, axis, item, order)
        whole.append(Spec(dataclasses.replace(site, lead=((k, len(own)), *site.lead))))
    group = with_per(kind, ((len(roots), *lengths_of(order)), roots[0].length), **options)
    return Sliced(group, tuple(whole), tuple(others), NO_GAP)


def _powers(
    kind: type[AbstractGroup], root: Node, stacked: Sequence[Place], hidden: Hidden
) -> Sequence[Fraction | int]:
    """Powers at all places of a space that are 1 where it is stacked."""
    places = hidden.places[root]
    if kind in (Orthogonal, Permutation):
        return [1] * len(places)
    items = [item for _, _, item in places]
    at = [next(k for k, item in enumerate(items) if item is own) for _, _, own in stacked]
    vectors = hidden.vectors(root, signs=kind is SignDiagonal)
    units = units_of(vectors) if kind is GeneralLinear else None
    for vector in [units] if units else vectors if kind is not GeneralLinear else []:
        if len({vector[k] for k in at}) == 1 and vector[at[0]]:
            return [power / vector[at[0]] for power in vector]
    raise ValueError("no powers that are equal where the space is stacked")
