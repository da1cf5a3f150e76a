"""One bit of a file is flipped: it is rejected, or what is loaded is what was saved."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
COUNTS = [30, pytest.param(500, marks=pytest.mark.slow)]
NETWORKS = {
    "whole": lambda: sx.learned.FlatGradientLSTM(2, algebra=1, width=6, key=KEY),
    "joined": lambda: sx.learned.Joint(
        (sx.learned.CoordinatewiseLSTM(width=4, key=KEY), sx.learned.PerNeuronLSTM(width=3, depth=1, key=KEY))
    ),
    "half": lambda: jax.tree.map(lambda x: x.astype(jnp.bfloat16), sx.learned.StepLSTM(width=5, key=KEY)),
}


def flips(content, count, seed):
    """The file with one bit flipped, again and again: half of them in the header, half in the arrays."""
    rng, start = np.random.default_rng(seed), 8 + int.from_bytes(content[:8], "little")
    for i in range(count):
        place = rng.integers(0, start) if i % 2 else rng.integers(start, len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield f"byte {place}", bytes(flipped)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_flipped_bit_of_an_artifact_is_rejected_or_without_effect(tmp_path, name, count):
    network = NETWORKS[name]()
    path = sx.save(network, tmp_path / "it.safetensors", training={"horizon": 20})
    _, whole = sx.load(path)
    content, messages = path.read_bytes(), []
    for place, flipped in flips(content, count, seed=0):
        path.write_bytes(flipped)
        try:
            loaded, card = sx.load(path)
        except sx.learned.ArtifactError as error:
            messages.append(str(error))
        else:
            assert eqx.tree_equal(loaded, network), place
            assert card == whole, place
    assert len(messages) > 0.9 * count
    assert not any("\n" in message for message in messages)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A call of `meta_train` with a checkpoint, what it gives, and the bytes of the checkpoint."""
    path = tmp_path_factory.mktemp("flips") / "run.safetensors"
    estimator = sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family("ellipse-random"), sx.UpdateRule(), steps=4, truncation=2, tasks=2
    )
    outer = optax.noisy_sgd(1e-2, key=jax.random.key(1))

    def make(key):
        return sx.learned.FlatGradientLSTM(2, width=4, depth=1, key=key)

    def train(identity="x"):
        return sx.meta_train(
            make, estimator, outer, KEY, outer_steps=2, seeds=2, chunk=1, checkpoint=path, identity=identity
        )

    return path, train, train(), path.read_bytes()


@pytest.mark.parametrize("count", COUNTS)
def test_a_flipped_bit_of_a_checkpoint_is_rejected_or_without_effect(trained, count):
    path, train, whole, content = trained
    messages = []
    for place, flipped in flips(content, count, seed=1):
        path.write_bytes(flipped)
        try:
            found = train()
        except ValueError as error:
            messages.append(str(error))
        else:
            assert eqx.tree_equal(found, whole), place
        assert path.read_bytes() == flipped, place
    assert len(messages) > 0.9 * count
    assert all("run.safetensors" in message for message in messages)
