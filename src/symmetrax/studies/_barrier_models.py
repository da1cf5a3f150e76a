"""Three small networks to train twice: a perceptron and a CNN on digits, a transformer on program text."""

import dataclasses
import json
import random
import string
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from symmetrax.tasks._data import digits

#: Modules of the standard library whose sources are read by the transformer; the last is for tests.
SOURCES: tuple[ModuleType, ...] = (dataclasses, json.decoder, random, textwrap, typing, string)
#: Characters of text that are numbered; all others count as the last.
LETTERS = string.printable

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network: `init(key)` draws parameters, `logits(params, inputs)` has a last axis of classes.

    `data` are inputs and labels for training, `test` those for measuring the barrier.

    >>> network = NETWORKS["perceptron"]()
    >>> network.logits(network.init(jax.random.key(0)), network.test[0]).shape
    (360, 10)
    """

    init: Callable[[Key[Array, ""]], Params]
    logits: Callable[[Params, Array], Array]
    data: tuple[Array, Array]
    test: tuple[Array, Array]
    rate: float

    def loss(self, params: Params, batch: tuple[Array, Array]) -> Float[Array, ""]:
        """Cross-entropy."""
        inputs, labels = batch
        found = optax.softmax_cross_entropy_with_integer_labels(self.logits(params, inputs), labels)
        return jnp.mean(found)

    def batch(self, key: Key[Array, ""], size: int) -> tuple[Array, Array]:
        """Random examples of the training set."""
        inputs, labels = self.data
        at = jax.random.randint(key, (size,), 0, len(inputs))
        return inputs[at], labels[at]


def _matrix(key: Key[Array, ""], *shape: int) -> Array:
    """He's rule: the first axes are inputs."""
    return jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5


def _images() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    train, test = ((jnp.asarray(part.pixels), jnp.asarray(part.labels)) for part in digits())
    return train, test


def perceptron(width: int = 32) -> Network:
    """Two hidden layers with ReLU and biases, on digits of 8 x 8 pixels.

    >>> sorted(perceptron(4).init(jax.random.key(0)))
    ['b1', 'b2', 'b3', 'w1', 'w2', 'w3']
    """
    widths = (64, width, width, 10)

    def init(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, 3)
        weights = {f"w{k}": _matrix(keys[k - 1], widths[k - 1], widths[k]) for k in (1, 2, 3)}
        return weights | {f"b{k}": jnp.zeros(widths[k]) for k in (1, 2, 3)}

    def logits(p: Params, x: Array) -> Array:
        x = jax.nn.relu(x @ p["w1"] + p["b1"])
        return jax.nn.relu(x @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"]

    return Network(init, logits, *_images(), rate=3e-3)


def cnn(channels: int = 8) -> Network:
    """Two convolutions, the first with stride 2, and a linear layer on averages of its channels.

    >>> cnn(2).init(jax.random.key(0))["k2"].shape
    (3, 3, 2, 4)
    """

    def init(key: Key[Array, ""]) -> Params:
        one, two, three = jax.random.split(key, 3)
        kernels = {"k1": _matrix(one, 3, 3, 1, channels), "k2": _matrix(two, 3, 3, channels, 2 * channels)}
        biases = {"b1": jnp.zeros(channels), "b2": jnp.zeros(2 * channels), "b3": jnp.zeros(10)}
        return kernels | biases | {"w3": _matrix(three, 2 * channels, 10)}

    def convolved(x: Array, kernel: Array, stride: int) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)

    def logits(p: Params, x: Array) -> Array:
        x = x.reshape(-1, 8, 8, 1)
        x = jax.nn.relu(convolved(x, p["k1"], 2) + p["b1"])
        x = jax.nn.relu(convolved(x, p["k2"], 1) + p["b2"])
        return x.mean((1, 2)) @ p["w3"] + p["b3"]

    return Network(init, logits, *_images(), rate=1e-2)


def transformer(width: int = 32, heads: int = 4, layers: int = 2, time: int = 32) -> Network:
    """A pre-norm transformer without gains that predicts the next character of program text.

    >>> sorted(transformer(8, 2, 1).init(jax.random.key(0)))
    ['blocks', 'chars', 'out', 'places']
    """

    def init(key: Key[Array, ""]) -> Params:
        def linear(number: int, rows: int, columns: int) -> Array:
            return _matrix(jax.random.fold_in(key, number), rows, columns) / 2**0.5

        shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
        shapes |= {"up": (width, 2 * width), "down": (2 * width, width)}
        blocks = [
            {name: linear(10 * layer + k, *shape) for k, (name, shape) in enumerate(shapes.items())}
            for layer in range(layers)
        ]
        chars = jax.random.normal(jax.random.fold_in(key, 1000), (len(LETTERS), width))
        places = jax.random.normal(jax.random.fold_in(key, 1001), (time, width)) / 2
        return {"chars": chars, "places": places, "blocks": blocks, "out": linear(1002, width, len(LETTERS))}

    def norm(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], heads, -1)

    def logits(p: Params, text: Int[Array, "examples time"]) -> Array:
        x = p["chars"][text] + p["places"]
        causal = jnp.tril(jnp.ones((time, time), bool))
        for block in p["blocks"]:
            y = norm(x)
            scores = jnp.einsum("bthe,bshe->bhts", split(y @ block["q"]), split(y @ block["k"]))
            weights = jax.nn.softmax(jnp.where(causal, scores * (heads / width) ** 0.5, -1e9))
            mixed = jnp.einsum("bhts,bshe->bthe", weights, split(y @ block["v"]))
            x = x + mixed.reshape(x.shape) @ block["o"]
            x = x + jax.nn.relu(norm(x) @ block["up"]) @ block["down"]
        return norm(x) @ p["out"]

    pieces = [_numbered(module, time) for module in SOURCES]
    inputs, labels = (jnp.concatenate(part) for part in zip(*pieces[:-1], strict=True))
    test = pieces[-1][0][:256], pieces[-1][1][:256]
    return Network(init, logits, (inputs, labels), test, rate=3e-3)


def _numbered(module: ModuleType, time: int) -> tuple[Array, Array]:
    """The source of a module as windows of numbered characters, and the characters that follow each."""
    numbers = {letter: number for number, letter in enumerate(LETTERS)}
    source = Path(typing.cast("str", module.__file__)).read_text(encoding="utf-8")
    text = jnp.array([numbers.get(letter, len(LETTERS) - 1) for letter in source], jnp.int32)
    count = (len(text) - 1) // time
    return text[: count * time].reshape(count, time), text[1 : count * time + 1].reshape(count, time)


#: The networks by name.
NETWORKS: dict[str, Callable[[], Network]] = {
    "perceptron": perceptron,
    "cnn": cnn,
    "transformer": transformer,
}


def trained(network: Network, keys: Key[Array, " networks"], *, steps: int, size: int) -> PyTree:
    """Parameters of several networks after some steps of Adam, whose rate falls to zero, stacked.

    >>> network = perceptron(4)
    >>> trained(network, jax.random.split(jax.random.key(0)), steps=2, size=8)["b1"].shape
    (2, 4)
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(network.rate, steps))

    def run(key: Key[Array, ""]) -> PyTree:
        start, draw = jax.random.split(key)
        params = network.init(start)

        def step(carry: Any, key: Key[Array, ""]) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(network.loss)(params, network.batch(key, size))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(draw, steps))[0][0]

    # One after the other: batched convolutions and small products are slower than their loop on a CPU.
    return jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
