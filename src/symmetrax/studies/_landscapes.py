"""Losses that are not convex: chains of Rosenbrock's function, indefinite quadratics, small networks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree


def chain(x: Float[Array, " n"], data: Any = None) -> Float[Array, ""]:
    """Rosenbrock's function in n dimensions: sum over i of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2.

    >>> chain(jnp.array([-1.0, -1.0])).item(), chain(jnp.ones(5)).item()
    (404.0, 0.0)
    """
    here, after = x[:-1], x[1:]
    return jnp.sum(100.0 * jnp.square(after - jnp.square(here)) + jnp.square(1.0 - here))


def quadratic(x: Float[Array, " n"], eigenvalues: Float[Array, " n"]) -> Float[Array, ""]:
    """Half of x' H x in the eigenbasis of H.

    >>> quadratic(jnp.array([2.0, 1.0]), jnp.array([1.0, -2.0])).item()
    1.0
    """
    return 0.5 * jnp.sum(eigenvalues * jnp.square(x))


class Tanh(eqx.Module):
    """A tanh network with biases and one hidden layer: its loss is half the mean squared error of `data`.

    `units` are inputs, hidden units and outputs; parameters are one vector.

    >>> Tanh((4, 8, 3)).size
    67
    """

    units: tuple[int, int, int] = eqx.field(static=True)

    @property
    def size(self) -> int:
        """The number of parameters."""
        inputs, hidden, outputs = self.units
        return hidden * (inputs + 1) + outputs * (hidden + 1)

    def outputs(self, x: Float[Array, " n"], inputs: Float[Array, "b i"]) -> Float[Array, "b o"]:
        """What the network says to the inputs."""
        first, hidden, last = self.units
        w, v = jnp.split(x, [hidden * (first + 1)])
        w, v = w.reshape(hidden, first + 1), v.reshape(last, hidden + 1)
        return jnp.tanh(inputs @ w[:, :-1].T + w[:, -1]) @ v[:, :-1].T + v[:, -1]

    def __call__(self, x: Float[Array, " n"], data: PyTree) -> Float[Array, ""]:
        return 0.5 * jnp.mean(jnp.sum(jnp.square(self.outputs(x, data[0]) - data[1]), axis=-1))

    def init(self, key: Key[Array, ""], spread: float = 1.0) -> Float[Array, " n"]:
        """Weights of variance spread^2 / inputs of the unit, and biases of zero."""
        first, hidden, last = self.units
        one, two = jax.random.split(key)
        w = jax.random.normal(one, (hidden, first)) / np.sqrt(first)
        v = jax.random.normal(two, (last, hidden)) / np.sqrt(hidden)
        parts = (jnp.pad(spread * part, ((0, 0), (0, 1))).ravel() for part in (w, v))
        return jnp.concatenate(list(parts))
