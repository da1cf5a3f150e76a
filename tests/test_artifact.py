"""Trained optimizers in files: what comes back, and what is refused."""

import json
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")


KEY = jax.random.key(0)
# Made where they are used, since drawing their weights compiles programs.
NETWORKS = {
    "vanilla": lambda: sx.WholeLSTM(2, width=6, key=KEY),
    "teleporting": lambda: sx.WholeLSTM(3, algebra=3, width=5, depth=1, inputs=("previous",), key=KEY),
    "orbit": lambda: sx.WholeLSTM(2, algebra=1, width=4, inputs=("iterate", "orbit_derivative"), key=KEY),
    "gru": lambda: sx.WholeGRU(2, algebra=1, width=5, key=KEY),
    "mlp": lambda: sx.WholeMLP(2, emits=("step_size",), width=5, key=KEY),
    "along the orbit": lambda: sx.OrbitLSTM(2, algebra=1, sees=("slopes", "best"), width=5, key=KEY),
    "coordinatewise": lambda: sx.CoordinatewiseLSTM(width=7, scale=0.1, key=KEY),
}


@pytest.fixture
def saved(tmp_path):
    return sx.save(NETWORKS["orbit"](), tmp_path / "orbit.safetensors", training={"family": "booth"})


def rewrite(path, change):
    """Write the file again with its arrays and card changed, as somebody else might."""
    with safetensors.safe_open(path, framework="numpy") as file:
        card = json.loads(file.metadata()["card"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(card, arrays)
    path.write_bytes(safetensors.numpy.save(arrays, {"card": json.dumps(card)}))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_optimizer_comes_back_bit_for_bit(name, tmp_path):
    network = NETWORKS[name]()
    training, evaluation = {"family": "digits", "steps": 20}, {"loss_median": 0.1}
    path = sx.save(network, tmp_path / "it.safetensors", training=training, evaluation=evaluation)
    loaded, card = sx.load(path)
    assert type(loaded) is type(network)
    assert eqx.tree_equal(loaded, network)
    assert card["training"] == training
    assert card["evaluation"] == evaluation
    assert card["licence"] == "MIT"
    assert card["contract"] == network.contract()


def test_a_loaded_optimizer_takes_the_same_trajectory(tmp_path):
    network = NETWORKS["vanilla"]()
    loaded, _ = sx.load(sx.save(network, tmp_path / "it.safetensors"))
    runs = [sx.unroll(n.transform(), sx.booth(), jax.random.key(1), 5).loss for n in (network, loaded)]
    np.testing.assert_array_equal(*runs)


def test_a_missing_file_is_named():
    with pytest.raises(sx.ArtifactError, match="There is no trained optimizer at nowhere"):
        sx.load("nowhere.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(sx.ArtifactError, match="not a whole safetensors file"):
        sx.load(saved)


def test_a_pickle_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    import pickle

    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(sx.ArtifactError):
        sx.load(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(sx.ArtifactError, match="not a whole"):
        sx.load(path)


def test_a_horizon_beyond_the_cards_is_refused(tmp_path):
    network = NETWORKS["vanilla"]()
    path = sx.save(network, tmp_path / "short.safetensors", training={"horizon": 20})
    assert sx.load(path, horizon=20)[1]["training"] == {"horizon": 20}
    with pytest.raises(sx.ArtifactError, match="trained for 20 steps, and 200 are asked of it"):
        sx.load(path, horizon=200)
    silent = sx.save(network, tmp_path / "silent.safetensors")
    with pytest.raises(sx.ArtifactError, match="a number of steps that its card does not tell, and 5 are"):
        sx.load(silent, horizon=5)


def test_another_format_version_is_refused(saved):
    rewrite(saved, lambda card, arrays: card.update(format=99))
    with pytest.raises(sx.ArtifactError, match="format 99; this version of symmetrax reads format 1"):
        sx.load(saved)


def test_another_feature_contract_is_refused(saved):
    rewrite(saved, lambda card, arrays: card["contract"].update(reads=["gradient", "weather"]))
    with pytest.raises(sx.ArtifactError, match="weather"):
        sx.load(saved)


def test_an_unknown_kind_is_refused(saved):
    rewrite(saved, lambda card, arrays: card.update(kind="transformer"))
    with pytest.raises(sx.ArtifactError, match="'transformer'; known kinds are whole-lstm"):
        sx.load(saved)


def test_a_config_that_does_not_fit_is_refused(saved):
    rewrite(saved, lambda card, arrays: card["config"].update(heads=3))
    with pytest.raises(sx.ArtifactError, match="heads"):
        sx.load(saved)
    rewrite(saved, lambda card, arrays: (card["config"].pop("heads"), card["config"].update(width=9)))
    with pytest.raises(sx.ArtifactError, match=r"has shape .* expected"):
        sx.load(saved)


def test_changed_weights_do_not_reproduce_the_recorded_step(saved):
    rewrite(
        saved, lambda card, arrays: arrays.update({"weights.head.bias": arrays["weights.head.bias"] + 1e-3})
    )
    with pytest.raises(sx.ArtifactError, match="does not reproduce its recorded step: the update is off"):
        sx.load(saved)


def test_weights_that_are_nan_do_not_reproduce_the_recorded_step(saved):
    rewrite(saved, lambda card, arrays: arrays.update({"weights.head.bias": np.full(2, np.nan, np.float32)}))
    with pytest.raises(sx.ArtifactError, match="does not reproduce"):
        sx.load(saved)


def test_a_file_without_a_recorded_step_is_refused(saved):
    rewrite(saved, lambda card, arrays: arrays.pop("recorded.update"))
    with pytest.raises(sx.ArtifactError, match="recorded step"):
        sx.load(saved)


def test_a_file_without_a_card_is_refused(tmp_path):
    path = tmp_path / "plain.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.ones(2)}))
    with pytest.raises(sx.ArtifactError, match="no card"):
        sx.load(path)


def test_saving_is_all_or_nothing(saved, monkeypatch):
    """A crash while writing leaves the old file, and no part of the new one."""
    before = saved.read_bytes()

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        sx.save(NETWORKS["vanilla"](), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_what_is_not_a_library_optimizer_cannot_be_saved(tmp_path):
    class Mine(sx.WholeLSTM):
        kind = "mine"

    with pytest.raises(sx.ArtifactError, match="Cannot save a Mine"):
        sx.save(Mine(2, key=jax.random.key(0)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_recorded_step_survives_float64():
    """A file written in float32 loads under 64-bit mode too."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = sx.save(NETWORKS["coordinatewise"](), folder + "/it.safetensors")
        with jax.enable_x64(True):
            loaded, _ = sx.load(path)
            assert loaded.head.weight.dtype == jnp.float64
