"""Recurrent cores and heads, in a features-first layout: inputs have shape (features, *batch).

The same layout serves a single vector, the coordinates of a network, and a batch of tasks in the last axis,
for which each layer is one large matrix product. (`equinox.nn.LSTMCell` takes one vector at a time, and was
measured 1.1 to 2.6 times slower in this use.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from symmetrax.learned._products import Deferred, product

#: Name of the values that a rematerializing backward pass keeps (see `advance`): the products are expensive.
GATES = "gates"

#: The hidden and cell state of every layer.
LSTMState = tuple[tuple[Float[Array, "width *b"], Float[Array, "width *b"]], ...]


class LSTMCell(eqx.Module):
    """One LSTM layer: gates in the order input, forget, cell, output; init uniform(+-1/sqrt(width)).

    >>> import jax, jax.numpy as jnp
    >>> cell = LSTMCell(2, 20, key=jax.random.key(0))
    >>> h, c = cell(jnp.ones(2), (jnp.zeros(20), jnp.zeros(20)))
    >>> h.shape, c.shape
    ((20,), (20,))
    """

    weight_ih: Float[Array, "gates inputs"]
    weight_hh: Float[Array, "gates width"]
    bias: Float[Array, " gates"]

    def __init__(self, inputs: int, width: int, *, key: Key[Array, ""]):
        # Draw the input weights, the recurrent weights and the bias side by side: see `_uniform`.
        drawn = _uniform(key, 4 * width, inputs + width + 1, width)
        self.weight_ih, self.weight_hh, self.bias = jnp.split(drawn, [inputs, inputs + width], axis=1)
        self.bias = self.bias[:, 0]

    def __call__(self, x, state):
        h, c = state
        # Two products, not one with [x; h]: concatenating would copy both at every step.
        gates = product(self.weight_ih, x) + product(self.weight_hh, h)
        gates = checkpoint_name(gates + _column(self.bias, h), GATES)
        return _gated(gates, c)


@jax.custom_jvp
def _gated(gates: Array, c: Array) -> tuple[Array, Array]:
    """Computes the next hidden and cell state from the gates' pre-activations and the current cell state."""
    i, f, g, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@_gated.defjvp
def _gated_jvp(primals, tangents):
    """Written out by hand, so that a backward pass keeps six arrays instead of about a dozen.

    They are not concatenated: under vmap that would move the task axis to the front.
    """
    gates, c = primals
    i, f, g, o = jnp.split(gates, 4)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    after = f * c + i * g
    t = jnp.tanh(after)
    di, df, dg, do = jnp.split(tangents[0], 4)
    d_after = (i * (1 - i) * g) * di + (f * (1 - f) * c) * df + (i * (1 - g * g)) * dg + f * tangents[1]
    return (o * t, after), ((o * (1 - t * t)) * d_after + (o * (1 - o) * t) * do, d_after)


class LSTM(eqx.Module):
    """A stack of LSTM layers of equal width.

    >>> import jax, jax.numpy as jnp
    >>> core = LSTM(inputs=2, width=20, depth=2, key=jax.random.key(0))
    >>> hidden, state = core(jnp.ones((2, 7)), core.zero_state((7,)))
    >>> hidden.shape, len(state)
    ((20, 7), 2)
    """

    cells: tuple[LSTMCell, ...]

    def __init__(self, inputs: int, width: int, depth: int, *, key: Key[Array, ""]):
        self.cells = _layers(LSTMCell, inputs, width, depth, key)

    def zero_state(self, batch: tuple[int, ...] = ()) -> LSTMState:
        """The state before the first step, for batch axes of this shape."""
        zeros = jnp.zeros((self.cells[0].weight_hh.shape[1], *batch))
        return tuple((zeros, zeros) for _ in self.cells)

    def vector_products(self) -> list[Any]:
        """The matrices, for `AbstractLearnedOptimizer.vector_products`."""
        return [weight for cell in self.cells for weight in (cell.weight_ih, cell.weight_hh)]

    def __call__(
        self, x: Float[Array, "inputs *b"], state: LSTMState
    ) -> tuple[Float[Array, "width *b"], LSTMState]:
        after = []
        # The hidden state of a layer is the input of the next one, within the same step.
        for cell, (h, c) in zip(self.cells, state, strict=True):
            x, c = cell(x, (h, c))
            after.append((x, c))
        return x, tuple(after)


class GRUCell(eqx.Module):
    """One GRU layer: gates in the order reset, update, new; init uniform(+-1/sqrt(width)).

    >>> import jax, jax.numpy as jnp
    >>> GRUCell(2, 20, key=jax.random.key(0))(jnp.ones(2), jnp.zeros(20)).shape
    (20,)
    """

    weight_ih: Float[Array, "gates inputs"]
    weight_hh: Float[Array, "gates width"]
    bias: Float[Array, " gates"]
    bias_new: Float[Array, " width"]

    def __init__(self, inputs: int, width: int, *, key: Key[Array, ""]):
        drawn = _uniform(key, 3 * width, inputs + width + 2, width)
        self.weight_ih, self.weight_hh = drawn[:, :inputs], drawn[:, inputs : inputs + width]
        self.bias, self.bias_new = drawn[:, -2], drawn[2 * width :, -1]

    def __call__(self, x, h):
        inputs = product(self.weight_ih, x)
        inputs = checkpoint_name(inputs + _column(self.bias, h), GATES)
        r, z, n = jnp.split(inputs, 3)
        kept_r, kept_z, kept_n = jnp.split(checkpoint_name(product(self.weight_hh, h), GATES), 3)
        r, z = jax.nn.sigmoid(r + kept_r), jax.nn.sigmoid(z + kept_z)
        # The reset gate multiplies the product and its bias, as in cuDNN, not the state before the product.
        n = jnp.tanh(n + r * (kept_n + _column(self.bias_new, h)))
        return n + z * (h - n)


class GRU(eqx.Module):
    """A stack of gated recurrent units of equal width, with the reset gate applied after the matrix product.

    Source: Cho et al. 2014 (arXiv:1406.1078), in the variant of cuDNN and PyTorch.

    >>> import jax, jax.numpy as jnp
    >>> core = GRU(inputs=2, width=20, depth=2, key=jax.random.key(0))
    >>> hidden, state = core(jnp.ones((2, 7)), core.zero_state((7,)))
    >>> hidden.shape, len(state)
    ((20, 7), 2)
    """

    cells: tuple[GRUCell, ...]

    def __init__(self, inputs: int, width: int, depth: int, *, key: Key[Array, ""]):
        self.cells = _layers(GRUCell, inputs, width, depth, key)

    def zero_state(self, batch: tuple[int, ...] = ()) -> tuple[Float[Array, "width *b"], ...]:
        """The state before the first step, for batch axes of this shape."""
        return tuple(jnp.zeros((cell.weight_hh.shape[1], *batch)) for cell in self.cells)

    def vector_products(self) -> list[Any]:
        """The matrices, for `AbstractLearnedOptimizer.vector_products`."""
        return [weight for cell in self.cells for weight in (cell.weight_ih, cell.weight_hh)]

    def __call__(
        self, x: Float[Array, "inputs *b"], state: tuple[Float[Array, "width *b"], ...]
    ) -> tuple[Float[Array, "width *b"], tuple[Float[Array, "width *b"], ...]]:
        after = []
        for cell, h in zip(self.cells, state, strict=True):
            x = cell(x, h)
            after.append(x)
        return x, tuple(after)


class MLP(eqx.Module):
    """A memoryless stack of layers with tanh between them; its state is empty.

    >>> import jax, jax.numpy as jnp
    >>> core = MLP(inputs=2, width=20, depth=2, key=jax.random.key(0))
    >>> hidden, state = core(jnp.ones((2, 7)), core.zero_state((7,)))
    >>> hidden.shape, state
    ((20, 7), ())
    """

    layers: "tuple[Linear, ...]"

    def __init__(self, inputs: int, width: int, depth: int, *, key: Key[Array, ""]):
        self.layers = _layers(Linear, inputs, width, depth, key)

    def zero_state(self, batch: tuple[int, ...] = ()) -> tuple[()]:
        """The empty state, for any batch axes."""
        return ()

    def vector_products(self) -> list[Any]:
        """The matrices, for `AbstractLearnedOptimizer.vector_products`."""
        return [layer.weight for layer in self.layers]

    def __call__(
        self, x: Float[Array, "inputs *b"], state: tuple[()]
    ) -> tuple[Float[Array, "width *b"], tuple[()]]:
        for layer in self.layers:
            x = jnp.tanh(checkpoint_name(layer(x), GATES))
        return x, state


#: Networks between the inputs and the heads of a learned optimizer; all have the same call signature.
Core = LSTM | GRU | MLP


class Linear(eqx.Module):
    """A linear head, initialized like the cells.

    >>> import jax, jax.numpy as jnp
    >>> Linear(20, 3, key=jax.random.key(0))(jnp.ones((20, 7))).shape
    (3, 7)
    """

    weight: Float[Array, "outputs width"]
    bias: Float[Array, " outputs"]

    def __init__(self, width: int, outputs: int, *, key: Key[Array, ""]):
        drawn = _uniform(key, outputs, width + 1, width)
        self.weight, self.bias = drawn[:, :-1], drawn[:, -1]

    def __call__(self, x: Float[Array, "width *b"]) -> Float[Array, "outputs *b"]:
        return product(self.weight, x) + _column(self.bias, x)


def side_by_side(heads: Sequence[Linear], x: Float[Array, "width *b"]) -> Float[Array, "outputs *b"]:
    """Concatenates the outputs of several heads.

    It uses a single product, because the derivative of a single row would be recomputed in every gate's.
    Deferred matrices are the exception: their gradients are not computed here.

    >>> import jax, jax.numpy as jnp
    >>> heads = [Linear(20, 3, key=jax.random.key(0)), Linear(20, 1, key=jax.random.key(1))]
    >>> side_by_side(heads, jnp.ones(20)).shape
    (4,)
    """
    if any(isinstance(head.weight, Deferred) for head in heads):
        return jnp.concatenate([head(x) for head in heads])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *heads)(x)


def _layers(kind: Callable[..., Any], inputs: int, width: int, depth: int, key: Key[Array, ""]) -> tuple:
    """Creates `depth` layers of one kind, of which the first reads the inputs."""
    sizes = [inputs, *[width] * (depth - 1)]
    keys = jax.random.split(key, depth)
    return tuple(kind(size, width, key=k) for size, k in zip(sizes, keys, strict=True))


def _uniform(key: Key[Array, ""], rows: int, columns: int, width: int) -> Float[Array, "rows columns"]:
    """Draws a layer's weights and biases at once, which compiles several times faster than separate draws."""
    bound = 1 / math.sqrt(width)
    return jax.random.uniform(key, (rows, columns), minval=-bound, maxval=bound)


def _column(bias: Float[Array, " n"], like: Array) -> Array:
    """Broadcasts `bias` along the first axis of `like`.

    For a single vector, it is computed as a product with a 1: under vmap, adding a vector that all tasks
    share would move the task axis from the back to the front, and every later product would transpose
    (measured: 1.4 times slower). With its own batch axes, a sum is cheaper.
    """
    if like.ndim > 1:
        return bias.reshape((-1,) + (1,) * (like.ndim - 1))
    one = jax.lax.pad(like[:0], jnp.ones((), like.dtype), [(1, 0, 0)])
    return jnp.tensordot(bias[:, None], one, 1)
