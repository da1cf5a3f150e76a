"""What a good point on the orbit is: scalars measured at a point."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import squared_norm
from symmetrax.symmetry._base import AbstractLieSymmetry

#: An objective: `(value_fn, params) -> scalar`, larger is better.
Objective = Callable[[Callable[[PyTree], Float[Array, ""]], PyTree], Float[Array, ""]]


def squared_gradient_norm(value_fn: Callable, params: PyTree) -> Float[Array, ""]:
    """||grad value_fn(params)||^2: what teleportation raises in arXiv:2205.10637.

    By the descent lemma, a gradient step of size alpha <= 1/L lowers the loss by at least alpha/2 times
    this, if L bounds the curvature.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> float(squared_gradient_norm(sx.booth().loss, jnp.array([5.0, -5.0])))
    2880.0
    """
    return squared_norm(jax.grad(value_fn)(params))


def orbit_derivative(
    value_fn: Callable, params: PyTree, symmetry: AbstractLieSymmetry, batch: PyTree = None
) -> Float[Array, "..."]:
    """Derivative of ||grad value_fn(exp(xi) . params)||^2 in the algebra coordinates xi, at xi = 0.

    It is 2 (H g) . V, with g and H the gradient and Hessian at `params` and V the derivative of the action:
    one Hessian-vector product and one vector-Jacobian product, whatever the algebra's dimension. Its shape
    is `symmetry.algebra`. Source: the optional input of the code behind arXiv:2504.15399.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.booth()
    >>> orbit_derivative(task.loss, jnp.array([5.0, -5.0]), task.symmetry()).shape
    (1,)
    """
    gradient = jax.grad(value_fn)(params)
    _, curved = jax.jvp(jax.grad(value_fn), (params,), (gradient,))
    _, transposed = jax.vjp(lambda xi: symmetry.act(symmetry.exp(xi), params, batch), symmetry.zero())
    (derivative,) = transposed(jax.tree.map(lambda x: 2 * x, curved))
    return jnp.asarray(derivative)
