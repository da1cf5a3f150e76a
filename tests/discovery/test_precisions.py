"""No exact symmetry is false, whatever the precision of the parameters: an oracle of its own, far away."""

import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

from .. import zoo
from ..architectures import ARCHITECTURES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

KEY = jax.random.key(0)
DTYPES = (jnp.bfloat16, jnp.float32, jnp.float64)

#: Networks that compute in single precision whatever they are given, so that the oracle is no better.
SINGLE = {"flax attention": 1e-5}
#: Networks whose data have single precision at least: a Fourier transform takes no half floats.
WIDE_DATA = {"fourier_gains"}
#: Networks that do not run in all precisions.
WITHOUT = {("transformer, scanned", jnp.bfloat16)}


def cast(tree, dtype):
    """A tree with its numbers with a fraction in another precision."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_numbers(x) else x, tree)


def is_numbers(leaf):
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def elsewhere(params, rng):
    """Parameters far from the given ones; those that are positive stay so."""

    def moved(leaf):
        if not is_numbers(leaf):
            return leaf
        leaf = np.asarray(leaf, np.float64)
        if np.all(leaf > 0):
            return jnp.asarray(leaf * np.exp(rng.normal(size=leaf.shape) / 2))
        return jnp.asarray(leaf + (np.sqrt(np.mean(leaf**2)) + 0.1) * rng.normal(size=leaf.shape))

    return jax.tree.map(moved, params)


def false_claims(loss, params, batches, found, tolerance=1e-8):
    """The symmetries called exact under which the loss changes in double precision, and how much."""
    rng = np.random.default_rng(zlib.crc32(str(found).encode()))
    false = []
    for fresh in batches:
        there = elsewhere(params, rng)
        here = float(loss(there, fresh))
        # As large as what a wrong element does: the change under noise.
        varies = abs(float(loss(elsewhere(there, rng), fresh)) - here) + 1e-3 * abs(here)
        for number, one in enumerate(found.exact):
            element = {name: g.sample(jax.random.key(number)) for name, g in one.symmetry.spaces.items()}
            change = abs(float(loss(one.symmetry.act(element, there), fresh)) - here)
            if not change <= tolerance * varies:
                false.append((str(one.group), dict(one.symmetry.specs), change / varies))
    return false


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_no_false_exact_symmetries(name, dtype):
    one = ARCHITECTURES[name]

    def batch(key):
        return one.batch(key) if name in WIDE_DATA else cast(one.batch(key), dtype)

    with jax.enable_x64(dtype == jnp.float64):
        found = sx.find_symmetries(one.loss, cast(one.params, dtype), KEY, batch=batch, method="program")
    assert found.exact
    with jax.enable_x64(True):
        batches = [cast(one.batch(jax.random.key(number)), jnp.float64) for number in (11, 12)]
        assert not false_claims(one.loss, cast(one.params, jnp.float64), batches, found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_networks_of_the_zoo_have_no_false_exact_symmetries(name, dtype):
    row = zoo.row(name)
    if (name, dtype) in WITHOUT:
        pytest.skip("a loop carries other numbers than it is given")
    with jax.enable_x64(dtype == jnp.float64):
        params, batch = cast(row.params(), dtype), cast(row.batch(0), dtype)
        found = sx.find_symmetries(row.loss, params, KEY, batch=batch, method="program")
    with jax.enable_x64(True):
        batches = [cast(row.batch(number), jnp.float64) for number in (11, 12)]
        params = cast(row.params(), jnp.float64)
        assert not false_claims(row.loss, params, batches, found, SINGLE.get(name, 1e-8))
