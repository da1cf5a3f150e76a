"""The symmetries of networks: which keep the function, and which only what it does on a small batch."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from symmetrax.groups._diagonal import Permutation, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear, SpecialOrthogonal
from symmetrax.models._ready import MakeGroup, mlp_symmetry
from symmetrax.studies.claims._claim import Claim, Split
from symmetrax.symmetry._activation import ActivationGL

WIDTHS = (5, 6, 7, 3)
NAMES = ("w1", "w2", "w3")
SLOPE = 0.1


def leaky(x):
    """Leaky ReLU of slope .1, as in the papers' regressions."""
    return jnp.where(x > 0, x, SLOPE * x)


def leaky_inverse(x):
    """Its inverse."""
    return jnp.where(x > 0, x, x / SLOPE)


def network(params, x, activation):
    """Outputs of a perceptron without biases, samples as rows."""
    *hidden, last = (params[name] for name in NAMES)
    for weight in hidden:
        x = activation(x @ weight.T)
    return x @ last.T


def weights() -> dict[str, jax.Array]:
    """Normal weights of a 5-6-7-3 perceptron."""
    random = np.random.default_rng(0)
    shapes = zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
    return {name: jnp.asarray(random.normal(size=shape)) for name, shape in zip(NAMES, shapes, strict=True)}


def inputs(samples: int) -> jax.Array:
    """Normal inputs of the perceptron."""
    return jnp.asarray(np.random.default_rng(samples).normal(size=(samples, WIDTHS[0])))


def function_change(group: MakeGroup, activation) -> float:
    """Largest relative change of the outputs on fresh data under 20 random elements."""
    params, x = weights(), inputs(50)
    symmetry = mlp_symmetry(params, list(NAMES), group=group)

    @jax.jit
    @jax.vmap
    def change(key):
        moved = symmetry.act(symmetry.sample(key), params)
        before, after = (network(p, x, activation) for p in (params, moved))
        return jnp.linalg.norm(after - before) / jnp.linalg.norm(before)

    return float(jnp.max(change(jax.random.split(jax.random.key(0), 20))))


def batch_change(form: Literal["output", "preimage"], small: int, large: int) -> Split:
    """Largest relative change of the outputs on the batch itself under small elements of a data-dependent
    action: with few enough samples for its fits, and with more."""
    inverse = leaky_inverse if form == "preimage" else None
    symmetry = ActivationGL(
        NAMES, WIDTHS[1:-1], activation=leaky, inverse_activation=inverse, form=form, solver="svd"
    )
    params = weights()

    @functools.partial(jax.jit, static_argnums=1)
    def change(key, samples):
        x = inputs(samples)
        element = symmetry.exp(0.1 * jax.random.normal(key, symmetry.algebra))
        moved = symmetry.act(element, params, x)
        before, after = (network(p, x, leaky) for p in (params, moved))
        return jnp.linalg.norm(after - before) / jnp.linalg.norm(before)

    keys = jax.random.split(jax.random.key(1), 5)
    return Split(*(max(float(change(key, samples)) for key in keys) for samples in (small, large)))


_LINEAR = "arXiv:2205.10637"
NETWORKS = (
    *(
        Claim(f"{what}: relative change of the outputs on fresh data", source, measure, 1e-12)
        for what, source, measure in (
            (
                "permuting hidden units keeps a perceptron's function",
                "arXiv:2504.15399, section 3.1",
                lambda: function_change(Permutation, jnp.tanh),
            ),
            (
                "positive rescaling of hidden units keeps a ReLU network's",
                "arXiv:2504.15399, section 3.1",
                lambda: function_change(PositiveDiagonal, jax.nn.relu),
            ),
            ("GL(d) keeps a linear network's", _LINEAR, lambda: function_change(GeneralLinear, lambda x: x)),
            (
                "SO(d) keeps a linear network's",
                _LINEAR,
                lambda: function_change(SpecialOrthogonal, lambda x: x),
            ),
        )
    ),
    Claim(
        "(U a^-1, s^-1(a s(VX)) X^+) keeps the outputs on the batch: relative change",
        _LINEAR + ", equation 8",
        lambda: batch_change("preimage", 5, 40),
        1e-9,
        condition="the batch is not larger than the layer's inputs",
    ),
    Claim(
        "(U s(VX) s(aVX)^+, aV) keeps the outputs on the batch: relative change",
        "arXiv:2305.13404, its code",
        lambda: batch_change("output", 6, 40),
        1e-9,
        condition="the batch is not larger than the hidden layer",
    ),
)
