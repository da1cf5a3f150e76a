"""What the symmetries of a search say about a model, in words."""

from collections.abc import Iterable, Iterator, Sequence

from symmetrax.discovery._found import Found
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation
from symmetrax.symmetry._specs import entries, parse

#: What the elements of a group do to units, and which groups follow from it.
WORDS = {
    GeneralLinear: ("may be mixed by any invertible matrix", "rotations, scales, signs and permutations"),
    Orthogonal: ("may be rotated and reflected", "signs and permutations"),
    ScaledRotation: ("may be turned, and scaled", "their scales, and the sign of a pair"),
    PositiveDiagonal: ("may be scaled by positive numbers", ""),
    SignDiagonal: ("may change their signs", ""),
    Permutation: ("may be permuted", ""),
}


def explain(found: Iterable[Found]) -> Iterator[str]:
    """Two or three sentences for each symmetry: what acts where, what goes with it, and what follows.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    >>> loss = lambda p: jnp.sum((p["a"] @ p["b"] - 1) ** 2)
    >>> search = {"groups": [sx.groups.GeneralLinear], "method": "program"}
    >>> print(*explain(sx.find_symmetries(loss, params, jax.random.key(0), **search)), sep="\\n")
    g0, GeneralLinear(2): 2 units may be mixed by any invertible matrix.
      It acts on axis 1 of a; its inverse transpose on axis 0 of b.
      From this follow rotations, scales, signs and permutations of the same units, which are not listed.
    """
    for one in found:
        group = one.group
        words, follows = WORDS[type(group)]
        units = "pairs of units" if isinstance(group, ScaledRotation) else f"{group.size} units"
        if isinstance(group, ScaledRotation) and group.unit:
            words, follows = "may be turned", "the sign of a pair"
        if isinstance(group, Orthogonal) and group.fix:
            words, follows = f"{words} as long as their mean stays", "permutations"
        indices = _listed([f"{length} {name}" for name, length in group.per])
        each = f", differently for each of {indices}" if indices else ""
        yield f"{one.name}, {group}: {units} {words}{each}."
        yield f"  It acts on {_places(one)}."
        if follows:
            yield f"  From this follow {follows} of the same units, which are not listed."


def _places(one: Found) -> str:
    """On which axes of which arrays the element acts, and in which power."""
    by_power: dict[float, dict[str, None]] = {}
    for path, text in one.symmetry.specs.items():
        for axis, node in enumerate(parse(text)):
            for entry in (entry for entry in entries(node) if entry.name == one.name):
                power = entry.power * (-1 if entry.star and not one.group.compact else 1)
                place = f"axis {axis} of {path.replace('{{', '{').replace('}}', '}')}"
                if entry.index is not None:
                    place += f" (element {entry.index})"
                by_power.setdefault(power, {})[place] = None
    inverse = "its inverse" if one.group.diagonal else "its inverse transpose"
    said = {1.0: "", -1.0: f"{inverse} on "}
    parts = [
        said.get(power, f"its power {power:g} on ") + _listed([*places]) for power, places in by_power.items()
    ]
    return "; ".join(parts)


def _listed(places: Sequence[str]) -> str:
    return "".join(places) if len(places) < 2 else f"{', '.join(places[:-1])} and {places[-1]}"
