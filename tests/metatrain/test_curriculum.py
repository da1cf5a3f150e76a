"""A curriculum over horizons, on networks that only count; and meta-training from given networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
CHUNK, RUNS = 2, 20
HORIZONS = (2, 4, 6)


class Counting(sx.metatrain.AbstractMetaGradient):
    """The meta-gradient is -1: gradient descent at rate 1 counts the windows, whatever their number."""

    def init(self, network, key, shape):
        return ()

    def step(self, network, carry, key, shape):
        gradient = {"count": jnp.array(-1.0) / self.windows, "seed": jnp.array(0.0)}
        return network["count"] * 0.5, gradient, carry


def make(key):
    """A counter of runs, and a number that tells the seeds apart."""
    return {"count": jnp.array(0.0), "seed": jax.random.uniform(key)}


def estimator(steps):
    return Counting(sx.tasks.make_family("booth"), sx.UpdateRule(), steps=steps, truncation=2)


def train(worth, seeds=1, patience=3, key=KEY, horizons=HORIZONS, **options):
    """`worth[horizon][seed]` is what a network is worth on that horizon after 0, 2, 4, ... runs in all."""
    marks = [make(jax.random.fold_in(jax.random.fold_in(_stage(key, 0), i), 0))["seed"] for i in range(seeds)]

    def validate(network, steps):
        table = jnp.asarray(worth[steps], jnp.float32)
        row = jnp.argmin(jnp.abs(jnp.stack(marks) - network["seed"]))
        return table[row, jnp.round(network["count"] / CHUNK).astype(int)]

    return sx.metatrain.curriculum_train(
        make,
        estimator,
        optax.sgd(1.0),
        key,
        validate,
        outer_steps=RUNS,
        seeds=seeds,
        chunk=CHUNK,
        patience=patience,
        horizons=horizons,
        **options,
    )


def _stage(key, index):
    return jax.random.fold_in(key, index)


def counts(trained):
    return np.asarray(trained.networks["count"]).tolist()


def table(*rows):
    """Curves padded to what can be asked for."""
    return [[*row, *[99.0] * (40 - len(row))] for row in rows]


# Stage one: best after 3 chunks, left after 3 more. Stage two: from there, best after 2, left after 3 more.
CURVES = {4: table([0, 9, 8, 7, 8, 8, 8]), 6: table([9, 9, 9, 6, 5, 4, 5, 5, 5])}


def test_stages_are_left_after_the_patience_and_start_from_the_best_networks():
    """S20, E27: the last stage is validated on its own horizon and here gives nothing."""
    trained = train(CURVES)
    assert [(stage.steps, stage.validated_on) for stage in trained.stages] == [(2, 4), (4, 6), (6, 6)]
    np.testing.assert_array_equal(trained.stages[0].trained.validation, [[9, 8, 7, 8, 8, 8]])
    np.testing.assert_array_equal(trained.stages[1].trained.validation, [[5, 4, 5, 5, 5]])
    np.testing.assert_array_equal(trained.stages[2].trained.validation, [[5, 5, 5, 99]])
    assert [stage.before.tolist() for stage in trained.stages] == [[np.inf], [6.0], [4.0]]
    assert [stage.improved.tolist() for stage in trained.stages] == [[True], [True], [False]]
    assert counts(trained) == [CHUNK * 5.0]


def test_it_ends_with_the_first_stage_that_gives_nothing():
    """The second stage gets no better on the third horizon, so the third never comes."""
    trained = train({4: CURVES[4], 6: table([9, 9, 9, 3, 4, 4, 4, 4, 0])})
    assert [stage.steps for stage in trained.stages] == [2, 4]
    assert counts(trained) == [CHUNK * 3.0]


def test_seeds_keep_their_own_best_and_go_on_while_one_of_them_gains():
    """The second seed gains nothing in stage two and keeps the network of stage one."""
    falling = [9, 8, 7, 6, 6, 6, 6]
    trained = train(
        {
            4: table(falling, [9, 5, 6, 6, 6, 6, 6]),
            6: table([9, 9, 9, 9, 8, 9, 9, 9, 9, 9], [9, 1, *[2] * 9]),
        },
        seeds=2,
    )
    assert trained.stages[0].improved.tolist() == [True, True]
    assert trained.stages[1].before.tolist() == [9.0, 1.0]
    assert trained.stages[1].improved.tolist() == [True, False]
    assert counts(trained) == [CHUNK * 4.0, CHUNK * 1.0]


def test_what_is_not_finite_is_never_an_improvement():
    trained = train({4: table([9, np.nan, np.inf, np.nan]), 6: table([9] * 9)})
    assert [stage.improved.tolist() for stage in trained.stages] == [[False]]
    assert counts(trained) == [0.0]


class Interruption(Exception):
    pass


@pytest.mark.parametrize(
    "stop", mostly_slow([(0, 4), (0, 12), (1, 2), (1, 10), (2, 4)], [(0, 12), (1, 2), (2, 4)])
)
def test_an_interrupted_curriculum_continues_bit_for_bit(tmp_path, stop, whole):
    def interrupt(stage, now):
        if (stage, now.done) == stop:
            raise Interruption

    with pytest.raises(Interruption):
        train(CURVES, checkpoints=tmp_path / "stages", progress=interrupt)
    assert eqx.tree_equal(train(CURVES, checkpoints=tmp_path / "stages"), whole)
    names = [f"stage-{index}.safetensors" for index in range(3)]
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == names


@pytest.fixture(scope="module")
def whole():
    return train(CURVES)


def test_a_finished_stage_is_not_trained_again(tmp_path, whole):
    """Even where checkpoints are rare: the end of a stage is always written."""
    options = {"checkpoints": tmp_path, "save_every": 1e9}
    train(CURVES, **options)

    def never(stage, now):
        raise Interruption

    assert eqx.tree_equal(train(CURVES, progress=never, **options), whole)


def test_a_small_real_curriculum_learns():
    """On one ellipse: training on 8 steps gets more out of them than training on 4 did."""
    family, rule = sx.tasks.make_family("ellipse-fixed"), sx.UpdateRule()

    def validate(network, steps):
        trace = sx.unroll_many(rule, network, family, jax.random.key(7), steps=steps, tasks=16)
        return jnp.median(trace.loss[-1])

    trained = sx.metatrain.curriculum_train(
        lambda key: sx.learned.FlatGradientLSTM(2, width=6, depth=1, key=key),
        lambda steps: sx.metatrain.TruncatedBPTT(family, rule, steps=steps, truncation=4, tasks=16),
        optax.adam(3e-2),
        KEY,
        validate,
        outer_steps=24,
        chunk=6,
        horizons=(4, 8),
        patience=1,
    )
    assert [stage.steps for stage in trained.stages] == [4, 8]
    second = trained.stages[1]
    assert second.improved.all()
    assert second.before[0] == np.min(trained.stages[0].trained.validation)
    assert np.min(second.trained.validation) < 0.5 * second.before[0]


@pytest.mark.parametrize("horizons", [(), (10, 5), (5, 5)])
def test_horizons_that_do_not_grow_are_rejected(horizons):
    with pytest.raises(ValueError, match="each larger than the last"):
        train(CURVES, horizons=horizons)


def start(*numbers):
    return {"count": jnp.asarray(numbers), "seed": jnp.zeros(len(numbers))}


def meta_train(networks, seeds=2, **options):
    return sx.meta_train(
        make,
        estimator(2),
        optax.sgd(1.0),
        KEY,
        outer_steps=4,
        seeds=seeds,
        chunk=2,
        networks=networks,
        **options,
    )


def test_meta_training_starts_from_given_networks():
    assert counts(meta_train(start(10.0, 20.0))) == [14.0, 24.0]


def test_training_in_two_parts_is_training_at_once():
    """Gradient descent has no state of its own, so nothing is lost between the parts."""
    once = sx.meta_train(make, estimator(2), optax.sgd(1.0), KEY, outer_steps=4, seeds=2, chunk=2)
    again = meta_train(once.networks)
    np.testing.assert_allclose(counts(again), 2 * np.array(counts(once)))
    np.testing.assert_array_equal(again.networks["seed"], once.networks["seed"])


def test_a_checkpoint_belongs_to_its_start(tmp_path):
    path = tmp_path / "run.safetensors"
    first = meta_train(start(10.0, 20.0), checkpoint=path)
    assert eqx.tree_equal(meta_train(start(10.0, 20.0), checkpoint=path), first)
    for other in (start(10.0, 21.0), None):
        with pytest.raises(ValueError, match="another meta-training"):
            meta_train(other, checkpoint=path)


def test_as_many_networks_as_seeds_are_needed():
    with pytest.raises(ValueError, match=r"must be 3 networks.*has shape \(2,\)"):
        meta_train(start(10.0, 20.0), seeds=3)
    with pytest.raises(ValueError, match=r"has shape \(\)"):
        meta_train({"count": jnp.array(0.0), "seed": jnp.array(0.0)}, seeds=1)
