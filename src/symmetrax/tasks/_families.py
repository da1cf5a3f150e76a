"""Named task families, so that experiments are comparable."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from symmetrax._text import near_match
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._data import Images, digits, mnist
from symmetrax.tasks._groups import KINDS, group_family
from symmetrax.tasks._language import ARCHITECTURES, TextFamily, standard_library
from symmetrax.tasks._plane import (
    Kind,
    PlaneFamily,
    booth,
    generalized_booth,
    generalized_rosenbrock,
    rosenbrock,
)
from symmetrax.tasks._regression import RegressionFamily
from symmetrax.tasks._supervised import ImageFamily

# The fixed starts in the code published with the benchmark, far outside N(0, I).
FAR_STARTS = {"booth": (-5.0, 3.5), "rosenbrock": (-6.0, -2.0)}


def _plane(kind: Kind, make_fixed: Callable | None) -> Callable[[str, bool], AbstractTaskFamily]:
    def build(name: str, far: bool) -> PlaneFamily:
        start = FAR_STARTS[kind] if far else None
        # The checked constructors make fixed tasks; a random family only takes their start.
        task = (make_fixed or booth)(start=start)
        return PlaneFamily(name, kind, None if make_fixed is None else task.map, task.start, task.spread)

    return build


def _near_only(build: Callable[[str], AbstractTaskFamily]) -> Callable[[str, bool], AbstractTaskFamily]:
    def checked(name: str, far: bool) -> AbstractTaskFamily:
        if far:
            raise ValueError(
                f"The family {name!r} has no far starts, which only families of the plane have: leave out "
                "`far`."
            )
        return build(name)

    return checked


def _mnist(name: str) -> ImageFamily:
    # Move to the device once, not at every call of a compiled program.
    train, test = (Images(*(jnp.asarray(part) for part in images)) for images in mnist())
    return ImageFamily(name, train, test, widths=((16, 10),), batch_size=20, slope=0.1, bias=False)


_TWENTY: dict[str, Any] = {"dims": (20, 20, 20), "samples": 20}

# Functions, so that importing this module neither reads images nor allocates arrays.
_FAMILIES: dict[str, Callable[[str, bool], AbstractTaskFamily]] = {
    "ellipse-fixed": _plane("booth", lambda start: generalized_booth([[0.5, 0.0], [0.0, 3.0]], start=start)),
    "ellipse-random": _plane("booth", None),
    "rosenbrock-fixed": _plane(
        "rosenbrock", lambda start: generalized_rosenbrock(1.0, -1.0, -2.0, [0.4, 0.0, 0.0], start=start)
    ),
    "rosenbrock-random": _plane("rosenbrock", None),
    "booth": _plane("booth", booth),
    "rosenbrock": _plane("rosenbrock", rosenbrock),
    "regression": _near_only(RegressionFamily),
    "regression-20": _near_only(lambda name: RegressionFamily(name, **_TWENTY)),
    "regression-20-gaussian": _near_only(
        lambda name: RegressionFamily(name, **_TWENTY, start="gaussian", data="gaussian")
    ),
    "mnist": _near_only(_mnist),
    "digits": _near_only(lambda name: ImageFamily(name, *digits())),
    "language": _near_only(lambda name: TextFamily(name, standard_library(), ARCHITECTURES)),
}


def family_names() -> tuple[str, ...]:
    """Returns the names that `make_family` knows.

    >>> "ellipse-random" in family_names()
    True
    """
    return tuple(_FAMILIES)


def make_family(name: str, *, far: bool = False) -> AbstractTaskFamily:
    """Returns the task family called `name`.

    "ellipse-fixed", "ellipse-random", "rosenbrock-fixed" and "rosenbrock-random" are the settings of figures
    3, 4, 5 and 6 of arXiv:2504.15399; "booth" and "rosenbrock" are the classical functions. Tasks of the
    plane start at N(0, I), or with `far` at the fixed points (-5, 3.5) or (-6, -2) of the published tests.

    "regression" fits random data with a small network (see `RegressionFamily`). "regression-20", with two
    matrices of 20 x 20 and 20 samples, is the problem on which arXiv:2305.13404 learns to teleport;
    "regression-20-gaussian" is the same with centered Gaussian weights and data. "digits" trains small
    classifiers on real images. "mnist" trains the 784-16-10-10 classifiers without biases of
    arXiv:2305.13404 by minibatches of 20, here with slope 0.1 below zero; its images are read, from the
    folder SYMMETRAX_DATA or by a download, only when you make the family. "language" trains two small
    transformers on the source code of Python's standard library (see `LanguageModel`).

    "so-N", "torus-N", "scaling-N" and "permutation-N", for any size N, have the groups of these names:
    rotations in N dimensions, all or in planes of two coordinates (`RotationFamily`), scalings of N products
    (`ProductFamily`), permutations of N hidden units (`HiddenUnitFamily`).

    Raises ValueError for an unknown name, and for "mnist" if there are no images.

    >>> make_family("booth").name, make_family("so-5").size
    ('booth', 5)
    """
    if name.rpartition("-")[0] in KINDS:
        return _near_only(group_family)(name, far)
    if name not in _FAMILIES:
        hint = near_match(name, _FAMILIES)
        raise ValueError(f"Unknown family {name!r}: choose one of {', '.join(_FAMILIES)}.{hint}")
    return _FAMILIES[name](name, far)
