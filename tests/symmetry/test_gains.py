"""Folding gains: the function stays, the gains are 1, and what cannot be folded is named."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")


def norm(x, layer):
    x = x - layer * jnp.mean(x, -1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def model(layer=False, tied=False, post=False, offset=0.0, stacked=False):
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape))

    params = {"embed": normal(9, 6), "final": normal(6)} | ({} if tied else {"head": normal(9, 6)})
    blocks = [
        {"gain": normal(6), "bias": normal(6), "up": normal(8, 6), "gate": normal(8, 6), "down": normal(6, 8)}
        for _ in range(2)
    ]
    params["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks) if stacked else blocks
    tokens = jnp.asarray(random.integers(0, 9, (3, 4)))

    def block(h, p):
        if post:
            hidden = jax.nn.relu(h @ p["up"].T) * (h @ p["gate"].T)
            return h + p["gain"] * norm(hidden @ p["down"].T, layer)
        x = (p["gain"] + offset) * norm(h, layer) + layer * p["bias"]
        return h + (jax.nn.relu(x @ p["up"].T) * (x @ p["gate"].T)) @ p["down"].T

    def loss(params, batch=None):
        h = params["embed"][tokens]
        if stacked:
            h, _ = jax.lax.scan(lambda h, p: (block(h, p), None), h, params["layers"])
        else:
            for p in params["layers"]:
                h = block(h, p)
        logits = ((params["final"] + offset) * norm(h, layer)) @ params["embed" if tied else "head"].T
        return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

    return loss, params


GAINS = {"layers.{i}.gain": ["layers.{i}.up", "layers.{i}.gate"], "final": ["head"]}
STACKED = {"layers.gain": ["layers.up", "layers.gate"], "final": ["head"]}


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_function_is_the_same_and_can_be_rotated(float64, layer, offset, stacked):
    loss, params = model(layer=layer, offset=offset, stacked=stacked)
    gains = STACKED if stacked else GAINS
    biases = {name: name.replace("gain", "bias") for name in gains if layer and "layers" in name}
    folded = sx.symmetry.fold_gains(params, gains, biases=biases, offset=offset, loss=loss)
    assert float(folded.loss_change) < 1e-12
    np.testing.assert_allclose(folded.params["final"], 1 - offset, atol=1e-12)
    masks = dict(zip(*zip(*jax.tree_util.tree_leaves_with_path(folded.trainable), strict=True), strict=True))
    fixed = {jax.tree_util.keystr(path) for path, trained in masks.items() if not trained}
    assert all("gain" in name or "final" in name for name in fixed)
    assert len(fixed) == (2 if stacked else 3)
    if layer or stacked or offset:
        return
    symmetry = sx.models.residual_stream_symmetry(
        folded.params, ["layers.{i}.down"], ["layers.{i}.up", "layers.{i}.gate"], embeddings=["embed", "head"]
    )
    free, frozen = eqx.partition(folded.params, folded.trainable)
    report = sx.verify(lambda w, _: loss(eqx.combine(w, frozen)), free, symmetry, jax.random.key(0))
    assert report.outcome.startswith("exact")
    there = symmetry.act(symmetry.sample(jax.random.key(1)), params)
    assert not np.isclose(loss(there), loss(params), rtol=1e-3)  # before, it could not


def flat(**changes):
    """A stream of six channels with one gain and two readers stored (in, out), and its loss."""
    random, x = np.random.default_rng(1), jnp.linspace(-1, 1, 15).reshape(3, 5)
    shapes = {"embed": (5, 6), "gain": (6,), "up": (6, 8), "gate": (6, 8)}
    params = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    params |= changes

    def loss(p, batch=None):
        read = p["gain"] * norm(x.astype(p["embed"].dtype) @ p["embed"], 0)
        return jnp.mean((jnp.tanh(read @ p["up"]) * (read @ p["gate"])).astype(jnp.float32) ** 2)

    return loss, params


@pytest.mark.parametrize("inputs", [-2, 0])
def test_gains_are_exactly_one_however_the_readers_are_stored(inputs):
    loss, params = flat()
    folded = sx.symmetry.fold_gains(params, {"gain": ["up", "gate"]}, inputs=inputs, loss=loss)
    assert np.array_equal(folded.params["gain"], np.ones(6))
    # Two patterns may share a gain, and a single reader need not be in a list.
    both = {"{g}ain": "up", "gain": "gate"}
    assert np.array_equal(
        sx.symmetry.fold_gains(params, both, inputs=inputs, loss=loss).params["up"], folded.params["up"]
    )


def test_a_pattern_of_readers_may_have_more_fields_than_its_gain():
    params = {"gain": jnp.array([2.0, 4.0]), "layers": [{"up": jnp.ones((1, 2))} for _ in range(2)]}
    folded = sx.symmetry.fold_gains(params, {"gain": ["layers.{i}.up"]})
    assert [layer["up"].tolist() for layer in folded.params["layers"]] == [[[2.0, 4.0]], [[2.0, 4.0]]]


def test_offsets_keep_all_their_digits(float64):
    params = {"gain": jnp.array([1.0, -2.0]), "up": jnp.ones((1, 2))}
    for offset in (1 / 3, 1e-7, -0.25):
        folded = sx.symmetry.fold_gains(params, {"gain": ["up"]}, offset=offset)
        assert folded.params["gain"].tolist() == [1 - offset] * 2
        np.testing.assert_allclose(folded.params["up"][0], params["gain"] + offset, rtol=1e-14)


def test_half_precision_is_certified_up_to_its_rounding():
    loss, params = flat()
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    gains = {"gain": ["up", "gate"]}
    assert 0 < float(sx.symmetry.fold_gains(half, gains, inputs=-2, loss=loss).loss_change) < 2**-7
    with pytest.raises(ValueError, match="changed the loss from"):
        sx.symmetry.fold_gains(half, {"gain": ["up"]}, inputs=-2, loss=loss)

    def inside(p, batch=None):
        return loss(jax.tree.map(lambda w: w.astype(jnp.bfloat16), p))

    assert sx.symmetry.fold_gains(params, gains, inputs=-2, loss=inside).loss_change < 2**-7


def test_only_floating_point_arrays_are_trainable():
    _, params = flat(act=jnp.tanh, steps=jnp.array(3))
    folded = sx.symmetry.fold_gains(params, {"gain": ["up", "gate"]}, inputs=-2)
    assert {name for name, trained in folded.trainable.items() if trained} == {"embed", "up", "gate"}


def test_gains_stay_when_the_optimizer_is_partitioned():
    loss, params = flat()
    folded = sx.symmetry.fold_gains(params, {"gain": ["up", "gate"]}, inputs=-2)
    optimizer = optax.partition({True: optax.adam(0.1), False: optax.set_to_zero()}, folded.trainable)
    gradient = jax.grad(loss)(folded.params)
    updates, _ = optimizer.update(gradient, optimizer.init(folded.params), folded.params)
    assert not np.any(updates["gain"])
    assert np.all(updates["up"] != 0)


class TestErrors:
    @pytest.mark.parametrize("inputs", [-1, 2, -3])
    def test_of_an_axis_along_which_nothing_is_read(self, inputs):
        _, params = flat()
        with pytest.raises(ValueError, match=r"up of shape \(6, 8\) does not read gain .* inputs=-2"):
            sx.symmetry.fold_gains(params, {"gain": ["up"]}, inputs=inputs)

    def test_of_the_axis_of_layers(self):
        params = {"gain": jnp.ones((6, 6)), "up": jnp.ones((6, 6, 8))}
        with pytest.raises(ValueError, match=r"does not read gain of shape \(6, 6\) along axis inputs=0"):
            sx.symmetry.fold_gains(params, {"gain": ["up"]}, inputs=0)

    def test_of_biases(self):
        params = {name: jnp.ones(2) for name in ("gain", "other", "bias", "read", "up")}
        with pytest.raises(ValueError, match="`biases` has the key 'gian', but `gains` has gain"):
            sx.symmetry.fold_gains(params, {"gain": ["up"]}, biases={"gian": "bias"})
        gains = {"gain": ["up"], "other": ["read"]}
        with pytest.raises(ValueError, match="bias is listed twice, the second time as the bias of other"):
            sx.symmetry.fold_gains(params, gains, biases=dict.fromkeys(gains, "bias"))

    def test_of_a_gain_that_reads_another(self):
        params = {name: jnp.ones(2) for name in ("gain", "other", "up")}
        with pytest.raises(ValueError, match="other is listed twice, the second time as a gain"):
            sx.symmetry.fold_gains(params, {"gain": ["other"], "other": ["up"]})

    def test_of_a_loss_that_is_no_number(self):
        _, params = flat()
        for loss in (lambda p, _: p["up"], lambda p, _: jnp.nan):
            with pytest.raises(ValueError, match="The loss must be a finite number"):
                sx.symmetry.fold_gains(params, {"gain": ["up"]}, inputs=-2, loss=loss)

    def test_inside_compiled_code(self):
        _, params = flat()
        with pytest.raises(ValueError, match="which compiled code cannot: call it outside"):
            jax.jit(lambda p: sx.symmetry.fold_gains(p, {"gain": ["up"]}, inputs=-2).params)(params)

    def test_of_a_reader_that_is_missing(self):
        loss, params = model()
        gains = {"layers.{i}.gain": ["layers.{i}.up"]}
        with pytest.raises(ValueError, match=r"changed the loss from .* List all readers"):
            sx.symmetry.fold_gains(params, gains, loss=loss)

    def test_of_a_head_tied_to_the_embedding(self):
        loss, params = model(tied=True)
        with pytest.raises(ValueError, match="a head tied to the embedding"):
            sx.symmetry.fold_gains(params, {"final": ["embed"]}, loss=loss)

    def test_of_a_normalization_after_a_block(self):
        loss, params = model(post=True)
        with pytest.raises(ValueError, match="post-norm"):
            sx.symmetry.fold_gains(params, {"layers.{i}.gain": ["layers.{i}.up"]}, loss=loss)

    def test_of_a_gain_that_is_zero(self):
        _, params = model()
        params["final"] = params["final"].at[2].set(0.0)
        with pytest.raises(ValueError, match="final is zero or not finite somewhere"):
            sx.symmetry.fold_gains(params, GAINS)

    def test_of_a_matrix_that_reads_two_gains(self):
        _, params = model()
        with pytest.raises(ValueError, match="head is listed twice"):
            sx.symmetry.fold_gains(params, {"final": ["head"], "layers.{i}.gain": ["head"]})

    def test_of_a_name_that_is_not_there(self):
        _, params = model()
        with pytest.raises(ValueError, match="hed"):
            sx.symmetry.fold_gains(params, {"final": ["hed"]})
