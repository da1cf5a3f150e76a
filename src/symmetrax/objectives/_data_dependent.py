"""The gradient norm along the orbit of a data-dependent action, at a cost independent of the input width."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from symmetrax._tree import squared_norm
from symmetrax.objectives._base import AbstractOrbitObjective
from symmetrax.symmetry._activation import ActivationGL
from symmetrax.symmetry._base import AbstractLieSymmetry
from symmetrax.symmetry._fits import with_one


class FeatureGradientNorm(AbstractOrbitObjective):
    """||grad||^2 of the weights that an `ActivationGL` moves ("output" form), cheap along its orbit.

    The gradient of the first layer is D'X, with D the derivative with respect to its outputs and X the
    inputs, so its squared norm is sum(D * (X X') D). X X' and the layer's outputs are computed once, so that
    no step of a search depends on the width of the inputs. Elsewhere this is the squared norm of the whole
    gradient. The loss must be a function of the network's outputs: `loss_of_outputs(outputs, batch)`, with
    outputs of shape (samples, outputs).

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jax.random.normal(jax.random.key(0), (5, 9)), "w2": jnp.ones((2, 5))}
    >>> symmetry = sx.symmetry.ActivationGL.of(params, ["w1", "w2"])
    >>> x = jax.random.normal(jax.random.key(1), (4, 9))
    >>> loss = lambda outputs, batch: jnp.mean(outputs**2)
    >>> value_fn = lambda w: loss(symmetry.outputs(w, x), x)
    >>> quick = sx.search.Orbit(value_fn, params, symmetry, x, FeatureGradientNorm(loss))
    >>> plain = sx.search.Orbit(value_fn, params, symmetry, x)
    >>> xi = jnp.full(25, 0.02)
    >>> bool(jnp.allclose(quick(xi), plain(xi), rtol=1e-3))
    True
    """

    loss_of_outputs: Callable[[Array, PyTree], Float[Array, ""]] = eqx.field(static=True)

    @property
    def cost(self) -> float:
        return 1.0

    def __call__(self, value_fn: Callable, params: PyTree) -> Float[Array, ""]:
        return squared_norm(jax.grad(value_fn)(params))

    def along(
        self, symmetry: AbstractLieSymmetry, params: PyTree, batch: PyTree
    ) -> Callable[[Array], Float[Array, ""]]:
        if not isinstance(symmetry, ActivationGL) or symmetry.form != "output":
            form = f"(form={symmetry.form!r})" if isinstance(symmetry, ActivationGL) else ""
            raise ValueError(
                "FeatureGradientNorm needs the symmetry ActivationGL(form='output'), got "
                f"{type(symmetry).__name__}{form}: use GradientNorm() instead."
            )
        layers, x = symmetry.opened(params, batch)
        # Everything of the inputs' width is computed here, once per orbit. `with_one` adds the constant input
        # of a bias, where the layers have one.
        inputs = with_one(x, layers[0])
        signal, similarity = inputs @ layers[0].T, inputs @ inputs.T

        def loss(signal: Array, layers: list[Array]) -> Float[Array, ""]:
            for layer in layers:
                features = symmetry.activation(signal)
                signal = with_one(features, layer) @ layer.T
            return self.loss_of_outputs(signal, batch)

        def value(xi: Array) -> Float[Array, ""]:
            element = symmetry.exp(xi)
            moved = symmetry.refitted(element, signal, layers[1:])
            # The first matrix W acts only through its outputs X W', so differentiate by those: for the
            # gradient D'X, ||D'X||^2 = sum(D * (X X') D) needs X X' but not X.
            by_signal, by_layers = jax.grad(loss, argnums=(0, 1))(signal @ element[0][0].T, moved)
            return jnp.sum(by_signal * (similarity @ by_signal)) + squared_norm(by_layers)

        return value
