"""Labeled images, read from files."""

import functools
import gzip
import math
import os
import pathlib
import struct
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from symmetrax._optional import needing

#: The environment variable that names the folder with the data files.
FOLDER = "SYMMETRAX_DATA"

#: Files of MNIST, as images and labels: training set, test set, a standalone set. Each may end in ".gz".
PAIRS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ("images-idx3-ubyte", "labels-idx1-ubyte"),
)


class Images(NamedTuple):
    """Pixels in [0, 1], float32 of shape (n, pixels), and labels, int32 of shape (n,).

    >>> images = Images(np.zeros((2, 64), np.float32), np.array([3, 7], np.int32))
    >>> len(images.labels)
    2
    """

    pixels: np.ndarray | Array
    labels: np.ndarray | Array


@functools.cache
def digits() -> tuple[Images, Images]:
    """Loads the 8 x 8 digits shipped with scikit-learn, as 1,437 training and 360 test images.

    The split is a fixed random permutation. Source: E. Alpaydin and C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI Machine Learning Repository, 1998 (its test set).

    >>> train, test = digits()
    >>> train.pixels.shape, test.labels.shape, float(train.pixels.max())
    ((1437, 64), (360,), 1.0)
    """
    with needing("digits()"):
        from sklearn.datasets import load_digits  # takes a second to import

    data, target = load_digits(return_X_y=True)
    images = Images((data / 16).astype(np.float32), target.astype(np.int32))
    return _split(images, 1437)


def mnist() -> tuple[Images, Images]:
    """Loads the 28 x 28 digits of MNIST, as training and test images with 784 pixels.

    They are read from IDX files in the folder named by the environment variable SYMMETRAX_DATA:
    `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, optionally compressed by gzip (`.gz`). If the folder holds only one pair of
    images and labels, or the pair `images-idx3-ubyte` and `labels-idx1-ubyte`, a fixed random four fifths of
    it is used for training. Without such files, scikit-learn downloads `mnist_784` from OpenML and keeps it
    in its own cache. Either way, the images stay in memory once read.

    Raises ValueError for a broken or incomplete pair of files, and if there are neither files nor a network
    connection. Source: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST Database of Handwritten Digits.

    >>> import tempfile, unittest.mock
    >>> images = struct.pack(">4B3I", 0, 0, 8, 3, 5, 28, 28) + bytes(5 * 28 * 28)
    >>> labels = struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes([7, 2, 1, 0, 4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "images-idx3-ubyte").write_bytes(images)
    ...     _ = pathlib.Path(folder, "labels-idx1-ubyte").write_bytes(labels)
    ...     with unittest.mock.patch.dict(os.environ, {"SYMMETRAX_DATA": folder}):
    ...         [part.pixels.shape for part in mnist()]
    [(4, 784), (1, 784)]
    """
    folder = os.environ.get(FOLDER)
    pairs = _pairs(pathlib.Path(folder).expanduser().resolve()) if folder else ()
    if pairs:
        return _from_files(pairs)
    try:
        return _from_openml()
    except Exception as error:  # any failure of the download
        looked = (
            f"the folder {folder} holds none" if folder else "it is not set, and can name a folder with one"
        )
        names = ", ".join(" and ".join(pair) for pair in PAIRS)
        raise ValueError(
            f"MNIST was not found. {FOLDER}: {looked} of the pairs {names} (.gz or not). "
            f"Download from OpenML: {type(error).__name__}: {' '.join(str(error).split())}. "
            f"Put the files into a folder and name it in {FOLDER}, or connect to a network and try again."
        ) from error


def read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """Reads the unsigned bytes of an IDX file with `axes` axes, optionally compressed by gzip.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes; the length of each axis as four
    bytes, most significant first; the values. Raises ValueError, naming the file, for anything else.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path, 1).tolist()
    [7, 2, 1]
    """
    content = path.read_bytes()
    # Compression is recognized by content: the suffix of a downloaded file is not reliable.
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}. Download it again.") from error
    magic, start = bytes([0, 0, 8, axes]), 4 + 4 * axes
    if content[:4] != magic:
        found = content[:4].hex(" ") or "nothing"
        raise ValueError(
            f"{path} is not an IDX file of bytes with axes={axes}: it starts with {found}, expected "
            f"{magic.hex(' ')}. Check its name, or download it again."
        )
    if len(content) < start:
        raise ValueError(
            f"{path} ends in its header: {len(content)} bytes, expected at least {start}. Download it again."
        )
    sizes = struct.unpack(f">{axes}I", content[4:start])
    expected = start + math.prod(sizes)
    if len(content) != expected:
        raise ValueError(
            f"{path} has {len(content):,} bytes, expected {expected:,} for the sizes {sizes} in its header "
            "(both uncompressed). Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


Pair = tuple[pathlib.Path, pathlib.Path]


def _pairs(folder: pathlib.Path) -> tuple[Pair, ...]:
    """Returns the files to read: a training and a test pair, else the only pair, else no pair."""
    training, test = (_pair(folder, names) for names in PAIRS[:2])
    if training and test:
        return training, test
    only = training or test or _pair(folder, PAIRS[2])
    return (only,) if only else ()


def _pair(folder: pathlib.Path, names: tuple[str, str]) -> Pair | None:
    """Returns the files of these names, or None if neither exists; one without the other is an error."""
    images, labels = (
        next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
        for name in names
    )
    if images and labels:
        return images, labels
    if images or labels:
        missing = names[1] if images else names[0]
        raise ValueError(
            f"{images or labels} is there, but {missing} (.gz or not) is missing beside it: add it, or "
            "remove the first."
        )
    return None


# The cache is keyed by paths, so another folder in SYMMETRAX_DATA is read anew.
@functools.cache
def _from_files(pairs: tuple[Pair, ...]) -> tuple[Images, Images]:
    images = [_read(*pair) for pair in pairs]
    return (images[0], images[1]) if len(images) == 2 else _split(images[0], len(images[0].labels) * 4 // 5)


def _read(images: pathlib.Path, labels: pathlib.Path) -> Images:
    """Reads one pair of files, whose images and labels must match."""
    pixels, target = read_idx(images, 3), read_idx(labels, 1)
    if pixels.shape[1:] != (28, 28):
        raise ValueError(
            f"{images} has images of {pixels.shape[1:]} pixels, expected (28, 28): use the files of MNIST."
        )
    if len(pixels) != len(target):
        raise ValueError(
            f"{images} has {len(pixels):,} images, but {labels} has {len(target):,} labels: use two files "
            "of the same set."
        )
    if len(target) < 2:
        raise ValueError(
            f"{images} has {len(target)} images, expected at least 2, to split into training and test sets."
        )
    if target.max() > 9:
        raise ValueError(f"{labels} has the label {target.max()}, expected 0 to 9: use the files of MNIST.")
    return _scaled(pixels.reshape(-1, 784), target)


@functools.cache
def _from_openml() -> tuple[Images, Images]:
    with needing("The download of MNIST"):
        from sklearn.datasets import fetch_openml  # takes a second to import

    # The alternative parser needs pandas.
    data, target = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff", return_X_y=True)
    images = _scaled(data, target)
    return Images(*(part[:60_000] for part in images)), Images(*(part[60_000:] for part in images))


def _scaled(pixels: np.ndarray, labels: np.ndarray) -> Images:
    """Converts bytes, or numbers up to 255, to images."""
    return Images(np.divide(pixels, 255, dtype=np.float32), labels.astype(np.int32))


def _split(images: Images, train: int) -> tuple[Images, Images]:
    """Splits off `train` images by a fixed random permutation."""
    # The seed is fixed: the same images are held out in every experiment.
    order = np.random.default_rng(0).permutation(len(images.labels))
    pixels, labels = images.pixels[order], images.labels[order]
    return Images(pixels[:train], labels[:train]), Images(pixels[train:], labels[train:])
