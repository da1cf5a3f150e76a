"""Optimizers of matrices that optax lacks, for the league of transformers: SOAP, ARO, Muon head by head."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import leaf_names


def orthonormal(columns: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
    """The orthogonal factor Q of columns = Q R with a positive diagonal of R: Gram-Schmidt, without LAPACK.

    >>> print((10 * orthonormal(jnp.array([[3.0, 1.0], [4.0, 2.0]]))).round())
    [[ 6. -8.]
     [ 8.  6.]]
    """

    def step(j: int, a: Array) -> Array:
        column = jax.lax.dynamic_slice_in_dim(a, j, 1, axis=-1)
        column = column / jnp.maximum(jnp.linalg.norm(column, axis=-2, keepdims=True), 1e-30)
        # The columns that follow lose their part along this one; those before are orthogonal to it already.
        later = jnp.arange(a.shape[-1]) > j
        a = a - later * (column @ (jnp.swapaxes(column, -1, -2) @ a))
        return jax.lax.dynamic_update_slice_in_dim(a, column, j, axis=-1)

    return jax.lax.fori_loop(0, columns.shape[-1], step, columns)


class SoapState(NamedTuple):
    """State of `soap`: for every matrix, averages of gradients and squares, two moments and two bases.

    >>> SoapState._fields[:3]
    ('count', 'mu', 'nu')
    """

    count: Array
    mu: PyTree
    nu: PyTree
    moments: PyTree
    bases: PyTree


def soap(
    learning_rate: Callable, b1: float = 0.9, b2: float = 0.99, decay: float = 0.95, every: int = 10
) -> optax.GradientTransformation:
    """SOAP on a tree of matrices: Adam in the eigenbases of G G' and G' G (arXiv:2409.11321, algorithm 3).

    The bases are refreshed at every `every`-th step by one power iteration and an orthogonalization. Averages
    of gradients are kept in the coordinates of the parameters, averages of squares in those of the bases.

    >>> optimizer, params = soap(lambda count: 0.1), {"w": jnp.eye(2)}
    >>> updates, _ = optimizer.update({"w": jnp.array([[2.0, 0.0], [0.0, 3.0]])}, optimizer.init(params))
    >>> print(abs(updates["w"]).round(3) + 0.0)  # Adam's first step, in the bases of its first gradient
    [[0.1 0. ]
     [0.  0.1]]
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        sides = jax.tree.map(lambda w: tuple(jnp.zeros((n, n), w.dtype) for n in w.shape), params)
        eyes = jax.tree.map(lambda w: tuple(jnp.eye(n, dtype=w.dtype) for n in w.shape), params)
        return SoapState(jnp.zeros((), int), zeros, zeros, sides, eyes)

    def update(updates, state, params=None):
        count = state.count + 1
        leaves, structure = jax.tree.flatten(updates)

        def parts(tree):
            return structure.flatten_up_to(tree)

        moments = [
            (decay * left + (1 - decay) * g @ g.T, decay * right + (1 - decay) * g.T @ g)
            for (left, right), g in zip(parts(state.moments), leaves, strict=True)
        ]

        def refreshed():
            return [
                tuple(orthonormal(c @ q) for c, q in zip(pair, old, strict=True))
                for pair, old in zip(moments, parts(state.bases), strict=True)
            ]

        bases = jax.lax.cond(count % every == 1, refreshed, lambda: parts(state.bases))
        mu = [b1 * m + (1 - b1) * g for m, g in zip(parts(state.mu), leaves, strict=True)]
        turned = [(q.T @ g @ r, q.T @ m @ r) for g, m, (q, r) in zip(leaves, mu, bases, strict=True)]
        nu = [b2 * v + (1 - b2) * g**2 for v, (g, _) in zip(parts(state.nu), turned, strict=True)]
        rate = learning_rate(state.count)
        steps = [
            -rate * q @ ((m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + 1e-8)) @ r.T
            for v, (_, m), (q, r) in zip(nu, turned, bases, strict=True)
        ]
        kept = (jax.tree.unflatten(structure, tree) for tree in (mu, nu, moments, bases))
        return jax.tree.unflatten(structure, steps), SoapState(count, *kept)

    return optax.GradientTransformation(init, update)


class AroState(NamedTuple):
    """State of `aro`: for every matrix, the average of gradients and the rotation.

    >>> AroState._fields
    ('count', 'mu', 'rotations')
    """

    count: Array
    mu: PyTree
    rotations: PyTree


def sinkhorn(x: Float[Array, "m n"], rounds: int = 5) -> Float[Array, "m n"]:
    """Divides rows by their norms, then columns by theirs, `rounds` times; the result has unit RMS.

    >>> print(sinkhorn(jnp.array([[1.0, 0.0], [0.0, 5.0]])).round(3))
    [[1.414 0.   ]
     [0.    1.414]]
    """
    for _ in range(rounds):
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30)
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=0, keepdims=True), 1e-30)
    return x / jnp.maximum(jnp.sqrt(jnp.mean(x**2)), 1e-30)


def aro(learning_rate: Callable, beta: float = 0.95, rms: float = 0.2) -> optax.GradientTransformation:
    """ARO on a tree of matrices (arXiv:2602.09006): Sinkhorn normalization in a rotation chosen for it.

    With M the average of gradients and f = `sinkhorn`, the rotation becomes R = QR(M f(R' M)'), and the step
    is proportional to R f(R' M), scaled to `rms` times the learning rate per entry, as steps of Adam are.

    >>> optimizer, params = aro(lambda count: 1.0), {"w": jnp.eye(2)}
    >>> updates, _ = optimizer.update({"w": jnp.diag(jnp.array([2.0, 3.0]))}, optimizer.init(params))
    >>> print((100 * jnp.diag(updates["w"])).round())
    [-28. -28.]
    """

    def init(params):
        eyes = jax.tree.map(lambda w: jnp.eye(w.shape[0], dtype=w.dtype), params)
        return AroState(jnp.zeros((), int), optax.tree.zeros_like(params), eyes)

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, updates)
        rotations = jax.tree.map(lambda m, r: orthonormal(m @ sinkhorn(r.T @ m).T), mu, state.rotations)
        rate = learning_rate(state.count)
        steps = jax.tree.map(lambda m, r: -rate * rms * r @ sinkhorn(r.T @ m), mu, rotations)
        return steps, AroState(state.count + 1, mu, rotations)

    return optax.GradientTransformation(init, update)


def of_matrices(
    matrices: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`matrices` for the hidden matrices of a transformer, `others` for embeddings, positions and the head.

    >>> both = of_matrices(optax.sgd(1.0), optax.sgd(0.0))
    >>> params = {"head": jnp.ones(1), "layers": [{"up": jnp.ones(1)}]}
    >>> updates, _ = both.update(params, both.init(params))
    >>> print(updates["head"], updates["layers"][0]["up"])
    [-0.] [-1.]
    """

    def labels(params: PyTree) -> PyTree:
        names = ["matrices" if n.startswith("layers") else "others" for n in leaf_names(params)]
        return jax.tree.unflatten(jax.tree.structure(params), names)

    return optax.partition({"matrices": matrices, "others": others}, labels)


def in_shapes(inner: optax.GradientTransformation, shapes: Mapping[str, Any]) -> optax.GradientTransformation:
    """`inner` on arrays reshaped by the last part of their names, such as heads apart: (heads, size, width).

    >>> inner = in_shapes(optax.sgd(1.0, momentum=0.9), {"query": (2, 2, -1)})
    >>> inner.init({"query": jnp.ones((4, 3))})[0].trace["query"].shape
    (2, 2, 3)
    """

    def apart(tree: PyTree) -> PyTree:
        leaves = [
            leaf.reshape(shapes.get(name.rpartition(".")[2], leaf.shape))
            for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def update(updates, state, params=None):
        steps, state = inner.update(apart(updates), state, None if params is None else apart(params))
        return jax.tree.map(lambda s, g: s.reshape(g.shape), steps, updates), state

    return optax.GradientTransformation(lambda params: inner.init(apart(params)), update)
