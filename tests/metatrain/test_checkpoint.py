"""A meta-training that was interrupted goes on as if it had not been, or says why it cannot."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import symmetrax as sx

# Checkpoints are damaged array by array, which takes the functions that read and write them.
from symmetrax._files import load_arrays, save_arrays

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


class Interruption(Exception):
    pass


def network(key, width=6):
    return sx.learned.FlatGradientLSTM(2, algebra=1, width=width, depth=1, key=key)


def estimator(family="ellipse-random", truncation=5, guard=sx.Guard()):  # noqa: B008 (a frozen module)
    rule = sx.UpdateRule(schedule=jnp.ones(10, bool), guard=guard)
    return sx.metatrain.TruncatedBPTT(
        sx.tasks.make_family(family), rule, steps=10, truncation=truncation, tasks=2
    )


def train(path=None, make=network, it=None, key=KEY, stop_at=None, outer=OPTIMIZER, **options):
    def progress(now):
        if now.done == stop_at:
            raise Interruption

    it = estimator() if it is None else it
    options = {"outer_steps": 6, "seeds": 2, "chunk": 2} | options
    return sx.meta_train(make, it, outer, key, checkpoint=path, progress=progress, **options)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """The bytes of a checkpoint after four of six runs."""
    path = tmp_path_factory.mktemp("halfway") / "run.safetensors"
    with pytest.raises(Interruption):
        train(path, stop_at=4)
    return path.read_bytes()


@pytest.fixture
def checkpoint(tmp_path, halfway):
    path = tmp_path / "deep" / "run.safetensors"
    path.parent.mkdir()
    path.write_bytes(halfway)
    return path


@pytest.mark.parametrize("stops", [(2,), (4,), (2, 4), (6,)])
def test_an_interrupted_training_continues_bit_for_bit(tmp_path, stops):
    path = tmp_path / "new folder" / "run.safetensors"
    for stop_at in stops:
        with pytest.raises(Interruption):
            train(path, stop_at=stop_at)
        assert path.is_file()
    assert eqx.tree_equal(train(path), train())
    assert [file.name for file in path.parent.iterdir()] == ["run.safetensors"]


def test_it_continues_where_it_stopped_and_a_finished_one_does_nothing(checkpoint):
    with pytest.raises(Interruption):
        train(checkpoint, stop_at=6)  # reported once, after the last two runs
    found = train(checkpoint, stop_at=6)  # not reported again
    assert eqx.tree_equal(found, train())
    assert found.losses.shape == (2, 6)


@pytest.mark.parametrize(
    "other",
    [
        {"key": jax.random.key(1)},
        {"outer_steps": 8},
        {"seeds": 3},
        {"chunk": 3},
        {"it": estimator("rosenbrock-random")},
        {"it": estimator(truncation=2)},
        {"it": estimator(guard=None)},
        {"it": estimator(guard=sx.Guard(jump=2.0))},
    ],
    ids=lambda other: str(next(iter(other))),
)
def test_the_checkpoint_of_another_training_is_rejected_by_name(checkpoint, other):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"run\.safetensors holds the state of another meta-training"):
        train(checkpoint, **other)
    assert checkpoint.read_bytes() == before


def clipped(inner, norm=1.0):
    return optax.chain(optax.clip_by_global_norm(norm), inner)


def twice(key):
    return jax.tree.map(lambda x: 2 * x, network(key))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"outer": clipped(optax.lion(1e-2))}, "lacks the array|do not belong there"),
        ({"outer": optax.adam(1e-2)}, "lacks the array|do not belong there"),
        ({"outer": clipped(optax.adam(1.1e-2))}, "different first networks or outer optimizer"),
        ({"outer": clipped(optax.adam(1e-2, b2=0.99))}, "different first networks or outer optimizer"),
        ({"outer": clipped(optax.adam(1e-2), 0.5)}, "different first networks or outer optimizer"),
        ({"make": twice}, "different first networks or outer optimizer"),
        ({"identity": "another validation"}, "with a different `identity`:"),
        ({"outer_steps": 8, "key": jax.random.key(1)}, "with a different number of outer steps, key:"),
    ],
)
def test_what_differs_from_the_call_that_wrote_it_is_told(checkpoint, other, message):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=rf"run\.safetensors.*{message}"):
        train(checkpoint, **other)
    assert checkpoint.read_bytes() == before


def test_other_precision_is_rejected(checkpoint):
    with jax.enable_x64(True), pytest.raises(ValueError, match="different precision"):
        train(checkpoint)


def test_networks_that_are_given_belong_to_the_call(tmp_path):
    given = train(outer_steps=2).networks
    path = tmp_path / "run.safetensors"
    whole = train(path, networks=given)
    assert eqx.tree_equal(train(path, networks=given), whole)
    moved = jax.tree.map(lambda x: x * (1 + 1e-6), given)
    for networks in (moved, None):
        with pytest.raises(ValueError, match="different `networks` to continue from"):
            train(path, networks=networks)


def forge(path, change):
    """Write the checkpoint again with its arrays changed, and a checksum that fits."""
    arrays, card = load_arrays(path, "meta-training checkpoint")
    change(arrays, card)
    save_arrays(path, arrays, card)


FORGERIES = {
    "is damaged|infinite or NaN": lambda arrays, card: arrays.update(
        {"networks.core.cells.0.bias": np.full_like(arrays["networks.core.cells.0.bias"], np.nan)}
    ),
    "says that 5 of 6 outer steps are done": lambda arrays, card: arrays.update(done=np.asarray(5)),
    "says that -2 of 6 outer steps are done": lambda arrays, card: arrays.update(done=np.asarray(-2)),
    "has shape": lambda arrays, card: arrays.update(losses=arrays["losses"][:, :3]),
    "'done' that has dtype float32": lambda arrays, card: arrays.update(done=np.float32(4)),
    "do not belong there: 'more'": lambda arrays, card: arrays.update(more=np.ones(2)),
    "another meta-training": lambda arrays, card: card.pop("call"),
    "checkpoint of format 3": lambda arrays, card: card.update(format=3),
}


@pytest.mark.parametrize("message", FORGERIES)
def test_a_forged_checkpoint_is_rejected(checkpoint, message):
    forge(checkpoint, FORGERIES[message])
    forged = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=rf"run\.safetensors.*({message})"):
        train(checkpoint)
    assert checkpoint.read_bytes() == forged


@pytest.mark.usefixtures("unchecked")
def test_a_checkpoint_whose_card_is_a_list_is_rejected(checkpoint):
    arrays, _ = load_arrays(checkpoint, "meta-training checkpoint")
    save_arrays(checkpoint, arrays, [])
    with pytest.raises(ValueError, match="checkpoint of format None"):
        train(checkpoint)


def test_an_edited_count_is_rejected(checkpoint):
    with safetensors.safe_open(checkpoint, framework="numpy") as file:
        metadata = file.metadata()
    arrays = safetensors.numpy.load(checkpoint.read_bytes())
    arrays["done"] = np.asarray(arrays["done"] - 2)
    checkpoint.write_bytes(safetensors.numpy.save(arrays, metadata))
    with pytest.raises(ValueError, match="is damaged: its arrays are not those that were written"):
        train(checkpoint)


class Keyed(eqx.Module):
    """A rule that holds typed keys, as those of an estimator with a random search do."""

    rule: sx.UpdateRule
    search: sx.search.Random

    def __call__(self, network, task):
        return self.rule(network, task)


def test_typed_keys_in_estimator_and_outer_state_survive(tmp_path):
    """`optax.noisy_sgd` has a key in its state: it comes back with its implementation."""
    path = tmp_path / "run.safetensors"

    def it(key):
        make = Keyed(sx.UpdateRule(), sx.search.Random(key))
        return sx.metatrain.TruncatedBPTT(
            sx.tasks.make_family("ellipse-random"), make, steps=4, truncation=2, tasks=2
        )

    outer = optax.noisy_sgd(1e-2, key=jax.random.key(3, impl="rbg"))
    with pytest.raises(Interruption):
        train(path, it=it(KEY), outer=outer, stop_at=4)
    arrays, _ = load_arrays(path, "meta-training checkpoint")
    assert [str(x.dtype) for x in arrays.values() if "key" in str(x.dtype)] == ["key<rbg>"]
    assert eqx.tree_equal(train(path, it=it(KEY), outer=outer), train(it=it(KEY), outer=outer))
    with pytest.raises(ValueError, match="different estimator"):
        train(path, it=it(jax.random.key(1)), outer=outer)
    other = optax.noisy_sgd(1e-2, key=jax.random.key(3))
    with pytest.raises(ValueError, match=r"has (shape|dtype)"):
        train(path, it=it(KEY), outer=other)


def test_a_checkpoint_goes_where_a_file_can_be(tmp_path, checkpoint):
    link = tmp_path / "link.safetensors"
    link.symlink_to(checkpoint)
    assert train(link).losses.shape == (2, 6)
    assert link.is_symlink()
    for place in (tmp_path, checkpoint / "below", "/dev/null"):
        with pytest.raises(ValueError, match="Cannot write"):
            train(place, make=lambda key: pytest.fail("something was computed"))


def test_weights_never_become_infinite(tmp_path):
    """A step that overflows is skipped as a meta-gradient is, so that a checkpoint is never a dead end."""
    path = tmp_path / "run.safetensors"
    outer = optax.sgd(1e38)
    found = train(path, outer=outer, outer_steps=2)
    assert np.all(found.skipped > 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found.networks))
    assert eqx.tree_equal(train(path, outer=outer, outer_steps=2), found)


def test_a_network_of_another_width_does_not_fit(checkpoint):
    with pytest.raises(ValueError, match=r"run\.safetensors.*has shape \(2, 24, 2\), expected \(2, 28, 2\)"):
        train(checkpoint, make=lambda key: network(key, width=7))


def rewritten(content, card=None):
    """The checkpoint with another card or none, as an earlier version would have written it."""
    return safetensors.numpy.save(safetensors.numpy.load(content), None if card is None else {"card": card})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is not a whole safetensors file"),
        (lambda content: content[:-1], "is not a whole safetensors file"),
        (lambda content: content[:5], "is not a whole safetensors file"),
        (lambda content: b"", "is not a whole safetensors file"),
        (lambda content: pickle.dumps({"networks": 1}), "is not a whole safetensors file"),
        (lambda content: rewritten(content), "has no card in its metadata"),
        (lambda content: rewritten(content, card="{"), "has no checksum"),
        (lambda content: rewritten(content, card='{"format": 3}'), "has no checksum"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_left_alone(checkpoint, damage, message):
    damaged = damage(checkpoint.read_bytes())
    checkpoint.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"run\.safetensors.*{message}"):
        train(checkpoint)
    assert checkpoint.read_bytes() == damaged


def test_a_checkpoint_without_one_of_its_arrays_says_which(checkpoint):
    forge(checkpoint, lambda arrays, card: arrays.pop("skipped"))
    with pytest.raises(ValueError, match=r"run\.safetensors lacks the array 'skipped' of shape \(2,\)"):
        train(checkpoint)


def test_a_failing_write_keeps_the_old_checkpoint(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        train(checkpoint)
    assert checkpoint.read_bytes() == before
    assert [file.name for file in checkpoint.parent.iterdir()] == ["run.safetensors"]
