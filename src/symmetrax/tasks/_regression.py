"""Regression with small networks on random data, as in the papers on teleportation."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._networks import MLP, LeakyReLU

Start = Literal["uniform", "gaussian"]
Action = Literal["scaling", "preimage", "output"]


class Regression(AbstractTask):
    """1/2 ||targets - f(inputs)||^2 over all samples, where f is a leaky ReLU network without biases.

    `action` is the action that `symmetry` returns: "scaling" for the positive scalings of the hidden units,
    or "preimage" or "output" for the two published actions of invertible matrices on them (see
    `ActivationGL`).

    Samples are rows: `inputs` has shape (samples, features), `targets` (samples, outputs); `widths` are the
    numbers of units of the hidden layers. Weights start at U[0, 1], or with `start="gaussian"` centered, by
    He's rule (see `MLP`): with positive weights and inputs, no unit is near the kink of its activation.
    `batch` returns all data, and `loss` uses all data if you pass no batch. Source: arXiv:2205.10637.

    >>> import jax, symmetrax as sx
    >>> family = sx.tasks.make_family("regression")
    >>> task = family.task(family.draw(jax.random.key(0)))
    >>> params = task.init(jax.random.key(1))
    >>> {name: leaf.shape for name, leaf in sorted(params.items())}
    {'w1': (6, 5), 'w2': (7, 6), 'w3': (8, 7)}
    >>> task.loss(params).shape
    ()
    """

    inputs: Float[Array, "samples features"]
    targets: Float[Array, "samples outputs"]
    widths: tuple[int, ...] = eqx.field(static=True)
    slope: float = eqx.field(static=True, default=0.1)
    start: Start = eqx.field(static=True, default="uniform")
    action: Action = eqx.field(static=True, default="scaling")

    @property
    def network(self) -> MLP:
        """The function from inputs to outputs."""
        sizes = (self.inputs.shape[1], *self.widths, self.targets.shape[1])
        return MLP(sizes, self.slope, bias=False)

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        # Scale 1 of this initializer means U[0, 1].
        initializer = jax.nn.initializers.uniform(1.0) if self.start == "uniform" else None
        return self.network.init(key, initializer)

    @property
    def same_batch(self) -> bool:
        return True

    def batch(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        return self.inputs, self.targets

    def loss(self, params: PyTree, batch: Any = None) -> Float[Array, ""]:
        # A sum over samples, not a mean: the paper's step sizes belong to this loss.
        inputs, targets = (self.inputs, self.targets) if batch is None else batch
        return 0.5 * jnp.sum(jnp.square(targets - self.network(params, inputs)))

    def symmetry(self) -> AbstractLieSymmetry:
        """Returns the symmetry named by `action`; see `MLP`."""
        if self.action == "scaling":
            return self.network.symmetry()
        return self.network.invertible_symmetry(self.action)


class RegressionFamily(AbstractTaskFamily):
    """Regressions on `samples` random samples, inputs and targets U[0, 1]; `dims` are the layers' sizes.

    With `data="gaussian"`, inputs and targets are N(0, 1) instead: positive data and weights make all units
    positive, and so the network linear at the start.

    The defaults are those of arXiv:2205.10637, called 4-5-6-7-8 there: 4 samples with 5 features, matrices of
    shapes (6, 5), (7, 6), (8, 7). Two matrices of 20 x 20 and 20 samples, `dims=(20, 20, 20), samples=20`,
    are a problem of arXiv:2305.13404. `slope`, `start` and `action` are as in `Regression`. Raises ValueError
    for unknown names.

    >>> import jax
    >>> family = RegressionFamily("wide", dims=(20, 20, 20), samples=20)
    >>> inputs, targets = family.draw(jax.random.key(0))
    >>> inputs.shape, targets.shape
    ((20, 20), (20, 20))
    """

    name: str = eqx.field(static=True)
    dims: tuple[int, ...] = eqx.field(static=True, default=(5, 6, 7, 8))
    samples: int = eqx.field(static=True, default=4)
    slope: float = eqx.field(static=True, default=0.1)
    start: Start = eqx.field(static=True, default="uniform")
    data: Start = eqx.field(static=True, default="uniform")
    action: Action = eqx.field(static=True, default="scaling")

    def __check_init__(self):
        MLP(self.dims)  # raises if the sizes make no network
        if self.samples < 1:
            raise ValueError(f"`samples` must be at least 1, got samples={self.samples}.")
        for name, known in (("start", Start), ("data", Start), ("action", Action)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"`{name}` must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}."
                )
        if self.action == "preimage":  # fails here, not when a task is made
            LeakyReLU(self.slope).inverse  # noqa: B018 (raises if there is no inverse)

    def draw(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        shapes = (self.samples, self.dims[0]), (self.samples, self.dims[-1])
        draw = jax.random.uniform if self.data == "uniform" else jax.random.normal
        return draw(first, shapes[0]), draw(second, shapes[1])

    def task(self, drawn: tuple[Array, Array], shape: None = None) -> Regression:
        return Regression(*drawn, self.dims[1:-1], self.slope, self.start, self.action)
