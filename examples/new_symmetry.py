"""A symmetry that is not in the library, and a group that is not: what to write, and that `verify` agrees."""

from typing import ClassVar

import jax
import jax.numpy as jnp

import symmetrax as sx


class ProportionShift(sx.symmetry.AbstractLieSymmetry):
    """(W, b) -> (W + c 1', b - c): inputs that sum to one do not see it. A translation, hence not linear."""

    linear: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("holds", "the inputs of this batch do not sum to one")
    hidden: int

    @property
    def algebra(self):
        return (self.hidden,)

    def identity(self):
        return jnp.zeros(self.hidden)

    def compose(self, a, b):
        return a + b

    def inverse(self, a):
        return -a

    def exp(self, coordinates):
        return coordinates

    def sample(self, key):
        return jax.random.normal(key, (self.hidden,))

    def act(self, a, params, batch=None):
        return params | {"w": params["w"] + a[:, None], "b": params["b"] - a}

    def holds(self, params, batch=None):
        error = 0.0 if batch is None else jnp.max(jnp.abs(jnp.sum(batch[0], axis=1) - 1))
        return sx.symmetry.Precondition(jnp.where(error < 1e-5, 0, 1), jnp.asarray(error))


class Scale(sx.groups.AbstractGroup):
    """One positive number for a whole axis: an element is s, of shape (*per, 1)."""

    abelian: ClassVar = True  # so that specs may have powers, h^2
    diagonal: ClassVar = True  # so that two such spaces may share an axis, h&k
    size: int
    per: tuple = ()

    @property
    def algebra(self):
        return (*self.lengths, 1)

    def identity(self):
        return jnp.ones(self.algebra)

    def compose(self, a, b):
        return a * b

    def inverse(self, a):
        return 1 / a

    def dual(self, a):
        return 1 / a

    def exp(self, coordinates):
        return jnp.exp(coordinates)

    def bounded(self, coordinates, bound):
        return jnp.clip(coordinates, -bound, bound)

    def sample(self, key):
        return jnp.exp(jax.random.uniform(key, self.algebra, minval=-1.0))

    def multiply(self, a, x):
        return a[..., None] * x


def loss(params, batch):
    x, y = batch
    return jnp.mean((jax.nn.relu(x @ params["w"].T + params["b"]) @ params["out"].T - y) ** 2)


def main():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.nn.softmax(jax.random.normal(keys[0], (32, 5)))  # proportions
    batch = x, jnp.sum(x**2, axis=1, keepdims=True)
    params = {
        "w": jax.random.normal(keys[1], (6, 5)),
        "b": jnp.zeros(6),
        "out": jax.random.normal(keys[2], (1, 6)),
    }
    specs = {"w": "h _", "b": "h", "out": "_ h*"}
    shift, scale = ProportionShift(6), sx.NetworkSymmetry({"h": Scale(6)}, specs, like=params)
    reports = []
    for name, symmetry in (("shift", shift), ("scale", scale)):
        reports.append(sx.verify(loss, params, symmetry, keys[3], batch, trials=2))
        print(f"{name}: {reports[-1].outcome}, worst error {reports[-1].worst:.1e}")
    elsewhere = shift.holds(params, (2 * x, batch[1]))
    print(f"on other data: {shift.reasons[elsewhere.code]}")
    # One coordinate: a grid finds the steepest scale, from one gradient.
    steep, info = sx.teleport(loss, params, scale, batch, search=sx.search.Grid(points=33))
    print(f"squared gradient norm {info.before:.2f} -> {info.after:.2f} for {info.evaluations:g} gradient")
    return reports, elsewhere, info, (loss(params, batch), loss(steep, batch))


if __name__ == "__main__":
    main()
