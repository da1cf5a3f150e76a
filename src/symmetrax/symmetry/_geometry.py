"""Orbits as geometry: curves along them, updates across them, and what a gradient flow conserves."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._groups import AbstractGroup
from symmetrax.symmetry._matrix_groups import GeneralLinear, ScaledRotation
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._walk import Touch


def orbit_curve(
    symmetry: AbstractLieSymmetry, coordinates: Array, params: PyTree, points: int = 11, batch: PyTree = None
) -> PyTree:
    """The curve exp(t coordinates).params for t from 0 to 1, along which the loss stays what it is.

    Two minima of one orbit are connected by it without a barrier (arXiv:2505.23681).

    **Returns** the tree with `points` in front of every array's shape.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> task = sx.booth()
    >>> curve = orbit_curve(task.symmetry(), jnp.array([2.0]), jnp.array([5.0, -5.0]), points=5)
    >>> print(jax.vmap(task.loss)(curve).round(1))
    [144. 144. 144. 144. 144.]
    """

    def at(t):
        return symmetry.act(symmetry.exp(t * coordinates), params, batch)

    return jax.vmap(at)(jnp.linspace(0.0, 1.0, points, dtype=coordinates.dtype))


def horizontal(
    symmetry: AbstractLieSymmetry, params: PyTree, update: PyTree, batch: PyTree = None, *, steps: int = 100
) -> PyTree:
    """The part of an update that is orthogonal to the orbit: the rest changes no loss, only coordinates.

    The orbit's tangent space at `params` is {V xi}, with V the derivative of act(exp(xi), params) at 0.
    Solves V'V xi = V' update by at most `steps` conjugate-gradient steps, and returns update - V xi. Source:
    the horizontal projection of da Silva et al. 2025, "Hide & Seek", made for low-rank factors; here for any
    action.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[2.0]]), "w2": jnp.array([[1.0]])}
    >>> rescaling = sx.mlp_symmetry(params, ["w1", "w2"])
    >>> flat = horizontal(rescaling, params, {"w1": jnp.array([[2.0]]), "w2": jnp.array([[-1.0]])})
    >>> print(abs(flat["w1"]).max() < 1e-6)  # the update was along the orbit
    True
    """

    def at(xi):
        return symmetry.act(symmetry.exp(xi), params, batch)

    zero = symmetry.zero()
    along = jax.linearize(at, zero)[1]
    across = jax.linear_transpose(along, zero)
    (right,) = across(update)
    xi, _ = jax.scipy.sparse.linalg.cg(lambda x: across(along(x))[0], right, tol=0.0, maxiter=steps)
    return optax.tree.sub(update, along(xi))


def conserved(symmetry: NetworkSymmetry, params: PyTree) -> dict[str, Array]:
    """What gradient flow keeps constant, by space, for every group that is not discrete.

    Noether's theorem for parameters: W moves by g or g^-T along its axes and the loss does not, so under
    dW/dt = -grad the moments sum(+- W W') over the legs of a space stay: row energies minus column energies
    for scalings, Gram matrices of plain legs minus those of starred ones for general linear groups, energies
    of pairs for scaled rotations. Gradient descent with step size eta drifts by O(eta^2) a step, a teleport
    jumps; groups of rotations keep antisymmetric moments of gradients, not of parameters, and are left out.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.array([[3.0, 4.0]]), "w2": jnp.array([[2.0]])}
    >>> print(conserved(sx.mlp_symmetry(params, ["w1", "w2"]), params)["hidden1"])
    [21.]
    """
    moments: dict[str, list[Array]] = {}

    def collect(x: Array, touches: tuple[Touch, ...]) -> Array:
        for touch in touches:
            group = symmetry.spaces[touch.word.name]
            if not group.compact and touch.word.index is None:
                sign = touch.exponent
                moments.setdefault(touch.word.name, []).append(sign * _moment(x, touch, group))
        return x

    symmetry.visit(params, collect)
    return {name: sum(parts[1:], start=parts[0]) for name, parts in moments.items()}


def _moment(x: Array, touch: Touch, group: AbstractGroup) -> Float[Array, "..."]:
    """W W' over the touched axis, (*per, n, n); its diagonal for scalings, its trace for scaled rotations."""
    axes = (*touch.indices, touch.axis)
    front = jnp.moveaxis(x, axes, range(len(axes)))
    flat = front.reshape(*front.shape[: len(axes)], -1)
    if isinstance(group, GeneralLinear):
        return jnp.einsum("...ir,...jr->...ij", flat, flat, precision="highest")
    squares = jnp.sum(flat**2, axis=-1)
    return jnp.sum(squares, axis=-1) if isinstance(group, ScaledRotation) else squares
