"""Randomly scaled tasks: other units, the same losses; and their symmetry in the new units."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# The digits as they are, without a family that draws from them.
from symmetrax.tasks._data import digits

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def images(widths=(3, (4, 2))):
    return sx.tasks.ImageFamily("tiny", *digits(), widths=widths, batch_size=5)


@pytest.fixture(scope="module")
def drawn():
    """A draw of two shapes, the smaller of which uses a part of it."""
    family = sx.tasks.RandomlyScaled(images(), spread=2.0)
    return family, eqx.filter_jit(family.draw)(KEY)


@pytest.mark.parametrize("shape", [3, (4, 2)])
def test_losses_are_those_of_the_inner_task_at_scaled_parameters(drawn, shape):
    """And from the same start: only the units differ."""
    family, arrays = drawn
    task, inner = family.task(arrays, shape), images().task((), shape)
    batch = task.batch(KEY)
    for ours, theirs in zip(batch, inner.batch(KEY), strict=True):
        assert jnp.array_equal(ours, theirs)
    params, start = task.init(KEY), inner.init(KEY)
    assert params.keys() == start.keys()
    for name, scale in task.scale.items():
        np.testing.assert_allclose(np.asarray(params[name]) * np.asarray(scale), start[name], rtol=1e-6)
    assert float(task.loss(params, batch)) == pytest.approx(float(inner.loss(start, batch)), rel=1e-5)


def test_every_parameter_has_its_own_scale_within_the_spread(drawn):
    family, arrays = drawn
    logs = [np.log(x).ravel() for x in jax.tree.leaves(family.task(arrays, 3).scale)]
    logs = np.concatenate(logs)
    assert len(logs) == 3 * 64 + 3 + 10 * 3 + 10
    assert len(np.unique(logs)) == len(logs)
    assert np.all(np.abs(logs) <= 2)
    # Uniform: the mean absolute value is half the spread, with standard deviation 1 / sqrt(3 n).
    assert abs(np.mean(np.abs(logs)) - 1.0) < 4 * 1 / np.sqrt(3 * len(logs))
    assert abs(np.mean(logs)) < 4 * 2 / np.sqrt(3 * len(logs))


def test_gradients_are_those_of_the_inner_task_times_the_scale(float64):
    family = sx.tasks.RandomlyScaled(sx.tasks.make_family("booth"), spread=1.0)
    arrays = family.draw(KEY)
    task, inner = family.task(arrays), family.family.task(arrays[0])
    params = jnp.array([0.5, -2.0])
    gradient, slope = jax.grad(task.loss)(params), jax.grad(inner.loss)(params * task.scale)
    np.testing.assert_allclose(gradient, np.asarray(slope) * np.asarray(task.scale), rtol=1e-12)


def test_draws_differ_and_tasks_batch():
    family = sx.tasks.RandomlyScaled(sx.tasks.make_family("booth"))
    descent = lambda rate, task: optax.sgd(rate)  # noqa: E731
    trace = sx.unroll_many(descent, 0.01, family, KEY, steps=2, tasks=3)
    assert trace.loss.shape == (3, 3)
    assert np.all(np.isfinite(trace.loss))
    units = jax.vmap(family.draw)(jax.random.split(KEY, 3))[1]
    assert len(np.unique(np.asarray(units)[:, 0])) == 3


def test_without_spread_nothing_changes():
    family = sx.tasks.RandomlyScaled(sx.tasks.make_family("booth"), spread=0)
    task = family.task(family.draw(KEY))
    assert jnp.array_equal(task.scale, jnp.ones(2))
    assert family.name == "booth-scaled"


@pytest.mark.parametrize("name", mostly_slow(["booth", "regression"], ["regression"]))
def test_its_symmetry_keeps_every_law(float64, name):
    """Rotations, which the change of units bends, and positive scalings, which commute with it."""
    family = sx.tasks.RandomlyScaled(sx.tasks.make_family(name), spread=1.0)
    task = family.task(family.draw(KEY))
    symmetry, params = task.symmetry(), task.init(KEY)
    report = sx.verify(task.loss, params, symmetry, KEY, task.batch(KEY), trials=4)
    assert report.outcome == "exact", str(report)
    assert symmetry.linear == (name == "regression")


def test_the_inner_symmetry_itself_would_change_the_loss(float64):
    """Why rotations have to be conjugated."""
    family = sx.tasks.RandomlyScaled(sx.tasks.make_family("booth"), spread=1.0)
    task = family.task(family.draw(KEY))
    params, inner = task.init(KEY), family.family.task(()).symmetry()
    moved = inner.act(inner.exp(jnp.array([0.5])), params)
    ours = task.symmetry().act(task.symmetry().exp(jnp.array([0.5])), params)
    loss = float(task.loss(params))
    assert float(task.loss(ours)) == pytest.approx(loss, rel=1e-9)
    assert abs(float(task.loss(moved)) - loss) > 1e-3 * loss


def test_a_task_without_symmetry_stays_without():
    class Bare(type(sx.tasks.booth())):
        def symmetry(self):
            return None

    bare = Bare(sx.tasks.booth().map, sx.tasks.booth().start)
    assert sx.tasks.ScaledTask(bare, jnp.ones(2)).symmetry() is None


def test_a_negative_spread_is_rejected():
    with pytest.raises(ValueError, match="at least 0, got spread=-1"):
        sx.tasks.RandomlyScaled(sx.tasks.make_family("booth"), spread=-1)
