"""Classifiers of real images."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._data import Images
from symmetrax.tasks._networks import MLP

#: The number of units of a single hidden layer, or of each of several.
Widths = int | tuple[int, ...]


def _several(widths: Widths) -> tuple[int, ...]:
    return (widths,) if isinstance(widths, int) else widths


class Classification(AbstractTask):
    """A (leaky) ReLU network with hidden layers of `widths` units, trained on `train` by minibatches.

    The loss is the mean cross-entropy. Parameters are a dict of matrices and, with `bias`, biases, drawn by
    He's rule with zero biases (see `MLP`). An integer as `widths` means one hidden layer. `held_out`
    evaluates on `test`.

    >>> import jax, symmetrax as sx
    >>> task = sx.tasks.make_family("digits").task((), (16, 12))
    >>> params = task.init(jax.random.key(0))
    >>> {name: leaf.shape for name, leaf in sorted(params.items())}
    {'b1': (16,), 'b2': (12,), 'b3': (10,), 'w1': (16, 64), 'w2': (12, 16), 'w3': (10, 12)}
    """

    train: Images
    test: Images
    widths: tuple[int, ...] = eqx.field(static=True, converter=_several)
    batch_size: int = eqx.field(static=True)
    classes: int = eqx.field(static=True, default=10)
    slope: float = eqx.field(static=True, default=0.0)
    bias: bool = eqx.field(static=True, default=True)

    @property
    def width(self) -> int:
        """The number of units of the first hidden layer."""
        return self.widths[0]

    @property
    def network(self) -> MLP:
        """The function from pixels to logits."""
        sizes = (self.train.pixels.shape[1], *self.widths, self.classes)
        return MLP(sizes, self.slope, self.bias)

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        return self.network.init(key)

    def batch(self, key: Key[Array, ""]) -> tuple[Float[Array, "b pixels"], Int[Array, " b"]]:
        # With replacement, so that a step needs neither a state nor a permutation of the data.
        rows = jax.random.randint(key, (self.batch_size,), 0, len(self.train.labels))
        return jnp.asarray(self.train.pixels)[rows], jnp.asarray(self.train.labels)[rows]

    def logits(self, params: PyTree, pixels: Float[Array, "b pixels"]) -> Float[Array, "b classes"]:
        """Unnormalized log-probabilities of the classes."""
        return self.network(params, pixels)

    def loss(self, params: PyTree, batch: Any = None) -> Float[Array, ""]:
        pixels, labels = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(self.logits(params, pixels), labels))

    def held_out(self, params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns cross-entropy and accuracy on the test images, which are never used for training."""
        # The images may be NumPy arrays, which stay on the host until they are used.
        pixels, labels = jnp.asarray(self.test.pixels), jnp.asarray(self.test.labels)
        right = jnp.argmax(self.logits(params, pixels), -1) == labels
        return self.loss(params, (pixels, labels)), jnp.mean(right)

    def symmetry(self) -> NetworkSymmetry:
        """Returns the positive scalings of the hidden units; see `MLP`."""
        return self.network.symmetry()


class ImageFamily(AbstractTaskFamily):
    """Classifiers for one data set with hidden layers from one of `widths`; see `Classification`.

    Tasks differ only in widths, initialization and order of minibatches, so nothing is drawn. Each entry of
    `widths` is a shape: the units of a single hidden layer, or a tuple of the units of several.

    >>> import symmetrax as sx
    >>> sx.tasks.make_family("digits").shapes
    (12, 16, 24)
    """

    name: str = eqx.field(static=True)
    train: Images
    test: Images
    widths: tuple[Widths, ...] = eqx.field(static=True, default=(12, 16, 24))
    batch_size: int = eqx.field(static=True, default=64)
    slope: float = eqx.field(static=True, default=0.0)
    bias: bool = eqx.field(static=True, default=True)

    @property
    def shapes(self) -> tuple[Widths, ...]:
        return self.widths

    def draw(self, key: Key[Array, ""]) -> tuple[()]:
        return ()

    def task(self, drawn: tuple[()], shape: Widths | None = None) -> Classification:
        widths = self.widths[0] if shape is None else shape
        return Classification(
            self.train, self.test, widths, self.batch_size, slope=self.slope, bias=self.bias
        )
