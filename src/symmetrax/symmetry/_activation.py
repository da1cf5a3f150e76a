"""The data-dependent symmetry of multilayer perceptrons: invertible matrices acting past an activation."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._tree import relative
from symmetrax.groups._matrices import GeneralLinear
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition
from symmetrax.symmetry._fits import (
    Solver,
    after_inverse,
    least_squares,
    lost_rank,
    rounding,
    well_conditioned,
    with_one,
)
from symmetrax.symmetry._paths import arrays_at, named_shapes, with_arrays

#: A pair (g, g^-T) for each hidden layer.
Element = tuple[tuple[Array, Array], ...]

# Norm of the algebra coordinates, in each layer, of the element at which `holds` measures the residual: large
# enough that an inexact action shows, small enough that the fits stay well conditioned.
PROBE = 0.1


class ActivationGL(AbstractLieSymmetry):
    """Invertible matrices acting on the hidden units of a perceptron, exact on a given batch.

    The network is W_m s(W_m-1 ... s(W_1 X)) with an elementwise activation s. Let X be the input of a layer
    with weights V, and U the weights of the next layer. An invertible matrix a acts on the pair

    - with `form="output"` as (U, V) -> (U s(VX) s(aVX)^+, aV), for any activation. The outputs on the batch
      are preserved iff s(aVX) has full column rank: no more samples than hidden units.
    - with `form="preimage"` as (U, V) -> (U a^-1, s^-1(a s(VX)) X^+), for invertible activations. The outputs
      on the batch are preserved iff X has full column rank: no more samples than inputs of the layer.

    Here ^+ is the pseudo-inverse, and samples are columns. All hidden layers move at once, and each layer is
    fitted to the outputs of the moved layers before it. On larger batches the fit is by least squares and the
    action is approximate: `holds` reports this, and `residual` measures the error.

    Both formulas discard the behavior of U (or V) on inputs outside the batch. This class keeps it, so that
    the identity changes nothing: "output" makes the smallest change to U that restores the outputs,
    U + (U s(VX) - U s(aVX)) s(aVX)^+; "preimage" adds V (I - X X^+), carried by the previous layer's a^-1.
    The results agree on the batch, and everywhere if the batch has at least as many samples as U (or V) has
    columns. Where "preimage" is exact, it obeys every law; "output" obeys composition and inverse for the
    outputs on the batch, and for the parameters (hence for `transport_gradient`) only if there are as many
    samples as columns of U: with fewer, U outside the batch depends on the path taken.

    Elements are tuples of pairs (g, g^-T), one per hidden layer; the algebra has a coordinate for each entry
    of each g, layer by layer, row by row. Gradients are undefined where a fit loses rank.

    **Arguments:** `weights` names the leaves W_1 ... W_m of the parameters, each of shape (out, in), in the
    format of `jax.tree_util.keystr(path, simple=True, separator=".")`. `sizes` are the numbers of hidden
    units; use `ActivationGL.of` to infer them. `biases` names the leaves b_1 ... b_m, with None for a layer
    without a bias; a bias counts as an extra unit of the layer before it. `inputs(batch)` returns the inputs
    of the network, of shape (samples, features): by default the batch, or its first item if it is a tuple.
    `solver` is the least-squares solver: "qr", "svd" (slower; tolerates rank deficiency) or "gram" (fastest;
    squares the condition number). Raises ValueError for invalid names, shapes or options.

    Sources: arXiv:2205.10637, equation 8 ("preimage"); arXiv:2305.13404 ("output").

    >>> import jax, jax.numpy as jnp
    >>> first, second, third = jax.random.split(jax.random.key(0), 3)
    >>> params = {"v": jax.random.normal(first, (5, 9)), "u": jax.random.normal(second, (2, 5))}
    >>> x = jax.random.normal(third, (4, 9))
    >>> symmetry = ActivationGL(weights=("v", "u"), sizes=(5,))
    >>> float(symmetry.residual(symmetry.exp(jnp.full(25, 0.1)), params, x)) < 1e-4
    True
    >>> symmetry.reasons[symmetry.holds(params, x).code]
    'holds'
    """

    linear: ClassVar[bool] = False

    weights: tuple[str, ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)
    biases: tuple[str | None, ...] | None = eqx.field(static=True, default=None)
    activation: Callable = eqx.field(static=True, default=jax.nn.leaky_relu)
    inverse_activation: Callable | None = eqx.field(static=True, default=None)
    form: Literal["output", "preimage"] = eqx.field(static=True, default="output")
    inputs: Callable | None = eqx.field(static=True, default=None)
    solver: Solver = eqx.field(static=True, default="qr")

    def __check_init__(self):
        if len(self.weights) < 2 or len(self.sizes) != len(self.weights) - 1:
            raise ValueError(
                f"ActivationGL got weights={self.weights} and sizes={self.sizes}: pass the names of at "
                "least two weights and one size for each hidden layer between them, or use ActivationGL.of."
            )
        if self.biases is not None and len(self.biases) != len(self.weights):
            raise ValueError(
                f"`biases` must have one name (or None) for each of {self.weights}, got {self.biases}."
            )
        if self.form not in ("output", "preimage"):
            raise ValueError(f"`form` must be 'output' or 'preimage', got {self.form!r}.")
        if self.form == "preimage" and self.inverse_activation is None:
            raise ValueError(
                "form='preimage' inverts the activation, and inverse_activation is None: pass "
                "inverse_activation=..., or form='output'."
            )
        if self.solver not in ("qr", "svd", "gram"):
            raise ValueError(f"`solver` must be 'qr', 'svd' or 'gram', got {self.solver!r}.")

    @classmethod
    def of(cls, params: PyTree, weights: Sequence[str], **options) -> "ActivationGL":
        """Creates the symmetry of these parameters, inferring `sizes`; `options` are as for the class.

        >>> import jax.numpy as jnp
        >>> ActivationGL.of([jnp.ones((5, 9)), jnp.ones((2, 5))], ("0", "1")).sizes
        (5,)
        """
        leaves = arrays_at(params, weights)
        sizes = tuple(leaves[name].shape[0] for name in weights[:-1])
        return cls(weights=tuple(weights), sizes=sizes, **options)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages for the codes of `holds`, layer by layer; the last message is about the whole network."""
        fitted = ("units", "features") if self.form == "output" else ("inputs", "inputs")
        causes = [
            f"the batch has more samples than the layer has {fitted[0]}",
            f"the {fitted[1]} have lost rank",
        ]
        if self.form == "preimage":
            causes.append("a value left the domain of the inverse activation")
        layers = range(1, len(self.sizes) + 1)
        named = (f"layer {layer}: {cause}" for layer in layers for cause in causes)
        return ("holds", *named, "the outputs on the batch change by more than rounding")

    @property
    def algebra(self) -> tuple[int]:
        return (sum(size**2 for size in self.sizes),)

    @property
    def groups(self) -> tuple[GeneralLinear, ...]:
        """The group of each hidden layer."""
        return tuple(GeneralLinear(size) for size in self.sizes)

    def identity(self) -> Element:
        return tuple(group.identity() for group in self.groups)

    def compose(self, a: Element, b: Element) -> Element:
        return tuple(group.compose(*pair) for group, *pair in zip(self.groups, a, b, strict=True))

    def inverse(self, a: Element) -> Element:
        return tuple(group.inverse(g) for group, g in zip(self.groups, a, strict=True))

    def sample(self, key: Key[Array, ""]) -> Element:
        """Orthogonal times diagonal (from e^-1/2 to e^1/2) times orthogonal: condition number at most e."""
        check_key(key)
        keys = jax.random.split(key, len(self.sizes))
        return tuple(well_conditioned(*pair) for pair in zip(keys, self.sizes, strict=True))

    def exp(self, coordinates: Float[Array, " coordinates"]) -> Element:
        blocks = self._blocks(coordinates)
        return tuple(group.exp(block) for group, block in zip(self.groups, blocks, strict=True))

    def exp_within(self, coordinates: Float[Array, " coordinates"], max_norm: float) -> Element:
        blocks = self._blocks(coordinates)
        return tuple(g.exp_within(block, max_norm) for g, block in zip(self.groups, blocks, strict=True))

    def jet(self, direction: Float[Array, " coordinates"], t: Float[Array, ""]) -> Element:
        blocks = self._blocks(direction)
        return tuple(group.jet(block, t) for group, block in zip(self.groups, blocks, strict=True))

    def bounded(self, coordinates: Float[Array, " coordinates"], bound) -> Float[Array, " coordinates"]:
        blocks = zip(self.groups, self._blocks(coordinates), strict=True)
        return jnp.concatenate([group.bounded(block, bound).ravel() for group, block in blocks])

    def _blocks(self, coordinates: Float[Array, " coordinates"]) -> list[Array]:
        """The coordinates of each layer, as a matrix."""
        ends = np.cumsum([size**2 for size in self.sizes])
        parts = jnp.split(coordinates, ends[:-1])
        return [part.reshape(group.algebra) for part, group in zip(parts, self.groups, strict=True)]

    def act(self, a: Element, params: PyTree, batch: PyTree = None) -> PyTree:
        layers, x = self.opened(params, batch)
        with jax.default_matmul_precision("highest"):  # fits amplify the rounding of lower precisions
            moved = (self._act_output if self.form == "output" else self._act_preimage)(a, layers, x)
        return self._write(params, moved)

    def displacement(self, a: Element, params: PyTree, batch: PyTree = None) -> PyTree:
        """The displacement of parameters by `a`: act(a, w) - w, a tree like `params`."""
        # One action instead of two, as its corrections vanish at the identity: there is no rounding to
        # remove.
        there = self.act(a, params, batch)
        return jax.tree.map(lambda v, w: (v - w).astype(w.dtype), there, params)

    def check(self, params: PyTree) -> None:
        jax.eval_shape(self._read, named_shapes(params))

    def outputs(self, params: PyTree, batch: PyTree) -> Inexact[Array, "samples outputs"]:
        """The network's outputs on the batch."""
        layers, x = self.opened(params, batch)
        with jax.default_matmul_precision("highest"):
            return self._seen(layers, x)[-1] @ layers[-1].T

    def residual(self, a: Element, params: PyTree, batch: PyTree) -> Float[Array, ""]:
        """The relative change of the outputs on the batch under `a`: ||outputs' - outputs|| / ||outputs||."""
        here, there = self.outputs(params, batch), self.outputs(self.act(a, params, batch), batch)
        return relative(there - here, here)

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        """Whether the action is exact on the batch.

        `residual` is measured for every code: it is the relative change of the outputs under an element whose
        coordinates have norm 0.1 in each layer.
        """
        layers, x = self.opened(params, batch)
        probe, broken = self._probe(), []
        with jax.default_matmul_precision("highest"):
            seen = self._seen(layers, x)
            for layer, (g, _) in enumerate(probe):
                fitted = seen[layer + (self.form == "output")]
                broken += [jnp.array(fitted.shape[0] > fitted.shape[1]), lost_rank(fitted)]
                if self.form == "preimage":
                    features = self.activation(seen[layer] @ layers[layer].T)
                    wanted = jnp.stack([features, features @ g.T])
                    error = relative(self.activation(self._undo(wanted)) - wanted, wanted)
                    broken.append(~(error <= rounding(error)))
        residual = self.residual(probe, params, batch)
        broken.append(~(residual <= rounding(residual)))  # written so that NaN counts as failure
        # `select` takes the first condition that is true: the earliest layer, and the most specific cause.
        return Precondition(jnp.select(broken, list(range(1, len(broken) + 1)), 0), residual)

    def _act_output(self, a: Element, layers: list[Array], x: Array) -> list[Array]:
        signal = with_one(x, layers[0]) @ layers[0].T
        return [a[0][0] @ layers[0], *self.refitted(a, signal, layers[1:])]

    def refitted(self, a: Element, signal: Inexact[Array, "n k"], layers: list[Array]) -> list[Array]:
        """Moves the weights after the first layer by the "output" form, given the first layer's `signal`.

        `signal` is the pre-activation of the first layer on the batch before the action, with samples as
        rows. The action needs nothing else from the inputs.
        """
        # Corrections are fitted, not the weights themselves: at the identity they are exactly zero.
        g, _ = a[0]
        moved, here, there = [], self.activation(signal), self.activation(signal @ g.T)
        for layer, weight in enumerate(layers, start=1):
            target, fitted = with_one(here, weight) @ weight.T, with_one(there, weight)
            weight = weight + least_squares(fitted, target - fitted @ weight.T, self.solver).T
            if layer < len(a):
                g, _ = a[layer]
                here, there = self.activation(target), self.activation(fitted @ weight.T @ g.T)
                weight = g @ weight
            moved.append(weight)
        return moved

    def _act_preimage(self, a: Element, layers: list[Array], x: Array) -> list[Array]:
        # `here`, `there`: the layer's inputs before and after the action; `dual`: g^-T of the layer before.
        moved, here, there, dual = [], x, x, None
        for (g, next_dual), weight in zip(a, layers, strict=False):
            seen, fitted = with_one(here, weight), with_one(there, weight)
            signal = seen @ weight.T
            features = self.activation(signal)
            target = self._undo(features @ g.T)
            if dual is None:  # the first layer, whose inputs do not move
                weight = weight + least_squares(seen, target - signal, self.solver).T
            elif fitted.shape[0] < fitted.shape[1]:
                # Fewer samples than columns: keep the part that the batch does not determine, V (I - X X^+).
                unseen = weight - least_squares(seen, signal, self.solver).T
                weight = after_inverse(unseen, dual) + least_squares(fitted, target, self.solver).T
            else:
                weight = after_inverse(weight, dual)
                weight = weight + least_squares(fitted, target - fitted @ weight.T, self.solver).T
            here, there, dual = features, self.activation(fitted @ weight.T), next_dual
            moved.append(weight)
        return [*moved, after_inverse(layers[-1], a[-1][1])]

    @property
    def _biases(self) -> tuple[str | None, ...]:
        return self.biases or (None,) * len(self.weights)

    def _undo(self, features: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        return cast(Callable, self.inverse_activation)(features)

    def _seen(self, layers: list[Array], x: Array) -> list[Array]:
        """The inputs of every layer: features, plus a column of ones if the layer has a bias."""
        seen = [with_one(x, layers[0])]
        for weight, after in pairwise(layers):
            seen.append(with_one(self.activation(seen[-1] @ weight.T), after))
        return seen

    def _probe(self) -> Element:
        blocks = [np.random.default_rng(size).normal(size=size**2) for size in self.sizes]
        return self.exp(jnp.concatenate([jnp.asarray(PROBE * x / np.linalg.norm(x)) for x in blocks]))

    def opened(self, params: PyTree, batch: PyTree) -> tuple[list[Array], Array]:
        """The weights and inputs of the network, checked for consistency."""
        layers, x = self._read(params), self._inputs(batch)
        expected = layers[0].shape[1] - (self._biases[0] is not None)
        if x.shape[1] != expected:
            raise ValueError(
                f"{self.weights[0]} takes {expected} features, the inputs have shape {x.shape}: pass a "
                f"batch of shape (samples, {expected})."
            )
        return layers, x

    def _inputs(self, batch: PyTree) -> Inexact[Array, "samples features"]:
        if batch is None:
            raise ValueError(
                "ActivationGL depends on the data, and the batch is None: pass the batch on which the loss "
                "must keep its value."
            )
        first = batch[0] if isinstance(batch, tuple) else batch
        x = first if self.inputs is None else self.inputs(batch)
        if jnp.ndim(x) != 2:
            raise ValueError(
                f"The inputs must have shape (samples, features), got {jnp.shape(x)}: pass inputs=..., a "
                "function from the batch to such an array."
            )
        return jnp.asarray(x, jnp.result_type(x, float))

    def _read(self, params: PyTree) -> list[Inexact[Array, "out in"]]:
        """The weights of each layer, with the bias, if any, as the last column."""
        biases = self._biases
        leaves = arrays_at(params, (*self.weights, *(name for name in biases if name is not None)))
        layers = []
        for layer, (name, bias) in enumerate(zip(self.weights, biases, strict=True)):
            weight = leaves[name]
            rows = (*self.sizes, None)[layer]
            columns = (None, *self.sizes)[layer]
            fits = weight.ndim == 2 and rows in (None, weight.shape[0]) and columns in (None, weight.shape[1])
            if not fits:
                raise ValueError(
                    f"With sizes={self.sizes}, {name} must have shape ({rows or 'any'}, {columns or 'any'}), "
                    f"got {weight.shape}: correct `sizes`, or use ActivationGL.of to infer them."
                )
            if bias is not None:
                weight = jnp.concatenate([weight, leaves[bias][:, None]], axis=1)
            layers.append(weight)
        return layers

    def _write(self, params: PyTree, layers: list[Array]) -> PyTree:
        new = {}
        for name, bias, layer in zip(self.weights, self._biases, layers, strict=True):
            new[name] = layer if bias is None else layer[:, :-1]
            if bias is not None:
                new[bias] = layer[:, -1]
        return with_arrays(params, new)
