"""The inputs and outputs of a learned optimizer: observations and proposals."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._tree import squared_norm
from symmetrax.objectives._base import OrbitDerivatives
from symmetrax.symmetry._base import AbstractLieSymmetry

#: Fields of `Observation` that are computed only on request, because they are costly or need a symmetry.
Want = Literal["symmetry", "orbit_derivative", "slopes", "best"]


class Observation(NamedTuple):
    """The inputs of an optimizer at a step.

    `gradient` and `params` have the structure of the parameters. `previous` is the last step (zeros at
    first). `orbit_derivative` is the derivative of the squared gradient norm in the algebra coordinates (None
    unless the network asks for it). `key` is a random key for stochastic optimizers (None unless you pass one
    to `update`). `symmetry` is the symmetry that the optimizer may teleport along, if any. `value` is the
    loss; `slopes` are the derivatives of the logarithm of the squared gradient norm along the orbit, and
    `best` the coordinates of its best point (each None unless the network asks for it).

    >>> Observation(gradient=1.0, params=2.0, previous=0.0, orbit_derivative=None, key=None).params
    2.0
    """

    gradient: PyTree
    params: PyTree
    previous: PyTree
    orbit_derivative: Array | None = None
    key: Key[Array, ""] | None = None
    symmetry: AbstractLieSymmetry | None = None
    value: Float[Array, ""] | None = None
    slopes: OrbitDerivatives | None = None
    best: Float[Array, "..."] | None = None


class Proposal(NamedTuple):
    """A network's output: any of an update, algebra coordinates, a step size, a momentum and a gate.

    Fields that the network does not emit are None. The step is u = `update` or, if `update` is a function,
    its value at the gradient where the step starts; without an update, -`step_size` * gradient. With
    `momentum` steps accumulate, v <- momentum * v + u. `algebra` holds the coordinates of the group element;
    they are multiplied by `gate`, the probability of teleporting at all, if the network emits it (see
    `UpdateRule`).

    >>> Proposal(step_size=0.5).update is None
    True
    """

    update: PyTree = None
    algebra: Any = None
    step_size: Float[Array, ""] | None = None
    momentum: Float[Array, ""] | None = None
    gate: Float[Array, ""] | None = None


#: Optional inputs of the whole-gradient optimizer besides the gradient; each adds its size to the input.
INPUTS = ("iterate", "previous", "orbit_derivative")


def example_info(size: int, slopes: int = 0) -> Observation:
    """Returns a fixed, generic input for `size` parameters and, if any, `slopes` algebra coordinates.

    >>> example_info(2).gradient.tolist()
    [-1.0, 2.0]
    """
    # Not random, so that saving the same network twice gives the same file in every version of JAX.
    ramp = jnp.linspace(-1.0, 2.0, size)
    slope = jnp.linspace(0.5, 1.0, slopes) if slopes else None
    return Observation(gradient=ramp, params=1 - ramp, previous=0.1 * ramp, orbit_derivative=slope, key=None)


def log_and_sign(gradient: Float[Array, " n"], p: float = 10.0) -> Float[Array, "2 n"]:
    """The two features per coordinate of Andrychowicz et al. 2016 (appendix A).

    If |g| >= exp(-p): (log|g| / p, sign g); otherwise (-1, exp(p) g). Both normalize away the gradient's
    order of magnitude and have finite derivatives everywhere.

    >>> print(log_and_sign(jnp.array([1.0, 0.0, -1e-5])).round(2))
    [[ 0.   -1.   -1.  ]
     [ 1.    0.   -0.22]]
    """
    size = jnp.abs(gradient)
    # The inner `where` keeps the unused branch finite: a derivative through log(0) is NaN even if discarded.
    large = size >= jnp.exp(-p)
    logarithm = jnp.log(jnp.where(large, size, 1.0)) / p
    return jnp.stack(
        [jnp.where(large, logarithm, -1.0), jnp.where(large, jnp.sign(gradient), jnp.exp(p) * gradient)]
    )


#: Raw inputs of a network are clipped to this magnitude, so that its units saturate before they overflow.
LARGEST = 1e30


def cut(x: Float[Array, "*n"], largest: float = LARGEST) -> Float[Array, "*n"]:
    """Clips the entries to at most `largest` in absolute value.

    >>> print(cut(jnp.array([2.0, -1e38])))
    [ 2.e+00 -1.e+30]
    """
    return jnp.clip(x, -largest, largest)


def largest_entry(tree: PyTree) -> Float[Array, ""]:
    """Returns the largest absolute value in a tree, held constant in derivatives; zero for an empty tree.

    Very large values are divided by 8, so that you can divide by the result: compilers multiply by the
    reciprocal, and the reciprocals of the largest floats are subnormal.

    >>> float(largest_entry({"w": jnp.array([1.0, -3.0]), "b": jnp.zeros(2)}))
    3.0
    """
    sizes = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(jax.lax.stop_gradient(tree))]
    size = jnp.max(jnp.stack(sizes)) if sizes else jnp.zeros(())
    return jnp.where(size > LARGEST, size / 8, size)


def ordinary(tree: PyTree) -> Float[Array, ""]:
    """Returns a unit in which entries can be squared: 1, or the largest entry if that is extreme.

    >>> print(ordinary(jnp.array([3.0, 4.0])), ordinary(jnp.array([3e20, 4.0])), ordinary(jnp.zeros(2)))
    1.0 3e+20 1.0
    """
    size = largest_entry(tree)
    return jnp.where((size > 1e12) | ((size > 0) & (size < 1e-12)), size, 1.0)


class Length(NamedTuple):
    """The Euclidean norm unit * part of a tree's entries, over the full range of floats; `some` if nonzero.

    `unit` is the largest entry, so that the squares of the other entries divided by it neither overflow nor
    vanish.

    >>> length = Length.of(jnp.array([3e30, 4e30]))  # the square of either entry is infinite in float32
    >>> print(length.unit, length.part)
    5e+29 10.0
    """

    unit: Float[Array, ""]
    part: Float[Array, ""]
    some: Bool[Array, ""]

    @classmethod
    def of(cls, tree: PyTree) -> "Length":
        """Computes the length of a tree; zero if no entry exceeds the smallest normal float."""
        size = largest_entry(tree)
        # Negated so that NaN counts as nonzero, and shows in the result.
        some = ~(size <= jnp.finfo(size.dtype).tiny)
        unit = jnp.where(some, size, 1.0)
        # Don't use a norm that rescales internally: compilers fuse two consecutive divisors, which overflow.
        square = squared_norm(jax.tree.map(lambda x: x / unit, tree))
        return cls(unit, jnp.sqrt(jnp.where(some, square, 1.0)), some)

    def log(self, least: float) -> Float[Array, ""]:
        """Computes the logarithm, clamped from below at log(least), with a derivative at zero.

        >>> print(jnp.exp(Length.of(jnp.array([3e30, 4e30])).log(1e-30)).round(-27))
        5e+30
        """
        found, floor = jnp.log(self.unit) + jnp.log(self.part), math.log(least)
        return jnp.where(self.some & (found > floor), found, floor)
