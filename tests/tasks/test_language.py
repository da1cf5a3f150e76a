"""The language models: text, architectures, and their symmetries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = sx.tasks.Architecture(width=16, layers=2, heads=4, kv_heads=2, hidden=12, context=10)
TEXT = sx.tasks.Text(np.arange(500) % 11, np.arange(400) % 7, "abcdefghijk")


def task(**changes):
    return sx.tasks.LanguageModel(TEXT, dataclasses.replace(SMALL, **changes), batch_size=4)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_symmetries_hold(float64, positions, normalized, gated):
    one = task(positions=positions, normalized=normalized, gated=gated)
    params = jax.tree.map(lambda w: w.astype(float), one.init(jax.random.key(0)))
    batch = one.batch(jax.random.key(1))
    assert sx.verify(one.loss, params, one.symmetry(), jax.random.key(2), batch).outcome.startswith("exact")


def test_no_letter_sees_those_that_follow(float64):
    one = task(positions="rotary")
    params, letters = one.init(jax.random.key(0)), jnp.arange(20).reshape(2, 10) % 11
    changed = letters.at[:, 6].set(0)
    before, after = one.logits(params, letters), one.logits(params, changed)
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert not np.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


def test_rotary_positions_see_distances_only(float64):
    one = task(positions="rotary", layers=1)
    params = one.init(jax.random.key(0))
    once, twice = jnp.array([[3, 1, 4]]), jnp.array([[3, 1, 4, 3, 1, 4]])
    # A prefix does not change how the first letters look at each other.
    np.testing.assert_allclose(one.logits(params, once), one.logits(params, twice)[:, :3], atol=1e-6)


def test_training_text_and_test_text_do_not_meet():
    text = sx.tasks.standard_library(modules=3)
    assert len(text.test) == pytest.approx(0.1 * (len(text.train) + len(text.test)), abs=2)
    assert max(text.train.max(), text.test.max()) < len(text.alphabet)
    one = dataclasses.replace(task(), text=sx.tasks.Text(np.zeros(50, int), np.ones(50, int), "ab"))
    assert not np.any(one.batch(jax.random.key(0)))


def test_halves_give_about_the_same_loss():
    one = task()
    params, batch = one.init(jax.random.key(0)), one.batch(jax.random.key(1))
    half = dataclasses.replace(one, dtype=jnp.bfloat16).loss(params, batch)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, one.loss(params, batch), rtol=0.02)


def test_positions_that_do_not_exist(unchecked):
    with pytest.raises(ValueError, match="`positions` must be 'learned' or 'rotary', got 'rotray'"):
        sx.tasks.Architecture(positions="rotray")


def test_held_out_text_needs_no_particular_batch_size():
    text = sx.tasks.Text(np.arange(60) % 7, np.arange(60) % 5, "abcdefg")
    shape = sx.tasks.Architecture(width=4, layers=1, heads=1, kv_heads=1, hidden=2, context=5)
    tasks = [sx.tasks.LanguageModel(text, shape, batch_size=size) for size in (16, 9)]
    one, other = (task.held_out(task.init(jax.random.key(0))) for task in tasks)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    short = sx.tasks.LanguageModel(sx.tasks.Text(np.arange(5), np.arange(5), "abcde"), shape)
    with pytest.raises(ValueError, match="A window has 6 characters, and the text 5"):
        short.batch(jax.random.key(0))


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="`heads` must be at least 1, got 0"):
        sx.tasks.Architecture(heads=0)
    with pytest.raises(ValueError, match="Rotary embeddings turn pairs of entries, and heads have 3"):
        sx.tasks.Architecture(width=6, heads=2, kv_heads=2, positions="rotary")
    with pytest.raises(ValueError, match="`heads` must divide `width`"):
        sx.tasks.Architecture(width=10, heads=4)


@pytest.mark.parametrize("positions", ["learned", pytest.param("rotary", marks=pytest.mark.slow)])
def test_a_discovery_finds_the_symmetry_that_is_written(positions):
    one = task(positions=positions, layers=1)
    params = one.init(jax.random.key(0))
    found = sx.find_symmetries(
        one.loss, params, jax.random.key(1), batch=one.batch, method="program"
    ).joined()

    def spaces(symmetry):
        def acted(name):
            return frozenset(symmetry.only(name).specs)

        return {
            (type(group).__name__, group.size, group.lengths, acted(n))
            for n, group in symmetry.spaces.items()
        }

    assert spaces(found) == spaces(one.symmetry())


def test_more_characters_than_the_context():
    one = task()
    with pytest.raises(ValueError, match="The model sees 10 characters, got 12"):
        one.logits(one.init(jax.random.key(0)), jnp.zeros((1, 12), int))
