"""A symmetry of a network whose normalizations have trainable gains, which do not commute with rotations."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from symmetrax._tree import leaf_names
from symmetrax.symmetry._base import AbstractConjugated, AbstractLieSymmetry, Precondition
from symmetrax.symmetry._paths import check_present, named_shapes


class Gained(AbstractConjugated):
    """A symmetry of a network without gains, transferred to one with gains, which stay where they are.

    If the units of a normalized stream are multiplied by gains before they are read, as g * rmsnorm(x) @ w,
    rotations of the stream preserve the loss only up to diag(g): the readers move by diag(1/g) R diag(g).
    This symmetry multiplies every reader by its gains, acts with `symmetry`, and divides again. For fixed
    gains that is an action of the same group. It is exact if `gains` has every use of the stream behind them.

    **Arguments:** `symmetry` is that of the network whose gains are folded into the readers; it must not act
    on the gains. `gains` maps the path of each reader to the path of its gains and the axis of the reader
    that they multiply. Write -1 as a third entry for what is added to the stream *behind* the gains, such as
    the bias of a LayerNorm: it moves as diag(g) R diag(1/g).

    The action depends on the gains, so that it is not linear in all parameters together; gradients are
    carried by automatic differentiation, that of the gains included. `holds` asks that no gain is zero.

    **Errors:** ValueError if an array is missing, if the lengths of gains and axis differ, and if `symmetry`
    acts on the gains.

    >>> import jax, jax.numpy as jnp, symmetrax as sx
    >>> params = {"write": jnp.ones((3, 4)), "g": jnp.arange(1.0, 5.0), "read": jnp.ones((4, 2))}
    >>> def loss(p, x):
    ...     y = x @ p["write"]
    ...     return jnp.sum((p["g"] * y / jnp.sqrt(jnp.mean(y**2)) @ p["read"]) ** 2)
    >>> stream = sx.NetworkSymmetry({"d": sx.groups.Orthogonal(4)}, {"write": "_ d", "read": "d _"}, params)
    >>> symmetry = Gained(stream, {"read": ("g", 0)}, like=params)
    >>> sx.verify(loss, params, symmetry, jax.random.key(0), jnp.ones(3), trials=2).outcome
    'exact'
    """

    symmetry: AbstractLieSymmetry
    gains: tuple[tuple[str, str, int, int], ...] = eqx.field(static=True)

    def __init__(
        self,
        symmetry: AbstractLieSymmetry,
        gains: Mapping[str, tuple[str, int] | tuple[str, int, int]],
        like: PyTree,
    ):
        self.symmetry = symmetry
        self.gains = tuple(
            (path, given[0], given[1], given[2] if len(given) == 3 else 1) for path, given in gains.items()
        )
        specs = getattr(symmetry, "specs", {})
        for path, gain, _, power in self.gains:
            if gain in specs:
                raise ValueError(
                    f"{gain} is given as gains of {path}, but the symmetry acts on it: leave it out there."
                )
            if power not in (1, -1):
                raise ValueError(f"The power of the gains of {path} is 1 or -1, got {power}.")
        self.check(like)

    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return False

    @property
    def reasons(self) -> tuple[str, ...]:
        return (*self.symmetry.reasons, "a gain is zero")

    def act(self, a: PyTree, params: PyTree, batch: PyTree = None) -> PyTree:
        folded = self.folded(params)
        there = self.symmetry.act(a, folded, batch)
        # Rounded once, at the end: in half precision gains would round the readers twice more.
        return jax.tree.map(_like, self._scaled(there, -1), params)

    def folded(self, params: PyTree) -> PyTree:
        """The parameters with gains multiplied into their readers, in at least single precision.

        `symmetry` acts on these; the gains themselves are left as they are.
        """
        return self._scaled(params, 1)

    def _scaled(self, params: PyTree, sign: int) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        named = dict(zip(leaf_names(params), leaves, strict=True))
        for path, gain, axis, power in self.gains:
            x, g = (jnp.asarray(named[name]) for name in (path, gain))
            g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
            shape = [1] * x.ndim
            shape[axis] = -1
            named[path] = x * g.reshape(shape) if sign * power > 0 else x / g.reshape(shape)
        return jax.tree.unflatten(structure, named.values())

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        inside = self.symmetry.holds(self.folded(params), batch)
        named = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
        gains = [jnp.asarray(named[gain]) for gain in {gain: None for _, gain, _, _ in self.gains}]
        zero = jnp.any(jnp.stack([jnp.any(g == 0) for g in gains])) if gains else jnp.array(False)
        code = jnp.where(zero & (inside.code == 0), len(self.reasons) - 1, inside.code)
        return Precondition(code, inside.residual)

    def check(self, params: PyTree) -> None:
        self.symmetry.check(params)
        arrays = named_shapes(params)
        check_present([name for path, gain, _, _ in self.gains for name in (path, gain)], [*arrays])
        for path, gain, axis, _ in self.gains:
            shape, length = arrays[path].shape, arrays[gain].shape
            if not -len(shape) <= axis < len(shape) or length != (shape[axis],):
                raise ValueError(
                    f"{path} has shape {shape} and its gains {gain} {length}: gains are a vector as long as "
                    f"axis {axis} of what they multiply."
                )


def _like(x: Any, original: Any) -> Any:
    return x.astype(original.dtype) if hasattr(original, "dtype") and x.dtype != original.dtype else x
