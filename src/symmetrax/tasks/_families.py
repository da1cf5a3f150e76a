"""The families that have a name, so that anyone can compare runs."""

import difflib
from collections.abc import Callable

from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._data import digits
from symmetrax.tasks._plane import (
    Kind,
    PlaneFamily,
    booth,
    generalized_booth,
    generalized_rosenbrock,
    rosenbrock,
)
from symmetrax.tasks._supervised import ImageFamily

# The fixed starts of the code published with the benchmark: far outside N(0, I).
FAR_STARTS = {"booth": (-5.0, 3.5), "rosenbrock": (-6.0, -2.0)}


def _plane(kind: Kind, make_fixed: Callable | None) -> Callable[[str, bool], AbstractTaskFamily]:
    def build(name: str, far: bool) -> PlaneFamily:
        start = FAR_STARTS[kind] if far else None
        # A fixed task is made by the checked constructors; a random family only borrows their start.
        task = (make_fixed or booth)(start=start)
        return PlaneFamily(name, kind, None if make_fixed is None else task.map, task.start, task.spread)

    return build


def _digits(name: str, far: bool) -> ImageFamily:
    if far:
        raise ValueError("The family 'digits' has no far starts: they belong to the plane.")
    return ImageFamily(name, *digits())


_FAMILIES: dict[str, Callable[[str, bool], AbstractTaskFamily]] = {
    "ellipse-fixed": _plane("booth", lambda start: generalized_booth([[0.5, 0.0], [0.0, 3.0]], start=start)),
    "ellipse-random": _plane("booth", None),
    "rosenbrock-fixed": _plane(
        "rosenbrock", lambda start: generalized_rosenbrock(1.0, -1.0, -2.0, [0.4, 0.0, 0.0], start=start)
    ),
    "rosenbrock-random": _plane("rosenbrock", None),
    "booth": _plane("booth", booth),
    "rosenbrock": _plane("rosenbrock", rosenbrock),
    "digits": _digits,
}


def family_names() -> tuple[str, ...]:
    """Names that `make_family` knows.

    >>> "ellipse-random" in family_names()
    True
    """
    return tuple(_FAMILIES)


def make_family(name: str, *, far: bool = False) -> AbstractTaskFamily:
    """The task family called `name`.

    "ellipse-fixed", "ellipse-random", "rosenbrock-fixed" and "rosenbrock-random" are the settings of figures
    3, 4, 5 and 6 of arXiv:2504.15399; "booth" and "rosenbrock" are the classical functions; "digits" trains
    small classifiers on real images. Tasks of the plane start at N(0, I); with `far`, at the fixed points
    (-5, 3.5) or (-6, -2) that the published code tests from. Raises ValueError for an unknown name.

    >>> make_family("booth").name
    'booth'
    """
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name, _FAMILIES, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown family {name!r}; choose one of {', '.join(_FAMILIES)}.{hint}")
    return _FAMILIES[name](name, far)
