"""The networks that the study of quantization rounds: two CNNs on digits, and a transformer on text."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.groups._diagonal import PositiveDiagonal
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.tasks._data import digits
from symmetrax.tasks._language import Architecture, LanguageModel, standard_library

#: Channels of the convolutions, and images of a minibatch.
CHANNELS = (16, 32, 32)
IMAGES = 64


class Network(NamedTuple):
    """A network to round: how it is trained, its loss and logits on unseen data, and its symmetry.

    >>> Network._fields
    ('train', 'loss', 'logits', 'symmetry')
    """

    train: Callable[[Key[Array, ""]], PyTree]
    loss: Callable[[PyTree], Float[Array, ""]]
    logits: Callable[[PyTree], Float[Array, "..."]]
    symmetry: NetworkSymmetry

    @property
    def rotates(self) -> bool:
        """Whether the symmetry has rotations."""
        return any(group.rotates for group in self.symmetry.spaces.values())


def classifier(steps: int, *, normalized: bool) -> Network:
    """Three convolutions with ReLU, and a linear layer, for 8 x 8 digits; trained by Adam.

    With `normalized`, batch normalization follows every convolution, and is folded into it after training.

    >>> print(classifier(1, normalized=False).symmetry)
    c1: PositiveDiagonal(16)
    c2: PositiveDiagonal(32)
    c3: PositiveDiagonal(32)
      w1  c1 _ _ _
      w2  c2 c1* _ _
      w3  c3 c2* _ _
      w4  _ c3*
      b1  c1
      b2  c2
      b3  c3
    """
    train, test = digits()
    (x, y), (unseen, labels) = (
        (jnp.asarray(images.pixels).reshape(-1, 1, 8, 8), jnp.asarray(images.labels))
        for images in (train, test)
    )

    def init(key):
        sizes, params = (1, *CHANNELS), {}
        *keys, last_key = jax.random.split(key, len(CHANNELS) + 1)
        for k, one in enumerate(keys, 1):
            shape = (sizes[k], sizes[k - 1], 3, 3)
            params[f"w{k}"] = jax.random.normal(one, shape) * jnp.sqrt(2 / (9 * sizes[k - 1]))
            params[f"b{k}"] = jnp.zeros(sizes[k])
            params |= {f"g{k}": jnp.ones(sizes[k])} if normalized else {}
        last = len(CHANNELS) + 1
        params[f"w{last}"] = jax.random.normal(last_key, (10, CHANNELS[-1])) / jnp.sqrt(CHANNELS[-1])
        return params | {f"b{last}": jnp.zeros(10)}

    def logits(params, x):
        for k in range(1, len(CHANNELS) + 1):
            x, _ = _convolved(params, k, x)
        return jnp.mean(x, axis=(2, 3)) @ params["w4"].T + params["b4"]

    def loss(params, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y))

    def batch(key):
        chosen = jax.random.randint(key, (IMAGES,), 0, len(x))
        return x[chosen], y[chosen]

    def trained(key):
        return _folded(_descended(init, lambda p, data: loss(p, *data), batch, key, steps), x)

    params = jax.eval_shape(lambda key: _folded(init(key), x), jax.random.key(0))
    specs = {"w1": "c1 _ _ _", "w2": "c2 c1* _ _", "w3": "c3 c2* _ _", "w4": "_ c3*"}
    specs |= {f"b{k}": f"c{k}" for k in (1, 2, 3)}
    spaces = {f"c{k}": PositiveDiagonal(size) for k, size in enumerate(CHANNELS, 1)}
    return Network(
        jax.jit(trained),
        lambda params: loss(params, unseen, labels),
        lambda params: logits(params, unseen),
        NetworkSymmetry(spaces, specs, like=params),
    )


def language_model(architecture: Architecture, steps: int) -> Network:
    """A small transformer on characters of Python's standard library; trained by AdamW.

    >>> network = language_model(Architecture(width=8, heads=2, kv_heads=2, layers=1), 1)
    >>> sorted(network.symmetry.spaces), network.rotates
    (['qk0', 'stream', 'up0', 'vo0'], True)
    """
    task = LanguageModel(standard_library(), architecture)
    letters = task.batch(jax.random.key(0))[:, :-1]
    return Network(
        jax.jit(lambda key: _descended(task.init, task.loss, task.batch, key, steps)),
        lambda params: task.held_out(params),  # a bound method of a task with arrays cannot be hashed
        lambda params: task.logits(params, letters),
        task.symmetry(),
    )


def _descended(init: Callable, loss: Callable, batch: Callable, key: Key[Array, ""], steps: int) -> PyTree:
    """Parameters after `steps` steps of AdamW, with a warm-up and a cosine."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, max(1, steps // 10), max(2, steps), 2.5e-4)
    optimizer = optax.adamw(rate, b2=0.99, weight_decay=0.01)
    start, data = jax.random.split(key)

    def step(state, key):
        params, inner = state
        gradient = jax.grad(loss)(params, batch(key))
        updates, inner = optimizer.update(gradient, inner, params)
        return (optax.apply_updates(params, updates), inner), None

    params = init(start)
    keys = jax.random.split(data, steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params


def _convolved(params: PyTree, k: int, x: Array) -> tuple[Array, tuple[Array, Array]]:
    """Layer k, and the statistics of its convolution if it is normalized: means and deviations."""
    stride = (1, 1) if k == 1 else (2, 2)
    x = jax.lax.conv_general_dilated(x, params[f"w{k}"], stride, "SAME")
    statistics = (jnp.zeros(()), jnp.ones(()))
    if f"g{k}" in params:
        mean, variance = jnp.mean(x, axis=(0, 2, 3)), jnp.var(x, axis=(0, 2, 3))
        statistics = (mean, jnp.sqrt(variance + 1e-5))
        gain = params[f"g{k}"] / statistics[1]
        x = (x - mean[:, None, None]) * gain[:, None, None]
    return jax.nn.relu(x + params[f"b{k}"][:, None, None]), statistics


def _folded(params: PyTree, x: Array) -> PyTree:
    """The network without normalization that does the same as this one with the statistics of `x`."""
    folded = dict(params)
    for k in range(1, len(CHANNELS) + 1):
        x, (mean, deviation) = _convolved(params, k, x)
        if f"g{k}" in params:
            gain = folded.pop(f"g{k}") / deviation
            folded[f"w{k}"] = gain[:, None, None, None] * params[f"w{k}"]
            folded[f"b{k}"] = params[f"b{k}"] - gain * mean
    return folded
