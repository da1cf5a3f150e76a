"""Classifiers on real images."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._data import Images


class Classification(AbstractTask):
    """A ReLU network with one hidden layer of `width` units, trained on `train` by minibatches.

    The loss is the mean cross-entropy. Parameters are a dict of two matrices and two biases, drawn by He's
    rule (variance 2 / inputs) with zero biases. `held_out` measures on `test`.

    >>> import jax, symmetrax as sx
    >>> task = sx.make_family("digits").task((), 12)
    >>> params = task.init(jax.random.key(0))
    >>> {name: leaf.shape for name, leaf in sorted(params.items())}
    {'b1': (12,), 'b2': (10,), 'w1': (12, 64), 'w2': (10, 12)}
    """

    train: Images
    test: Images
    width: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        first, second = jax.random.split(key)
        he = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
        return {
            "w1": he(first, (self.width, self.train.pixels.shape[1])),
            "b1": jnp.zeros(self.width),
            "w2": he(second, (self.classes, self.width)),
            "b2": jnp.zeros(self.classes),
        }

    def batch(self, key: Key[Array, ""]) -> tuple[Float[Array, "b pixels"], Int[Array, " b"]]:
        rows = jax.random.randint(key, (self.batch_size,), 0, len(self.train.labels))
        return jnp.asarray(self.train.pixels)[rows], jnp.asarray(self.train.labels)[rows]

    def logits(self, params: PyTree, pixels: Float[Array, "b pixels"]) -> Float[Array, "b classes"]:
        """Unnormalized log-probabilities of the classes."""
        hidden = jax.nn.relu(pixels @ params["w1"].T + params["b1"])
        return hidden @ params["w2"].T + params["b2"]

    def loss(self, params: PyTree, batch: Any = None) -> Float[Array, ""]:
        pixels, labels = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(self.logits(params, pixels), labels))

    def held_out(self, params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Cross-entropy and accuracy on the images that training never shows."""
        pixels, labels = jnp.asarray(self.test.pixels), jnp.asarray(self.test.labels)
        right = jnp.argmax(self.logits(params, pixels), -1) == labels
        return self.loss(params, (pixels, labels)), jnp.mean(right)

    def symmetry(self) -> None:
        """None: the symmetries of networks are not described yet."""
        return


class ImageFamily(AbstractTaskFamily):
    """Classifiers of one data set whose width is one of `widths`: see `Classification`.

    Tasks differ in width, initialization and order of minibatches, so nothing is drawn.

    >>> import symmetrax as sx
    >>> sx.make_family("digits").shapes
    (12, 16, 24)
    """

    name: str = eqx.field(static=True)
    train: Images
    test: Images
    widths: tuple[int, ...] = eqx.field(static=True, default=(12, 16, 24))
    batch_size: int = eqx.field(static=True, default=64)

    @property
    def shapes(self) -> tuple[int, ...]:
        return self.widths

    def draw(self, key: Key[Array, ""]) -> tuple[()]:
        return ()

    def task(self, drawn: tuple[()], shape: int | None = None) -> Classification:
        width = self.widths[0] if shape is None else shape
        return Classification(self.train, self.test, width, self.batch_size)
