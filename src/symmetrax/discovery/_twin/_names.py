"""Arrays of the large model that answer to those of a twin: numbers in paths are placeholders."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

#: Numbers of the large model, for each number of the twin.
_Numbers = Mapping[int, Sequence[int]]

#: Those of every slot of a path.
Choice = Mapping[str, _Numbers]


def pattern_of(path: str) -> tuple[str, tuple[int, ...]]:
    """The pattern of a path, and its numbers: parts that are numbers or end in one, as in `layers_0`.

    >>> pattern_of("blocks.0.experts_1.w2")
    ('blocks.#.experts_#.w2', (0, 1))
    """
    parts, numbers = [], []
    for part in path.split("."):
        match = re.fullmatch(r"(.*_)?(\d+)", part)
        parts.append(f"{match[1] or ''}#" if match else part)
        numbers += [int(match[2])] if match else []
    return ".".join(parts), tuple(numbers)


def slots_of(pattern: str) -> list[str]:
    """The slots of a pattern, each named by the pattern up to it.

    >>> slots_of("blocks.#.experts_#.w2")
    ['blocks.#', 'blocks.#.experts_#']
    """
    return [pattern[: match.end()] for match in re.finditer("#", pattern)]


class Names:
    """The paths of a twin and of a large model, and which of their numbers count repeated parts.

    >>> names = Names(["blocks.0.w", "head"], ["blocks.0.w", "blocks.1.w", "head"])
    >>> [names.images(["blocks.0.w"], choice) for (choice,) in names.choices({"blocks.0.w": "h _"})]
    [{'blocks.0.w': 'blocks.0.w'}, {'blocks.1.w': 'blocks.0.w'}]
    >>> (joint, *others), = names.choices({"blocks.0.w": "_ h", "head": "h _"})
    >>> list(names.images(["blocks.0.w", "head"], joint))
    ['blocks.0.w', 'blocks.1.w', 'head']
    """

    def __init__(self, small: Iterable[str], large: Iterable[str]):
        self.large = set(large)
        self._at: dict[str, list[str]] = {}
        for path in self.large:
            self._at.setdefault(pattern_of(path)[0], []).append(path)
        self._numbers = [_numbers(paths) for paths in (small, self.large)]

    def missing(self, path: str) -> bool:
        """Whether no array of the large model has the pattern of a path."""
        return pattern_of(path)[0] not in self._at

    def choices(self, specs: Mapping[str, str]) -> Iterator[list[Choice]]:
        """For every space of the large model that a space of the twin becomes, options of its numbers.

        Repeated layers have a space each. A space that the twin's layers share, or that reaches beyond them,
        is one space of all layers; if it fails, it belongs to the first layer, or to the last.
        """
        by_slot: dict[str, list[Sequence[_Numbers]]] = {}
        for slot in dict.fromkeys(slot for path in specs for slot in slots_of(pattern_of(path)[0])):
            by_slot[slot] = list(self._choices(slot, specs))
        for chosen in itertools.product(*by_slot.values()):
            options = itertools.zip_longest(*chosen) if chosen else [()]
            yield [
                {
                    slot: one if one is not None else chosen[k][0]
                    for k, (slot, one) in enumerate(zip(by_slot, option, strict=True))
                }
                for option in options
            ]

    def _choices(self, slot: str, specs: Mapping[str, str]) -> Iterator[Sequence[_Numbers]]:
        small, large = (numbers.get(slot, []) for numbers in self._numbers)
        by_pattern: dict[str, dict[int, set[str]]] = {}
        outside = False
        for path, text in specs.items():
            pattern, numbers = pattern_of(path)
            if slot in (slots := slots_of(pattern)):
                by_pattern.setdefault(pattern, {}).setdefault(numbers[slots.index(slot)], set()).add(text)
            else:
                outside = True
        here = sorted({number for found in by_pattern.values() for number in found})
        if small == large:
            yield [{number: [number] for number in here}]
            return
        alike = all(
            sorted(found) == small and len(set(map(frozenset, found.values()))) == 1
            for found in by_pattern.values()
        )
        joint = {here[0]: large}
        if alike and (outside or len(small) > 1):
            ends = [{here[0]: large[:1]}, {here[0]: large[-1:]}] if len(small) == 1 else []
            yield [joint, *ends]
        elif outside and len(here) == 1:
            ends = [{here[0]: large[-1:]}, {here[0]: large[:1]}]
            yield ends if here == small[-1:] else ends[::-1]
        else:
            # One space per layer, or per pair of layers that follow one another.
            for first in large:
                shifted = {number: number - here[0] + first for number in here}
                if set(shifted.values()) <= set(large):
                    yield [{number: [to] for number, to in shifted.items()}]

    def images(self, paths: Iterable[str], choice: Choice) -> dict[str, str]:
        """The arrays of the large model under a choice, each with that of the twin to which it answers."""
        made: dict[str, str] = {}
        for path in paths:
            pattern, numbers = pattern_of(path)
            wanted = [
                choice.get(slot, {}).get(number, ())
                for slot, number in zip(slots_of(pattern), numbers, strict=True)
            ]
            for chosen in itertools.product(*wanted):
                image = _filled(pattern, chosen)
                if image in self.large:
                    made[image] = path
        return made

    def beside(self, path: str, choice: Choice) -> str | None:
        """The array of the large model that answers to one of another space, next to those of a choice."""
        pattern, numbers = pattern_of(path)
        wanted = [
            [*choice.get(slot, {}).get(number, ()), number]
            for slot, number in zip(slots_of(pattern), numbers, strict=True)
        ]
        near = (_filled(pattern, chosen) for chosen in itertools.product(*wanted))
        return next(
            (image for image in near if image in self.large), min(self._at.get(pattern, []), default=None)
        )


def _numbers(paths: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of every slot, in order."""
    found: dict[str, set[int]] = {}
    for path in paths:
        pattern, numbers = pattern_of(path)
        for slot, number in zip(slots_of(pattern), numbers, strict=True):
            found.setdefault(slot, set()).add(number)
    return {slot: sorted(numbers) for slot, numbers in found.items()}


def _filled(pattern: str, numbers: Iterable[int]) -> str:
    """A pattern with numbers in its slots.

    >>> _filled("blocks.#.w", [3])
    'blocks.3.w'
    """
    left = iter(numbers)
    return re.sub("#", lambda _: str(next(left)), pattern)
