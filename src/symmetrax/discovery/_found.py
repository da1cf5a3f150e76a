"""A single result of a search, and the record of a single question."""

import dataclasses

from symmetrax.discovery._certify import Certificate
from symmetrax.discovery._sites import Shape
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._network import NetworkSymmetry


@dataclasses.dataclass(frozen=True)
class Found:
    """A symmetry of one space, its certificate, and the numerical gap that decided it.

    `gap` holds the largest number that counted as zero and the smallest that did not: singular values of
    columns of length about 1 for Lie groups, relative differences for permutations and signs. It is NaN for
    what was read off the program of the loss.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> x = jnp.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 3.0]])
    >>> loss = lambda p: jnp.mean((x @ p["a"].T @ p["b"].T - x) ** 2)
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    >>> search = {"groups": [sx.groups.GeneralLinear], "method": "gradients"}
    >>> (one,) = sx.find_symmetries(loss, params, jax.random.key(0), **search)
    >>> one.name, str(one.group), one.certificate.outcome, one.gap[0] < 1e-4 < one.gap[1]
    ('g0', 'GeneralLinear(3)', 'exact', True)
    """

    symmetry: NetworkSymmetry
    certificate: Certificate
    gap: tuple[float, float]

    @property
    def name(self) -> str:
        return next(iter(self.symmetry.spaces))

    @property
    def group(self) -> AbstractGroup:
        return self.symmetry.spaces[self.name]


@dataclasses.dataclass(frozen=True)
class Look:
    """The record of one look at the sites of one shape, and how close the nearest non-relation came.

    If not everything was tried, `only` names what was; nothing else can be ruled out.

    >>> Look("scales", ((), 4), sites=3, found=1, nearest=0.1).only
    ''
    """

    group: str
    shape: Shape
    sites: int
    found: int
    nearest: float
    only: str = ""
