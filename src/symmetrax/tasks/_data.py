"""Images with labels, from files."""

import functools
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """Pixels in [0, 1], float32 of shape (n, pixels), and labels, int32 of shape (n,)."""

    pixels: np.ndarray
    labels: np.ndarray


@functools.cache
def digits() -> tuple[Images, Images]:
    """The 8 x 8 digits that scikit-learn ships, as 1,437 training and 360 test images.

    The split is a fixed random permutation. Source: E. Alpaydin and C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI Machine Learning Repository, 1998 (its test set).

    >>> train, test = digits()
    >>> train.pixels.shape, test.labels.shape, float(train.pixels.max())
    ((1437, 64), (360,), 1.0)
    """
    from sklearn.datasets import load_digits  # takes a second to import

    data, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    pixels = (data[order] / 16).astype(np.float32)
    labels = target[order].astype(np.int32)
    return Images(pixels[:1437], labels[:1437]), Images(pixels[1437:], labels[1437:])
