"""The probe before a teleport: how much an objective varies on the orbit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 10.0])
def test_the_headroom_of_a_quadratic_is_bounded_by_its_condition(float64, ratio):
    """||grad||^2 goes from 4 lambda_min f to 4 lambda_max f on an orbit of ||A x||^2."""
    task = sx.tasks.generalized_booth([[1.0, 0.0], [0.0, ratio]])
    found = sx.teleport_gain(
        task.loss, jnp.array([1.0, 0.5]), task.symmetry(), KEY, samples=400, bound=jnp.pi, guard=None
    )
    f = float(task.loss(jnp.array([1.0, 0.5])))
    assert float(found.largest) == pytest.approx(4 * ratio**2 * f, rel=1e-3)
    # Angles beyond the bound are drawn, so the median lies between the ends, near their mean.
    assert 4 * f <= float(found.median) <= 4 * ratio**2 * f * (1 + 1e-12)
    assert 1 - 1e-12 <= float(found.headroom) <= ratio**2 * (1 + 1e-12)
    assert (float(found.headroom) > 1.2) == (ratio > 1)
    assert float(found.accepted) == 1.0


def test_it_finds_what_the_closed_form_finds_on_a_network(float64):
    params = {
        "w": jax.random.normal(KEY, (3, 2)),
        "v": 3 * jax.random.normal(jax.random.key(1), (1, 3)),
    }
    x = jax.random.normal(jax.random.key(2), (20, 2))

    def loss(p, batch=None):
        return jnp.mean((jax.nn.relu(x @ p["w"].T) @ p["v"].T - 1) ** 2)

    symmetry = sx.NetworkSymmetry(
        {"h": sx.groups.PositiveDiagonal(3)}, {"w": "h _", "v": "_ h*"}, like=params
    )
    found = sx.teleport_gain(loss, params, symmetry, KEY, samples=2000, bound=0.5)
    _, best = sx.teleport(loss, params, symmetry, search=sx.search.ClosedForm(bound=0.5))
    assert float(found.here) == pytest.approx(float(best.before), rel=1e-10)
    assert 0.8 * float(best.after) <= float(found.largest) <= float(best.after) * (1 + 1e-10)
    assert float(found.accepted) == 1.0
    assert float(found.over_here) == pytest.approx(float(found.largest / found.here))


def test_what_the_guard_rejects_does_not_count():
    """On Rosenbrock's function far turns are long; a tight bound leaves near ones only."""
    task, x = sx.tasks.rosenbrock(), jnp.array([-1.0, 2.0])
    options = {"samples": 200, "bound": 1.5}
    free = sx.teleport_gain(task.loss, x, task.symmetry(), KEY, guard=None, **options)
    tight = sx.teleport_gain(task.loss, x, task.symmetry(), KEY, guard=sx.Guard(jump=0.5), **options)
    assert float(free.accepted) == 1.0
    assert 0 < float(tight.accepted) < 0.5
    assert float(tight.largest) < float(free.largest)
    none = sx.teleport_gain(task.loss, x, task.symmetry(), KEY, guard=sx.Guard(jump=1e-9), **options)
    assert float(none.accepted) == 0.0
    assert np.isnan(float(none.headroom))


def test_it_compiles_and_counts_what_it_costs():
    task, x = sx.tasks.rosenbrock(), jnp.array([-1.0, 2.0])
    probe = jax.jit(lambda x: sx.teleport_gain(task.loss, x, task.symmetry(), KEY, samples=10, guard=None))
    assert float(probe(x).evaluations) == 11.0
    assert float(probe(x).largest) >= float(probe(x).median)
    guarded = sx.teleport_gain(task.loss, x, task.symmetry(), KEY, samples=11)
    assert float(guarded.evaluations) == pytest.approx(12 + 12 / 3)


def test_bad_questions_say_what_is_wrong(unchecked):
    task, x = sx.tasks.booth(), jnp.array([1.0, 1.0])
    with pytest.raises(ValueError, match="at least two samples to compare, got samples=1"):
        sx.teleport_gain(task.loss, x, task.symmetry(), KEY, samples=1)
    with pytest.raises(ValueError, match="Cannot probe the orbit of a point that is not finite"):
        sx.teleport_gain(task.loss, x * jnp.inf, task.symmetry(), KEY)
    swaps = sx.NetworkSymmetry({"h": sx.groups.Permutation(2)}, {"w": "h"}, like={"w": x})
    with pytest.raises(ValueError, match="has no continuous part to search in"):
        sx.teleport_gain(lambda p, b: jnp.sum(p["w"] ** 2), {"w": x}, swaps, KEY)
