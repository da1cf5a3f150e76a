"""MNIST from IDX files or a download: what is read, how it is split, and how broken files are rejected."""

import gzip
import os
import urllib.error

import numpy as np
import pytest
import sklearn.datasets

# Sources of data and their caches, which the families hide.
from symmetrax.tasks import _data
from symmetrax.tasks._data import mnist

REAL = os.environ.get("SYMMETRAX_DATA")
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BARE = ("images-idx3-ubyte", "labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty folder of data, no network, and nothing remembered."""

    def offline(*arguments, **options):
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    monkeypatch.setenv("SYMMETRAX_DATA", str(tmp_path))
    yield tmp_path
    _data._from_files.cache_clear()
    _data._from_openml.cache_clear()


def idx(array):
    """The bytes of an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def some(count, seed=0):
    """Random images and labels, each image unlike the others."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)


def put(folder, names, arrays, suffix=""):
    for name, array in zip(names, arrays, strict=True):
        content = idx(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)


def assert_same(images, arrays):
    pixels, labels = arrays
    assert images.pixels.dtype == np.float32
    assert images.labels.dtype == np.int32
    np.testing.assert_allclose(images.pixels, pixels.reshape(-1, 784) / 255, rtol=1e-7)
    assert np.array_equal(images.labels, labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_training_and_test_files_are_read_in_their_order(folder, suffix):
    train, test = some(7), some(3, seed=1)
    put(folder, TRAIN, train, suffix)
    put(folder, TEST, test, suffix)
    found = mnist()
    assert_same(found[0], train)
    assert_same(found[1], test)
    assert found[0].pixels.min() == 0
    assert found[0].pixels.max() == 1


@pytest.mark.parametrize("names", [TRAIN, TEST, BARE])
def test_one_pair_is_split_into_four_fifths_and_one(folder, names):
    pixels, labels = some(11)
    put(folder, names, (pixels, labels), ".gz")
    train, test = mnist()
    assert (len(train.labels), len(test.labels)) == (8, 3)
    # Where each image went: every one somewhere, with its own label, and not in the order of the file.
    found = np.rint(np.concatenate([train.pixels, test.pixels]) * 255)
    place = [int(np.flatnonzero((pixels.reshape(-1, 784) == image).all(1)).item()) for image in found]
    assert sorted(place) == list(range(11))
    assert place != sorted(place)
    assert np.array_equal(np.concatenate([train.labels, test.labels]), labels[place])
    _data._from_files.cache_clear()
    again = mnist()
    assert np.array_equal(again[0].pixels, train.pixels)
    assert np.array_equal(again[1].pixels, test.pixels)


def test_a_pair_of_its_own_matters_only_without_the_standard_ones(folder):
    put(folder, BARE, some(20))
    assert len(mnist()[0].labels) == 16
    put(folder, TEST, some(10))
    assert len(mnist()[0].labels) == 8
    put(folder, TRAIN, some(5))
    assert [len(part.labels) for part in mnist()] == [5, 10]


def test_a_file_is_read_once(folder, monkeypatch):
    put(folder, BARE, some(10))
    first = mnist()
    monkeypatch.setattr(_data, "read_idx", None)
    assert mnist() is first


def test_compression_is_seen_in_the_file_not_in_its_name(folder):
    pixels, labels = some(6)
    (folder / TRAIN[0]).write_bytes(gzip.compress(idx(pixels)))
    (folder / (TRAIN[1] + ".gz")).write_bytes(idx(labels))
    put(folder, TEST, (pixels, labels))
    assert_same(mnist()[0], (pixels, labels))


def test_a_home_folder_is_found(folder, monkeypatch):
    put(folder, BARE, some(10))
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("SYMMETRAX_DATA", f"~/{folder.name}")
    assert len(mnist()[1].labels) == 2


PIXELS, LABELS = some(6)
BROKEN = {
    "cut gzip": (
        gzip.compress(idx(PIXELS))[:-100],
        r"images-\S+ is not a whole gzip file: Compressed file e",
    ),
    "bad gzip": (b"\x1f\x8b" + bytes(50), r"images-\S+ is not a whole gzip file: Unknown compression"),
    "labels": (idx(LABELS), r"images-\S+ is not an IDX .* starts with 00 00 08 01, expected 00 00 08 03"),
    "floats": (b"\x00\x00\x0d\x03" + bytes(12), r"starts with 00 00 0d 03, expected 00 00 08 03"),
    "empty": (b"", r"images-\S+ is not an IDX .* starts with nothing"),
    "no sizes": (idx(PIXELS)[:13], r"images-\S+ ends in its header: 13 bytes, expected at least 16"),
    "short": (idx(PIXELS)[:-1], r"has 4,719 bytes, expected 4,720 for the sizes \(6, 28, 28\)"),
    "long": (idx(PIXELS) + b"\x00", r"has 4,721 bytes, expected 4,720 for the sizes \(6, 28, 28\)"),
    "little": (idx(PIXELS[:, :27]), r"has images of \(27, 28\) pixels, expected \(28, 28\)"),
    "fewer": (idx(PIXELS[:5]), r"images-\S+ has 5 images, but \S+labels-idx1-ubyte has 6 labels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_of_images_is_named(folder, name):
    content, message = BROKEN[name]
    put(folder, BARE, (PIXELS, LABELS))
    (folder / BARE[0]).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        mnist()
    assert str(folder) in str(error.value)


def test_labels_beyond_nine_and_too_few_images_are_rejected(folder):
    put(folder, BARE, (PIXELS, LABELS + 5))
    with pytest.raises(
        ValueError, match=rf"labels-idx1-ubyte has the label {LABELS.max() + 5}, expected 0 to"
    ):
        mnist()
    put(folder, BARE, (PIXELS[:1], LABELS[:1]))
    with pytest.raises(ValueError, match="has 1 images, expected at least 2"):
        mnist()


@pytest.mark.parametrize("alone", [0, 1])
def test_images_without_labels_and_labels_without_images_are_rejected(folder, alone):
    put(folder, TRAIN, some(6))
    put(folder, TEST, some(6))
    (folder / TEST[1 - alone]).unlink()
    with pytest.raises(ValueError, match=rf"{TEST[alone]} is there, but {TEST[1 - alone]} \(.gz or not\) is"):
        mnist()


@pytest.mark.parametrize("where", ["empty", "absent", "unset"])
def test_without_files_and_network_the_error_says_both(folder, monkeypatch, where):
    if where == "absent":
        monkeypatch.setenv("SYMMETRAX_DATA", str(folder / "nowhere"))
    if where == "unset":
        monkeypatch.delenv("SYMMETRAX_DATA")
    with pytest.raises(ValueError, match=r"Download from OpenML: URLError: .*no network") as error:
        mnist()
    text = str(error.value)
    assert ("SYMMETRAX_DATA: it is not set" in text) == (where == "unset")
    assert (f"the folder {folder}" in text) == (where != "unset")
    assert all(name in text for name in (*TRAIN, *TEST, *BARE))
    assert "\n" not in text
    assert isinstance(error.value.__cause__, urllib.error.URLError)
    # The failure is not remembered.
    put(folder, BARE, some(5))
    monkeypatch.setenv("SYMMETRAX_DATA", str(folder))
    assert len(mnist()[0].labels) == 4


def test_without_files_the_standard_split_is_downloaded(monkeypatch):
    row = np.arange(784) % 256
    calls = []

    def fetch(name, **options):
        calls.append((name, options))
        # As scikit-learn returns them: numbers, and labels as strings.
        return np.broadcast_to(row.astype(float), (70_000, 784)), np.array(list("3141592") * 10_000, object)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    monkeypatch.delenv("SYMMETRAX_DATA")
    train, test = mnist()
    assert mnist()[0] is train
    ((name, options),) = calls
    assert name == "mnist_784"
    assert options["version"] == 1
    assert options["as_frame"] is False
    assert (train.pixels.shape, test.pixels.shape) == ((60_000, 784), (10_000, 784))
    assert (train.pixels.dtype, train.labels.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(train.pixels[-1], row / 255, rtol=1e-7)
    assert train.labels[:7].tolist() == [3, 1, 4, 1, 5, 9, 2]
    assert test.labels[:3].tolist() == [int("3141592"[(60_000 + k) % 7]) for k in range(3)]


@pytest.mark.skipif(not REAL, reason="SYMMETRAX_DATA names no folder")
def test_the_real_images_are_digits(monkeypatch):
    """Their statistics, and that nearest class means classify them, as they do 82 % of MNIST."""
    monkeypatch.setenv("SYMMETRAX_DATA", str(REAL))
    train, test = mnist()
    assert len(train.labels) + len(test.labels) in (10_000, 60_000, 70_000)
    assert (train.pixels.min(), train.pixels.max()) == (0, 1)
    assert train.pixels.mean() == pytest.approx(0.131, abs=0.005)
    assert np.all(np.abs(np.bincount(train.labels) / len(train.labels) - 0.1) < 0.02)
    means = np.stack([train.pixels[train.labels == digit].mean(0) for digit in range(10)])
    guesses = np.argmin(np.square(means).sum(1) - 2 * test.pixels @ means.T, axis=1)
    assert np.mean(guesses == test.labels) == pytest.approx(0.82, abs=0.03)
