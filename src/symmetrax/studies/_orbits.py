"""Measurements of the orbits of a task family, before anything is trained."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry, AbstractSymmetry
from symmetrax.tasks._base import AbstractTaskFamily
from symmetrax.tasks._groups import RotationFamily
from symmetrax.teleportation._probe import teleport_gain


def example(family: AbstractTaskFamily) -> Any:
    """A task of a family, with shapes in place of arrays.

    >>> from symmetrax.tasks._families import make_family
    >>> example(make_family("so-5")).symmetry().linear
    False
    """
    return eqx.filter_eval_shape(lambda key: family.task(family.draw(key)), jax.random.key(0))


def dimensions(family: AbstractTaskFamily) -> tuple[int, int]:
    """How many parameters the tasks of a family have, and how many coordinates their symmetry's algebra.

    >>> from symmetrax.tasks._families import make_family
    >>> dimensions(make_family("scaling-3"))
    (6, 3)
    """

    def start(key: Key[Array, ""]) -> tuple[PyTree, Array]:
        task = family.task(family.draw(key))
        symmetry = task.symmetry()
        assert isinstance(symmetry, AbstractLieSymmetry)
        return task.init(key), symmetry.zero()

    params, zero = jax.eval_shape(start, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params)), zero.size


def invariance(family: AbstractTaskFamily, key: Key[Array, ""], trials: int) -> float:
    """The largest relative change of the loss, in float64, over random tasks, starts and group elements.

    Elements are exp(N(0, I)), or where the group is discrete its own random ones.

    >>> from symmetrax.tasks._families import make_family
    >>> invariance(make_family("so-5"), jax.random.key(0), 10) < 1e-12
    True
    """

    def one(key: Key[Array, ""]) -> Array:
        draw, start, element = jax.random.split(key, 3)
        task = family.task(family.draw(draw))
        params, symmetry = task.init(start), task.symmetry()
        assert symmetry is not None
        here = task.loss(params)
        there = task.loss(symmetry.act(_element(symmetry, element), params))
        return jnp.abs(there - here) / here

    with jax.enable_x64(True):
        return float(jnp.max(jax.jit(jax.vmap(one))(jax.random.split(key, trials))))


def _element(symmetry: AbstractSymmetry, key: Key[Array, ""]) -> PyTree:
    if isinstance(symmetry, AbstractLieSymmetry) and symmetry.zero().size:
        return symmetry.exp(jax.random.normal(key, symmetry.algebra))
    return symmetry.sample(key)


def probe(family: AbstractTaskFamily, key: Key[Array, ""], trials: int, samples: int) -> dict[str, Any]:
    """Invariance in float64, and medians over random starts of measurements of their orbits.

    `headroom` and `over_here` are those of `teleport_gain` for the squared gradient norm, with elements up to
    exp(1) (rotations: N(0, 1) angles), NaN where there is no algebra; `reachable` is the largest squared
    gradient norm over that at the start among *all* rotations of a sum of squares, NaN elsewhere. `error` is
    the message of the library where there is no algebra.

    >>> from symmetrax.tasks._families import make_family
    >>> found = probe(make_family("permutation-4"), jax.random.key(0), 5, 4)
    >>> found["error"].partition(":")[0]
    'NetworkSymmetry has no continuous part to search in'
    """
    size, coordinates = dimensions(family)
    found = {
        "parameters": size,
        "coordinates": coordinates,
        "invariance": invariance(family, key, trials),
        **dict.fromkeys(("headroom", "over_here", "reachable"), float("nan")),
        "error": "",
    }

    def one(key: Key[Array, ""]) -> tuple[Array, Array]:
        draw, start, search = jax.random.split(key, 3)
        task = family.task(family.draw(draw))
        symmetry = task.symmetry()
        assert symmetry is not None
        gain = teleport_gain(task.loss, task.init(start), symmetry, search, samples=samples, guard=None)
        return gain.headroom, gain.over_here

    try:
        headroom, over_here = jax.jit(jax.vmap(one))(jax.random.split(key, trials))
    except ValueError as error:
        return found | {"error": str(error)}
    found |= {"headroom": float(np.median(headroom)), "over_here": float(np.median(over_here))}
    if isinstance(family, RotationFamily):
        found["reachable"] = _reachable(family, key, trials)
    return found


def _reachable(family: RotationFamily, key: Key[Array, ""], trials: int) -> float:
    """The largest there is, s^2 ||h(x)||^2 / ||A' h(x)||^2 with s the largest singular value of A."""

    def one(key: Key[Array, ""]) -> tuple[Array, Array]:
        draw, start, _ = jax.random.split(key, 3)
        h = family.draw(draw)
        u = h(family.task(h).init(start))
        return h.matrix, jnp.sum(u**2) / jnp.sum((u @ h.matrix) ** 2)

    matrices, shares = jax.jit(jax.vmap(one))(jax.random.split(key, trials))
    return float(np.median(np.linalg.norm(np.asarray(matrices), 2, axis=(1, 2)) ** 2 * np.asarray(shares)))
