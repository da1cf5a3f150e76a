"""LoRA-RITE, an optimizer of low-rank factors that does not see how their product was split; a control."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax.groups._inverse import inverse
from symmetrax.groups._matrices import Orthogonal
from symmetrax.studies._transformer_optimizers import orthonormal


class Side(NamedTuple):
    """State of one factor, in the coordinates of the other factor's basis of the step before.

    >>> Side._fields
    ('basis', 'first', 'second', 'escaped')
    """

    basis: Float[Array, "n r"]
    first: Float[Array, "m r"]
    second: Float[Array, "r r"]
    escaped: Float[Array, ""]


class LoraRiteState(NamedTuple):
    """State of `lora_rite`: steps, and what is kept for both factors.

    >>> LoraRiteState._fields
    ('count', 'a', 'b')
    """

    count: Array
    a: Side
    b: Side


def lora_rite(
    learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """LoRA-RITE on the factors {"a": (r, in), "b": (out, r)} of a product b @ a (arXiv:2410.20625).

    Written for X = b and Y = a', and then the other way round, so that the product is X Y' and X has m rows.
    With Y = U R, an orthonormal basis and its coordinates, the unmagnified gradient is G = (dL/dX) R^-1. With
    P = U' U_before, the moments move to the new basis: V <- P V P' and M <- M P'. The largest change of an
    eigenvalue of V there is added to the escaped mass rho. Then V averages G' G / m with rate `b2`, M
    averages S = G (V + rho)^-1/2 with rate `b1`, and X moves by -learning_rate M R^-T.

    The paper adds up V and rho; they are averaged here, as in its authors' code, with the decays of section
    7.1 of arXiv:1804.04235. The code's clipping and skipping of gradients is left out. A factor of deficient
    rank (a LoRA factor at zero) has no basis, so the other factor waits.

    >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
    >>> optimizer = lora_rite(0.1)
    >>> gradient = {"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> print((updates["b"] * jnp.sqrt(5.0)).round(3))  # 0.1 along the unit vector of a
    [[-0.1]
     [-0.1]]
    """

    def init(params: PyTree) -> LoraRiteState:
        rows, columns = params["b"], params["a"].T

        def side(own: Array, other: Array) -> Side:
            zero = jnp.zeros((own.shape[1], own.shape[1]), own.dtype)
            return Side(jnp.zeros_like(other), jnp.zeros_like(own), zero, jnp.zeros((), own.dtype))

        return LoraRiteState(jnp.zeros((), int), side(columns, rows), side(rows, columns))

    def update(updates, state, params=None):
        assert params is not None, "LoRA-RITE looks at the factors."
        count = state.count + 1

        def decay(beta: float) -> Array:
            return beta * (1 - beta ** (count - 1)) / (1 - beta**count)

        def stepped(own: Side, gradient: Array, other: Array) -> tuple[Array, Side]:
            basis = orthonormal(orthonormal(other))  # twice: once is orthogonal up to the condition number
            magnitude = basis.T @ other
            # An inverse of a deficient factor would be infinite.
            full = jnp.abs(jnp.diagonal(magnitude)) > 1e-12 * jnp.max(jnp.abs(magnitude))
            usable = jnp.all(full)
            back = jnp.where(usable, inverse(jnp.where(usable, magnitude, jnp.eye(len(magnitude)))), 0.0)
            g = gradient @ back
            turn = basis.T @ own.basis
            carried = turn @ own.second @ turn.T
            lost = jnp.max(jnp.abs(_eigenvalues(own.second) - _eigenvalues(carried)))
            escaped = decay(b2) * (own.escaped + lost)
            second = decay(b2) * carried + (1 - decay(b2)) * (g.T @ g) / len(g)
            scaled = g @ _inverse_root(second, escaped, eps)
            first = decay(b1) * own.first @ turn.T + (1 - decay(b1)) * scaled
            return -learning_rate * first @ back.T, Side(basis, first, second, escaped)

        step_b, side_b = stepped(state.b, updates["b"], params["a"].T)
        step_a, side_a = stepped(state.a, updates["a"].T, params["b"])
        return {"a": step_a.T, "b": step_b}, LoraRiteState(count, side_a, side_b)

    return optax.GradientTransformation(init, update)


def _eigenvalues(matrix: Float[Array, "r r"]) -> Float[Array, " r"]:
    """Eigenvalues of a symmetric matrix, in ascending order."""
    q = Orthogonal(len(matrix)).diagonalizing(matrix)
    return jnp.sort(jnp.diagonal(q @ matrix @ q.T))


def _inverse_root(matrix: Float[Array, "r r"], shift: Array, eps: float) -> Float[Array, "r r"]:
    """(matrix + shift)^-1/2, with `eps` added to the roots; zero where the matrix is."""
    q = Orthogonal(len(matrix)).diagonalizing(matrix)
    values = jnp.maximum(jnp.diagonal(q @ matrix @ q.T), 0.0) + shift
    return q.T @ (q / (jnp.sqrt(values) + eps)[:, None])
