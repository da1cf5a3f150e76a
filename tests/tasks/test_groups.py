"""Families with other groups: their maps, their symmetries, their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.tasks._groups import draw_map, group_family


@pytest.mark.parametrize("name", ["so-3", "torus-5", "scaling-2", "permutation-3"])
def test_symmetries_are_exact(name, float64, quick_compilation):
    family = sx.tasks.make_family(name)
    task = family.task(family.draw(jax.random.key(0)))
    params = task.init(jax.random.key(1))
    assert sx.verify(task.loss, params, task.symmetry(), key=jax.random.key(2)).outcome == "exact"


def test_only_families_of_the_plane_have_far_starts():
    with pytest.raises(ValueError, match="'so-3' has no far starts"):
        sx.tasks.make_family("so-3", far=True)


def test_maps_are_inverted_and_their_condition_is_bounded(float64):
    h = draw_map(jax.random.key(3), 6)
    np.testing.assert_allclose(h.matrix @ h.back, np.eye(6), atol=1e-13)
    assert np.linalg.cond(h.matrix) <= 10
    x = jnp.arange(6.0)
    np.testing.assert_allclose(h.inverse(h(x)), x, atol=1e-12)


def test_the_torus_is_part_of_the_rotations(float64):
    whole, torus = (group_family(name) for name in ("so-5", "torus-5"))
    drawn, x = whole.draw(jax.random.key(0)), jnp.arange(5.0)
    angles = jnp.array([0.7, -1.2])
    turned, expected = torus.task(drawn).symmetry(), whole.task(drawn).symmetry()
    assert turned is not None
    assert expected is not None
    matrix = np.eye(5)
    for i, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, -s], [s, c]]
    there = expected.act(jnp.asarray(matrix), x)
    np.testing.assert_allclose(turned.act(angles, x), there, atol=1e-12)


@pytest.mark.parametrize("name", ["so", "so-1", "so-x", "rotation-3"])
def test_names_of_families_are_checked(name):
    with pytest.raises(ValueError, match=f"A family is one of so, torus, .*got '{name}'") as error:
        group_family(name)
    assert "\n" not in str(error.value)


def test_permutations_change_no_gradient_norm(float64):
    family = group_family("permutation-4")
    task = family.task(family.draw(jax.random.key(0)))
    symmetry, params = task.symmetry(), task.init(jax.random.key(1))
    assert symmetry is not None
    there = symmetry.act(symmetry.sample(jax.random.key(2)), params)
    norms = [sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(task.loss)(w))) for w in (params, there)]
    np.testing.assert_allclose(*norms, rtol=1e-13)
