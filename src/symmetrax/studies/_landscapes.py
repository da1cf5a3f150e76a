"""Losses that are not convex, and points of them: chains, indefinite quadratics, small networks."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

#: A loss of one vector, with arrays that differ from point to point.
Value = Callable[[Array, PyTree], Array]

#: When the small network is looked at.
AGES = ("at initialization", "half way", "trained")
#: What the names of groups of random Hessians begin with.
RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings. `points` are for each group but Rosenbrock's function, which has `plane`.

    Points of functions are N(0, `spread`^2). Random Hessians have log-normal eigenvalues, of which `negative`
    are shares of negative ones, rounded to whole numbers, at least one for a share that is not zero. `size`
    is how much a small move changes the gradient or the point, relative to their lengths. `shift` is the
    least eigenvalue of a shifted indefinite Hessian, relative to the largest of H in size. `convex` points of
    convex quadratics are looked at for each dimension of `ellipsoids`.

    >>> Settings().chains
    (4, 8, 16, 32)
    """

    points: int = 1000
    plane: int = 20_000
    convex: int = 20_000
    spread: float = 1.5
    sigma: float = 1.5
    size: float = 0.01
    shift: float = 0.01
    chains: tuple[int, ...] = (4, 8, 16, 32)
    dimensions: tuple[int, ...] = (2, 3, 5, 10, 20, 50)
    ellipsoids: tuple[int, ...] = (2, 3, 5, 10, 50)
    negative: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    networks: int = 200
    units: tuple[int, int, int] = (4, 8, 3)
    samples: int = 64
    epochs: int = 2000
    rate: float = 0.1


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


def landscapes(
    settings: Settings, key: Key[Array, ""]
) -> Iterator[tuple[str, Value, Float[Array, "p n"], PyTree]]:
    """Name, loss, points and data of every group, one after another.

    >>> name, value_fn, points, _ = next(landscapes(Settings(plane=5), jax.random.key(0)))
    >>> name, points.shape
    ('rosenbrock', (5, 2))
    """
    keys = (jax.random.fold_in(key, i) for i in itertools.count())
    for n in (2, *settings.chains):
        count = settings.plane if n == 2 else settings.points
        points = settings.spread * jax.random.normal(next(keys), (count, n))
        yield ("rosenbrock" if n == 2 else f"chain {n}"), chain, points, None
    for n in settings.dimensions:
        for negative in negatives(n, settings.negative):
            one, two = jax.random.split(next(keys))
            sizes = jnp.exp(settings.sigma * jax.random.normal(one, (settings.points, n)))
            eigenvalues = jnp.where(jnp.arange(n) < negative, -sizes, sizes)
            gradients = jax.random.normal(two, (settings.points, n))
            yield random_name(n, negative), quadratic, gradients / eigenvalues, eigenvalues
    network = Tanh(settings.units)
    data, ages = trained(settings, network, next(keys))
    for age, points in zip(AGES, ages, strict=True):
        yield f"network, {age}", network, points, data


def random_name(n: int, negative: int) -> str:
    """The name of a group of random Hessians.

    >>> random_name(10, 1)
    'random 10, 1 negative'
    """
    return f"{RANDOM} {n}, {negative} negative"


def negatives(n: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """Numbers of negative eigenvalues for shares of n: whole, and at least one for a share that is not zero.

    >>> negatives(5, (0.0, 0.1, 0.5, 0.9, 1.0))
    (0, 1, 2, 4, 5)
    """
    return tuple(dict.fromkeys(max(1, round(share * n)) if share else 0 for share in shares))


def trained(
    settings: Settings, network: Tanh, key: Key[Array, ""]
) -> tuple[PyTree, tuple[Float[Array, "networks n"], ...]]:
    """Data of every network, and its parameters at each of `AGES`, by gradient descent on all data.

    Inputs are N(0, 1), targets those of another random network with weights three times as large.

    >>> settings = Settings(networks=2, units=(2, 3, 1), samples=4, epochs=2)
    >>> data, ages = trained(settings, Tanh(settings.units), jax.random.key(0))
    >>> [points.shape for points in ages]
    [(2, 13), (2, 13), (2, 13)]
    """

    @jax.jit
    def one(key):
        start, inputs, teacher = jax.random.split(key, 3)
        x = jax.random.normal(inputs, (settings.samples, settings.units[0]))
        data = (x, network.outputs(network.init(teacher, 3.0), x))

        def epoch(params, _):
            return params - settings.rate * jax.grad(network)(params, data), None

        first = network.init(start)
        half = jax.lax.scan(epoch, first, None, length=settings.epochs // 2)[0]
        last = jax.lax.scan(epoch, half, None, length=settings.epochs - settings.epochs // 2)[0]
        return data, (first, half, last)

    return jax.vmap(one)(jax.random.split(key, settings.networks))
