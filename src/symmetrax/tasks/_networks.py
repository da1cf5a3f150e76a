"""Fully connected networks as functions of a dict of parameters."""

import dataclasses
import itertools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from symmetrax.models._ready import mlp_symmetry
from symmetrax.symmetry._activation import ActivationGL
from symmetrax.symmetry._network import NetworkSymmetry


# A dataclass instead of a lambda: equal instances hash alike, so they are the same static argument of a
# program.
@dataclasses.dataclass(frozen=True)
class LeakyReLU:
    """z above zero, `slope` z below. Instances of equal slope are equal, and share compiled programs.

    >>> import jax.numpy as jnp
    >>> activation = LeakyReLU(0.1)
    >>> print(activation(jnp.array([-1.0, 2.0])), activation.inverse(jnp.array([-0.1, 2.0])))
    [-0.1  2. ] [-1.  2.]
    """

    slope: float

    def __call__(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        # With slope 0 the derivative at 0 is that of `relu`, 0; `leaky_relu` has 1 there.
        return jax.nn.leaky_relu(z, self.slope) if self.slope else jax.nn.relu(z)

    @property
    def inverse(self) -> "LeakyReLU":
        """The inverse function. Raises ValueError for ReLU, which has no inverse."""
        if self.slope <= 0:
            raise ValueError(
                f"A leaky ReLU of slope {self.slope} has no inverse: use a positive slope, or form='output', "
                "which needs no inverse."
            )
        return LeakyReLU(1 / self.slope)


class MLP(eqx.Module):
    """A network of layers x -> w x + b with a (leaky) ReLU between them.

    `sizes` are the numbers of inputs, hidden units and outputs. Parameters are a dict: matrices `w1`, `w2`,
    ... of shape (out, in) and, with `bias`, vectors `b1`, `b2`, ... of shape (out,). `slope` is the slope of
    the activation below zero; 0 means ReLU. Raises ValueError without a hidden layer, or for a layer without
    units.

    >>> import jax
    >>> network = MLP(sizes=(4, 3, 2), bias=False)
    >>> params = network.init(jax.random.key(0))
    >>> {name: leaf.shape for name, leaf in sorted(params.items())}
    {'w1': (3, 4), 'w2': (2, 3)}
    >>> network(params, jax.numpy.ones((7, 4))).shape
    (7, 2)
    """

    sizes: tuple[int, ...] = eqx.field(static=True)
    slope: float = eqx.field(static=True, default=0.0)
    bias: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if len(self.sizes) < 3 or min(self.sizes) < 1:
            raise ValueError(
                "`sizes` must have inputs, at least one hidden layer and outputs, each with at least one "
                f"unit, got sizes={self.sizes}."
            )

    @property
    def layers(self) -> int:
        """The number of matrices."""
        return len(self.sizes) - 1

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The names and shapes of the matrices."""
        pairs = enumerate(itertools.pairwise(self.sizes), start=1)
        return {f"w{layer}": (outputs, inputs) for layer, (inputs, outputs) in pairs}

    def init(
        self, key: Key[Array, ""], initializer: jax.nn.initializers.Initializer | None = None
    ) -> dict[str, Array]:
        """Draws weights from `initializer`; biases are zero.

        The default is He's rule, with variance 2 / ((1 + slope^2) inputs).
        """
        # Weights are stored as (out, in), so the fan-in is the last axis.
        draw = initializer or jax.nn.initializers.variance_scaling(
            2.0 / (1.0 + self.slope**2), "fan_in", "truncated_normal", in_axis=-1, out_axis=-2
        )
        keys = jax.random.split(key, self.layers)
        params = {name: draw(own, self.matrices[name]) for name, own in zip(self.matrices, keys, strict=True)}
        if self.bias:
            params |= {f"b{layer}": jnp.zeros(size) for layer, size in enumerate(self.sizes[1:], start=1)}
        return params

    def __call__(self, params: PyTree, x: Float[Array, "*n inputs"]) -> Float[Array, "*n outputs"]:
        """Computes the outputs for inputs in the last axis."""
        for layer in range(1, self.layers + 1):
            x = x @ params[f"w{layer}"].T
            if self.bias:
                x = x + params[f"b{layer}"]
            if layer < self.layers:
                x = self.activation(x)
        return x

    def symmetry(self) -> NetworkSymmetry:
        """Scales every hidden unit by s > 0 and its outgoing weights by 1 / s, exact for a (leaky) ReLU.

        There is one space for each hidden layer, `hidden1`, `hidden2`, ...; the algebra has one coordinate,
        log s, for each hidden unit. Source: arXiv:2012.01118.
        """
        # Shapes are enough; no weights are drawn.
        like = jax.eval_shape(self.init, jax.random.key(0))
        biases = [f"b{layer}" for layer in range(1, self.layers + 1)] if self.bias else []
        return mlp_symmetry(like, list(self.matrices), biases)

    def invertible_symmetry(self, form: Literal["output", "preimage"]) -> ActivationGL:
        """Invertible matrices acting on the hidden units, exact on batches no larger than the layers.

        `form` is one of the two published actions; see `ActivationGL`, which takes the inputs to be the batch
        or its first item. Raises ValueError for "preimage" with ReLU, which has no inverse.

        >>> MLP((20, 20, 20), slope=0.1, bias=False).invertible_symmetry("preimage").algebra
        (400,)
        """
        names = tuple(self.matrices)
        return ActivationGL(
            names,
            self.sizes[1:-1],
            biases=tuple(f"b{layer}" for layer in range(1, self.layers + 1)) if self.bias else None,
            activation=self.activation,
            inverse_activation=self.activation.inverse if form == "preimage" else None,
            form=form,
        )

    @property
    def activation(self) -> LeakyReLU:
        """x above zero, `slope` x below."""
        return LeakyReLU(self.slope)
