"""A meta-training that was interrupted goes on as if it had not been, or says why it cannot."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
import safetensors.numpy

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


class Interruption(Exception):
    pass


def network(key, width=6):
    return sx.WholeLSTM(2, algebra=1, width=width, depth=1, key=key)


def estimator(family="ellipse-random", unroll=5, guard=sx.Guard()):  # noqa: B008 (a frozen module)
    recipe = sx.Recipe(teleports=jnp.ones(10, bool), guard=guard)
    return sx.TruncatedBPTT(sx.make_family(family), recipe, steps=10, unroll=unroll, tasks=2)


def train(path=None, make=network, it=None, key=KEY, stop_at=None, **options):
    def progress(now):
        if now.done == stop_at:
            raise Interruption

    it = estimator() if it is None else it
    options = {"runs": 6, "seeds": 2, "chunk": 2} | options
    return sx.meta_train(make, it, OPTIMIZER, key, checkpoint=path, progress=progress, **options)


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
        train(checkpoint, stop_at=6)  # told once, after the last two runs
    found = train(checkpoint, stop_at=6)  # not told again
    assert eqx.tree_equal(found, train())
    assert found.losses.shape == (2, 6)


@pytest.mark.parametrize(
    "other",
    [
        {"key": jax.random.key(1)},
        {"runs": 8},
        {"seeds": 3},
        {"chunk": 3},
        {"it": estimator("rosenbrock-random")},
        {"it": estimator(unroll=2)},
        {"it": estimator(guard=None)},
        {"it": estimator(guard=sx.Guard(jump=2.0))},
    ],
    ids=lambda other: str(next(iter(other))),
)
def test_the_checkpoint_of_another_training_is_refused_by_name(checkpoint, other):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"run\.safetensors holds the state of another meta-training"):
        train(checkpoint, **other)
    assert checkpoint.read_bytes() == before


def test_a_network_of_another_width_does_not_fit(checkpoint):
    with pytest.raises(ValueError, match=r"run\.safetensors.*has shape \(2, 24, 2\), expected \(2, 28, 2\)"):
        train(checkpoint, make=lambda key: network(key, width=7))


def rewritten(content, **changes):
    """The checkpoint with arrays removed or its card changed."""
    arrays, card = safetensors.numpy.load(content), changes.get("card")
    arrays = {name: array for name, array in arrays.items() if name not in changes.get("without", ())}
    return safetensors.numpy.save(arrays, None if card is None else {"card": card})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is not a whole safetensors file"),
        (lambda content: content[:-1], "is not a whole safetensors file"),
        (lambda content: content[:5], "is not a whole safetensors file"),
        (lambda content: b"", "is not a whole safetensors file"),
        (lambda content: pickle.dumps({"networks": 1}), "is not a whole safetensors file"),
        (lambda content: rewritten(content), "has no card in its metadata"),
        (lambda content: rewritten(content, card="{"), "is not JSON"),
        (lambda content: rewritten(content, card='{"format": 99}'), "checkpoint of format 99"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_left_alone(checkpoint, damage, message):
    damaged = damage(checkpoint.read_bytes())
    checkpoint.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"run\.safetensors.*{message}"):
        train(checkpoint)
    assert checkpoint.read_bytes() == damaged


def test_a_checkpoint_without_one_of_its_arrays_says_which(checkpoint):
    with safetensors.safe_open(checkpoint, framework="numpy") as file:
        card = file.metadata()["card"]
    content = rewritten(checkpoint.read_bytes(), without=("skipped",), card=card)
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.safetensors lacks the array 'skipped' of shape \(2,\)"):
        train(checkpoint)


def test_a_failing_write_keeps_the_old_checkpoint(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        train(checkpoint)
    assert checkpoint.read_bytes() == before
    assert [file.name for file in checkpoint.parent.iterdir()] == ["run.safetensors"]
