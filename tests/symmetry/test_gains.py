"""Folding gains: the function stays, the gains are 1, and what cannot be folded is named."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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


class TestErrors:
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
