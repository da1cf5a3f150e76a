"""Trained optimizers in files: what comes back, and what is rejected."""

import json
import os
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import symmetrax as sx

# Artifacts are damaged array by array, which takes the functions that read and write them.
from symmetrax._files import load_arrays, save_arrays

pytestmark = pytest.mark.usefixtures("quick_compilation")


KEY = jax.random.key(0)
# Made where they are used, since drawing their weights compiles programs.
NETWORKS = {
    "vanilla": lambda: sx.learned.FlatGradientLSTM(2, width=6, key=KEY),
    "teleporting": lambda: sx.learned.FlatGradientLSTM(
        3, algebra=3, width=5, depth=1, inputs=("previous",), key=KEY
    ),
    "orbit": lambda: sx.learned.FlatGradientLSTM(
        2, algebra=1, width=4, inputs=("iterate", "orbit_derivative"), key=KEY
    ),
    "gru": lambda: sx.learned.FlatGradientGRU(2, algebra=1, width=5, key=KEY),
    "mlp": lambda: sx.learned.FlatGradientMLP(2, emits=("step_size",), width=5, key=KEY),
    "along the orbit": lambda: sx.learned.OrbitLSTM(2, algebra=1, sees=("slopes", "best"), width=5, key=KEY),
    "coordinatewise": lambda: sx.learned.CoordinatewiseLSTM(width=7, scale=0.1, key=KEY),
}


class Tiny(sx.learned.AbstractLearnedOptimizer):
    """An optimizer of a user's own: one recurrent unit, with a table and a function among its leaves."""

    kind = "tiny"
    weight: jax.Array
    table: jax.Array
    squash: object
    rate: float = eqx.field(static=True)

    def __init__(self, rate=0.1, *, key):
        self.weight = jax.random.normal(key, (2,))
        self.table, self.squash, self.rate = jnp.arange(3), jnp.tanh, rate

    def memory(self, params, symmetry=None):
        return jnp.zeros(())

    def propose(self, info, memory):
        memory = self.squash(self.weight[0] * memory + self.weight[1] * jnp.sum(info.gradient))
        return sx.learned.Proposal(update=-self.rate * memory * info.gradient), memory

    def example(self):
        return sx.learned.Observation(jnp.ones(2), jnp.zeros(2), jnp.zeros(2), None, None)

    def config(self):
        return {"rate": self.rate}

    def contract(self):
        return {"version": 1, "reads": ["gradient"], "emits": ["update"]}


@pytest.fixture
def saved(tmp_path):
    return sx.save(NETWORKS["orbit"](), tmp_path / "orbit.safetensors", training={"family": "booth"})


def rewrite(path, change):
    """Write the file again with its arrays and card changed, and with a checksum that fits, out of malice."""
    arrays, card = load_arrays(path, "trained optimizer")
    change(card, arrays)
    save_arrays(path, arrays, card)


def tamper(path, change):
    """Write the file again with its arrays changed, as a tool that knows nothing of checksums."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(arrays)
    path.write_bytes(safetensors.numpy.save(arrays, metadata))


def message_of(path, **options):
    """What `load` says of a file that it rejects: always in one line."""
    with pytest.raises(sx.learned.ArtifactError) as caught:
        sx.load(path, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 1100
    return message


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
    runs = [sx.unroll(n.transform(), sx.tasks.booth(), jax.random.key(1), 5).loss for n in (network, loaded)]
    np.testing.assert_array_equal(*runs)


def test_a_missing_file_is_named():
    with pytest.raises(sx.learned.ArtifactError, match="There is no trained optimizer at nowhere"):
        sx.load("nowhere.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_rejected(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(sx.learned.ArtifactError, match="not a whole safetensors file"):
        sx.load(saved)


def test_a_pickle_is_rejected_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    import pickle

    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(sx.learned.ArtifactError):
        sx.load(path)


def test_a_header_longer_than_the_file_is_rejected(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(sx.learned.ArtifactError, match="not a whole"):
        sx.load(path)


def test_a_horizon_beyond_the_cards_is_rejected(tmp_path):
    network = NETWORKS["vanilla"]()
    path = sx.save(network, tmp_path / "short.safetensors", training={"horizon": 20})
    assert sx.load(path, horizon=20)[1]["training"] == {"horizon": 20}
    with pytest.raises(sx.learned.ArtifactError, match="trained on runs of 20 steps, but horizon=200 asks"):
        sx.load(path, horizon=200)
    silent = sx.save(network, tmp_path / "silent.safetensors")
    with pytest.raises(
        sx.learned.ArtifactError, match="trained on runs of an unknown number of steps, but horizon=5"
    ):
        sx.load(silent, horizon=5)


def test_another_format_version_is_rejected(saved):
    rewrite(saved, lambda card, arrays: card.update(format=99))
    with pytest.raises(sx.learned.ArtifactError, match="format 99; this version of symmetrax reads format 2"):
        sx.load(saved)


def test_another_feature_contract_is_rejected(saved):
    rewrite(saved, lambda card, arrays: card["contract"].update(reads=["gradient", "weather"]))
    with pytest.raises(sx.learned.ArtifactError, match="weather"):
        sx.load(saved)


def test_an_unknown_kind_is_rejected(saved):
    rewrite(saved, lambda card, arrays: card.update(kind="transformer"))
    with pytest.raises(sx.learned.ArtifactError, match="'transformer'; known kinds are flat-gradient-lstm"):
        sx.load(saved)


def test_a_config_that_does_not_fit_is_rejected(saved):
    rewrite(saved, lambda card, arrays: card["config"].update(heads=3))
    with pytest.raises(sx.learned.ArtifactError, match="heads"):
        sx.load(saved)
    rewrite(saved, lambda card, arrays: (card["config"].pop("heads"), card["config"].update(width=9)))
    with pytest.raises(sx.learned.ArtifactError, match=r"has shape .* expected"):
        sx.load(saved)


def test_changed_weights_do_not_reproduce_the_recorded_step(saved):
    rewrite(
        saved, lambda card, arrays: arrays.update({"weights.head.bias": arrays["weights.head.bias"] + 1e-3})
    )
    with pytest.raises(
        sx.learned.ArtifactError, match=r"does not reproduce its recorded steps: step0\.update has a rel"
    ):
        sx.load(saved)


CHANGES = {
    "huge": lambda x: x * np.float32(1e30),
    "zero": np.zeros_like,
    "negative": np.negative,
    "one bit": lambda x: (x.view(np.int32) ^ (np.arange(x.size).reshape(x.shape) == 3)).view(np.float32),
    "bool": lambda x: x.astype(bool),
    "integers": lambda x: x.view(np.int32),
    "half": lambda x: x.astype(np.float16),
    "double": lambda x: x.astype(np.float64),
    "transposed": lambda x: x.T,
    "flat": np.ravel,
}


@pytest.mark.parametrize("change", CHANGES)
def test_recurrent_weights_that_were_changed_are_rejected(saved, change):
    """They count from the second step on; a checksum sees every change, a recorded step the large ones."""

    def to_recurrent(arrays):
        for name in [name for name in arrays if name.endswith("weight_hh")]:
            arrays[name] = np.ascontiguousarray(CHANGES[change](arrays[name]))

    content = saved.read_bytes()
    tamper(saved, to_recurrent)
    assert "is damaged" in message_of(saved)
    if change in ("one bit", "half"):  # with a checksum that fits these are other weights, and as good
        return
    saved.write_bytes(content)
    rewrite(saved, lambda card, arrays: to_recurrent(arrays))
    message = message_of(saved)
    assert ("does not reproduce its recorded steps: step1" in message) or "weight_hh" in message


def test_weights_that_are_nan_are_rejected(saved):
    rewrite(saved, lambda card, arrays: arrays.update({"weights.head.bias": np.full(2, np.nan, np.float32)}))
    assert "2 entries of 2 in 'weights.head.bias' that are infinite or NaN" in message_of(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_saved(saved, value):
    before = saved.read_bytes()
    network = NETWORKS["vanilla"]()
    network = eqx.tree_at(
        lambda n: n.core.cells[1].weight_hh, network, replace_fn=lambda x: x.at[0].set(value)
    )
    with pytest.raises(
        sx.learned.ArtifactError, match=r"6 entries of 144 in 'weights\.core\.cells\.1\.weight_hh'"
    ):
        sx.save(network, saved)
    assert saved.read_bytes() == before


def test_the_networks_of_several_seeds_are_not_saved_as_one(tmp_path):
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), NETWORKS["mlp"]())
    with pytest.raises((sx.learned.ArtifactError, TypeError)):
        sx.save(stacked, tmp_path / "stacked.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back_as_it_was(dtype, tmp_path):
    network = jax.tree.map(lambda x: x.astype(dtype), NETWORKS["vanilla"]())
    loaded, _ = sx.load(sx.save(network, tmp_path / "half.safetensors"))
    assert eqx.tree_equal(loaded, network)
    assert loaded.core.cells[0].weight_hh.dtype == dtype


def test_double_precision_is_not_cut_to_single(tmp_path):
    path = tmp_path / "double.safetensors"
    with jax.enable_x64(True):
        network = NETWORKS["mlp"]()
        loaded, _ = sx.load(sx.save(network, path))
        assert loaded.core.layers[0].weight.dtype == jnp.float64
        assert eqx.tree_equal(loaded, network)
    assert "float64, which JAX supports only with 64-bit types" in message_of(path)


def test_a_file_without_a_recorded_step_is_rejected(saved):
    rewrite(saved, lambda card, arrays: arrays.pop("recorded.step1.update"))
    assert "lacks the array 'recorded.step1.update'" in message_of(saved)


def test_an_array_too_many_is_rejected(saved):
    rewrite(saved, lambda card, arrays: arrays.update({"weights.extra": np.ones(2)}))
    assert "arrays that do not belong there: 'weights.extra'" in message_of(saved)


def test_an_artifact_of_the_first_format_is_rejected(saved):
    card = json.dumps({"format": 1, "kind": "flat-gradient-lstm"})
    saved.write_bytes(safetensors.numpy.save({"weights.head.bias": np.ones(2)}, {"card": card}))
    assert "has no checksum" in message_of(saved)


def test_a_file_without_a_card_is_rejected(tmp_path):
    path = tmp_path / "plain.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.ones(2)}))
    with pytest.raises(sx.learned.ArtifactError, match="no card"):
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


def test_the_recorded_steps_survive_float64(saved):
    """A file written in float32 loads under 64-bit mode too, and in the dtype that it was written in."""
    single, _ = sx.load(saved)
    with jax.enable_x64(True):
        loaded, _ = sx.load(saved)
        assert eqx.tree_equal(loaded, single)


def test_an_own_optimizer_comes_back_if_its_class_is_given(tmp_path):
    network = Tiny(0.25, key=KEY)
    path = sx.save(network, tmp_path / "tiny.safetensors", training={"family": "booth"})
    loaded, card = sx.load(path, classes=[Tiny])
    assert eqx.tree_equal(loaded, network)
    assert card["kind"] == "tiny"
    assert card["classes"]["tiny"].endswith(":Tiny")
    message = message_of(path)
    assert "is of kind 'tiny', saved from the class" in message
    assert "load(path, classes=[Tiny])" in message


def test_own_optimizers_may_be_joined_with_others(tmp_path):
    network = sx.learned.Joint(
        (Tiny(key=KEY), sx.learned.Joint((sx.learned.PerNeuronLSTM(width=3, depth=1, key=KEY),)))
    )
    path = sx.save(network, tmp_path / "joined.safetensors")
    assert eqx.tree_equal(sx.load(path, classes=(Tiny,))[0], network)
    assert "classes=[Tiny]" in message_of(path)


def test_a_file_cannot_have_anything_imported(tmp_path, monkeypatch):
    """The class that a file names is a word in an error, even if it could be imported."""
    path = sx.save(Tiny(key=KEY), tmp_path / "tiny.safetensors")

    def elsewhere(card, arrays):
        card["kind"], card["classes"] = "antigravity:fly", {"antigravity:fly": "antigravity:fly"}

    rewrite(path, elsewhere)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert "saved from the class antigravity:fly" in message_of(path)
    assert "saved from the class antigravity:fly" in message_of(path, classes=[Tiny])


@pytest.mark.usefixtures("unchecked")
def test_an_own_class_needs_a_kind_of_its_own(tmp_path):
    class Mine(sx.learned.FlatGradientLSTM):
        pass

    with pytest.raises(
        sx.learned.ArtifactError, match="Mine has the kind 'flat-gradient-lstm', which belongs to"
    ):
        sx.save(Mine(2, key=KEY), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="Mine has the kind 'flat-gradient-lstm'"):
        sx.load("nowhere.safetensors", classes=[Mine])
    with pytest.raises(ValueError, match="must be subclasses of AbstractLearnedOptimizer, got <class 'int'>"):
        sx.load("nowhere.safetensors", classes=[int])


def test_a_config_that_does_not_tell_all_is_rejected_when_saving(tmp_path):
    """Else another network would come back than the one that was saved."""

    class Forgetful(Tiny):
        kind = "forgetful"

        def config(self):
            return {}

    class Demanding(Tiny):
        kind = "demanding"

        def __init__(self, more, key):
            super().__init__(key=key)

    path = tmp_path / "x.safetensors"
    assert sx.save(Forgetful(key=KEY), path)
    path.unlink()
    with pytest.raises(
        sx.learned.ArtifactError, match=r"Cannot save a Forgetful: it is not what Forgetful\(\*\*net"
    ):
        sx.save(Forgetful(0.3, key=KEY), path)
    with pytest.raises(sx.learned.ArtifactError, match="has a config that Demanding does not accept"):
        sx.save(Demanding(1, key=KEY), path)
    assert not list(tmp_path.iterdir())


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def joined(count):
    def change(card, arrays):
        part = {"kind": card["kind"], **card["config"]}
        card["kind"], card["config"] = "joint", {"networks": [part] * count}

    return change


HOSTILE = {
    "kind is a list": lambda card, arrays: card.update(kind=[]),
    "kind is an object": lambda card, arrays: card.update(kind={}),
    "no kind": lambda card, arrays: card.pop("kind"),
    "no config": lambda card, arrays: card.pop("config"),
    "config is a list": lambda card, arrays: card.update(config=[1]),
    "no contract": lambda card, arrays: card.pop("contract"),
    "no training": lambda card, arrays: card.pop("training"),
    "training is a list": lambda card, arrays: card.update(training=[]),
    "licence is a number": lambda card, arrays: card.update(licence=1),
    "classes is a list": lambda card, arrays: card.update(classes=["flat-gradient-lstm"]),
    "format is true": lambda card, arrays: card.update(format=[2]),
    "a kind of a million letters": lambda card, arrays: card.update(kind="x" * 10**6),
    "a kind of many lines": lambda card, arrays: card.update(kind="\n" * 100),
    "depth 10^9": lambda card, arrays: card["config"].update(depth=10**9),
    "depth 10^4": lambda card, arrays: card["config"].update(depth=10**4),
    "depth -1": lambda card, arrays: card["config"].update(depth=-1),
    "depth is text": lambda card, arrays: card["config"].update(depth="2"),
    "depth is a float": lambda card, arrays: card["config"].update(depth=2.0),
    "width 10^9": lambda card, arrays: card["config"].update(width=10**9),
    "width 10^300": lambda card, arrays: card["config"].update(width=10**300),
    "width is true": lambda card, arrays: card["config"].update(width=True),
    "width is null": lambda card, arrays: card["config"].update(width=None),
    "size 0": lambda card, arrays: card["config"].update(size=0),
    "max_norm is text": lambda card, arrays: card["config"].update(max_norm="far"),
    "rates is empty": lambda card, arrays: card["config"].update(rates=[]),
    "rates is long": lambda card, arrays: card["config"].update(rates=[0.1] * 10**5),
    "emits is nested": lambda card, arrays: card["config"].update(emits=[["update"]]),
    "joined 4,000 times": joined(4000),
    "joined no times": joined(0),
    "joined with text": lambda card, arrays: card.update(kind="joint", config={"networks": ["x"]}),
    "joined with nothing": lambda card, arrays: card.update(kind="joint", config={}),
    "step misshapen": lambda card, arrays: arrays.update({"recorded.step0.update": np.ones((2, 2))}),
    "step empty": lambda card, arrays: arrays.update({"recorded.step0.update": np.ones(0, np.float32)}),
    "gradient misshapen": lambda card, arrays: arrays.update({"recorded.gradient": np.ones((), np.float32)}),
    "gradient of integers": lambda card, arrays: arrays.update({"recorded.gradient": np.ones(2, np.int32)}),
    "a weight of complex numbers": lambda card, arrays: arrays.update(
        {"weights.head.bias": np.ones(2, np.complex64)}
    ),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_hostile_card_is_rejected_in_one_line(saved, change):
    rewrite(saved, HOSTILE[change])
    message_of(saved)


def test_joined_networks_are_bounded_even_where_all_are_there(tmp_path):
    many = sx.learned.Joint(tuple(Tiny(key=KEY) for _ in range(101)))
    with pytest.raises(sx.learned.ArtifactError, match="joins 101 networks, but a file can join at most 100"):
        sx.save(many, tmp_path / "many.safetensors")


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


BRACKETS = b"[" * 100_000
CONTENTS = {
    "brackets": header(BRACKETS),
    "a card of brackets": header(
        b'{"__metadata__": {"card": "' + BRACKETS + b'", "sha256": "", "data": ""}}'
    ),
    "a list": header(b"[]"),
    "null": header(b"null"),
    "no JSON": header(b"{]"),
    "no text": header(b"\xff\xfe"),
    "metadata of numbers": header(b'{"__metadata__": {"card": 1}}'),
    "metadata is a list": header(b'{"__metadata__": []}'),
    "eight-bit floats": header(b'{"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}', b"x"),
    "dtype is a list": header(b'{"w": {"dtype": [], "shape": [1], "data_offsets": [0, 1]}}', b"x"),
    "a negative shape": header(b'{"w": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}', b"x"),
    "a huge shape": header(b'{"w": {"dtype": "U8", "shape": [1e99], "data_offsets": [0, 1]}}', b"x"),
    "huge shapes of nothing": header(
        b'{"w": {"dtype": "U8", "shape": [0, %d], "data_offsets": [0, 0]}}' % 10**40
    ),
    "offsets backwards": header(b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}', b"x"),
    "offsets of text": header(b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": "ab"}}', b"x"),
    "more than it says": header(b"{}", b"x"),
    "a gap": header(b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', b"xx"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_no_file_of_arrays_is_rejected_in_one_line(tmp_path, content):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(CONTENTS[content])
    message_of(path)


def test_a_huge_file_of_nothing_is_rejected_unread(tmp_path):
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(header(b"{}"))
    os.truncate(path, 2**40)
    assert "not a whole safetensors file" in message_of(path)


def test_what_is_no_file_is_rejected_in_one_line(tmp_path, saved):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "is a folder. Expected a trained optimizer" in message_of(tmp_path)
    assert "is a pipe" in message_of(tmp_path / "pipe")
    assert "is a device" in message_of("/dev/zero")
    assert "Cannot read" in message_of(tmp_path / "circle")
    assert "Cannot read" in message_of(saved / "inside")
    assert "There is no trained optimizer at" in message_of(tmp_path / "a" / "b")
    assert "Cannot read" in message_of(tmp_path / ("x" * 300))
    message_of("with\0zero")


def test_saving_follows_links_and_replaces_nothing_but_files(saved, tmp_path):
    link, pipe = tmp_path / "link.safetensors", tmp_path / "pipe"
    link.symlink_to(saved)
    os.mkfifo(pipe)
    sx.save(NETWORKS["vanilla"](), link)
    assert link.is_symlink()
    assert sx.load(saved)[0].algebra == 0
    for place in (tmp_path, pipe, "/dev/null"):
        with pytest.raises(sx.learned.ArtifactError, match="only a regular file is replaced"):
            sx.save(NETWORKS["vanilla"](), place)
    assert sorted(path.name for path in tmp_path.iterdir()) == [link.name, saved.name, pipe.name]


def test_a_card_that_is_no_json_is_not_saved(tmp_path):
    for training in ({"x": jnp.ones(2)}, {"x": nested(60)}, {"x": "long" * 10**7}):
        with pytest.raises(sx.learned.ArtifactError):
            sx.save(NETWORKS["mlp"](), tmp_path / "x.safetensors", training=training)
    assert not list(tmp_path.iterdir())
