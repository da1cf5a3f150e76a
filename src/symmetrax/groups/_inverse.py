"""A matrix inverse without LAPACK, safe on any number of devices and cheap to differentiate."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


@jax.custom_jvp
def inverse(x: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """x^-1 by Gauss-Jordan elimination with partial pivoting; infinite or NaN for a singular matrix.

    For the small matrices of hidden units it is as fast as LAPACK. The derivative is -x^-1 dx x^-1, computed
    from products. An inverse that depends only on data is computed once, before the differentiated loop that
    uses it.

    >>> import jax.numpy as jnp
    >>> print(inverse(jnp.array([[0.0, 2.0], [4.0, 0.0]])))
    [[0.   0.25]
     [0.5  0.  ]]
    """
    # Without LAPACK: XLA spreads LAPACK calls over its threads and waits for them in one of these threads, so
    # two programs on two host devices can deadlock.
    return _eliminated(x)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    y = inverse(*primals)
    return y, -(y @ tangents[0] @ y)


@partial(jax.jit, inline=True)
def _eliminated(x: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """The inverse by elimination."""
    # Jitted, since every call outside compiled code would otherwise recompile the loop. Rows are exchanged by
    # masks: indexing by the pivot would become a gather and a scatter under `vmap`.
    n = x.shape[0]
    rows = jnp.arange(n)

    def column(k, a):
        own, at_k = a[:, k], (rows == k)[:, None]
        pivot = jnp.argmax(jnp.where(rows >= k, jnp.abs(own), -1.0))
        at_pivot = (rows == pivot)[:, None]
        best = jnp.sum(jnp.where(at_pivot, a, 0.0), axis=0)
        a = jnp.where(at_pivot, a[k], a)  # row k moves to where the pivot row was
        best = best / best[k]
        return jnp.where(at_k, best, a - a[:, k, None] * best)

    augmented = jnp.concatenate([x, jnp.eye(n, dtype=x.dtype)], axis=1)
    return jax.lax.fori_loop(0, n, column, augmented)[:, n:]
