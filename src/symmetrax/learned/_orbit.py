"""A learned optimizer that sees the loss along the orbit, with scale-free features and steps."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._numbers import flat
from symmetrax.learned._base import AbstractLearnedOptimizer
from symmetrax.learned._features import Length, Observation, Proposal, Want
from symmetrax.learned._heads import between, check_heads, coordinates
from symmetrax.learned._networks import LSTM, Linear, LSTMState
from symmetrax.objectives._base import OrbitDerivatives
from symmetrax.symmetry._base import AbstractLieSymmetry

#: Origin of an `OrbitLSTM`'s coordinates: the current point, or the peak that the slopes predict.
Centre = Literal["identity", "peak"]

#: Inputs that an `OrbitLSTM` can read besides gradient, loss and last step; they need a symmetry.
SEES = ("slopes", "best")

# Losses and norms are clamped to this value before a logarithm is taken.
_TINY = 1e-37
# Derivatives along the orbit below this count as zero.
_FLAT = 1e-15


class OrbitMemory(NamedTuple):
    """The recurrent state, and the logarithms of loss and gradient norm at the first and the last step.

    >>> OrbitMemory._fields
    ('core', 'started', 'first_loss', 'first_gradient', 'loss')
    """

    core: LSTMState
    started: Bool[Array, ""]
    first_loss: Float[Array, ""]
    first_gradient: Float[Array, ""]
    loss: Float[Array, ""]


class OrbitLSTM(AbstractLearnedOptimizer):
    """A stacked LSTM that sees the loss along the orbit, for one problem size and any scale.

    It reads the directions of the gradient g and of the last step, the logarithms of loss and gradient norm
    relative to their first values, and the first and second derivatives of log ||g||^2 along the orbit
    ("slopes"): the information needed to choose a group element, independent of the units of loss and
    parameters. With f the loss, and z, d the outputs of its heads,

        u = -r (f - least) / ||g|| * direction,   direction = (g / ||g|| + d) normalized,
        r = low (high / low)^sigmoid(z),

    so steps are learned in units of Polyak's step, r = 1. For f = ||h(x)||^2 the Gauss-Newton step is r = 2
    wherever h is an eigenvector of J J', which a teleport can arrange. `algebra` coordinates of a group
    element come with a `gate`, the probability of teleporting at all (see
    `AbstractLearnedOptimizer.transform`). With algebra=0 it is the same optimizer without teleports, with the
    same features and the same steps. If the gradient is zero, so is the step.

    With `centre="peak"` the head's coordinates are added to `OrbitDerivatives.peak`, the angle that maximizes
    a sinusoid with these slopes: the network starts from that guess and learns where to correct it, and when
    not to teleport. It is meant for `order="teleport-first"`, where the slopes are taken at the point that is
    moved.

    **Arguments:** `size` is the number of parameters of the problem. `sees` is any of "slopes" (two nested
    Jacobian-vector products of the gradient per coordinate) and "best" (the coordinates of the largest
    gradient norm: in closed form for an affine map of the plane, otherwise by a search); `orbit` is their
    number, if it differs from `algebra`. `least` is the minimum of the loss, or a lower bound. `max_norm`
    bounds the norm of the head's coordinates. Raises ValueError for invalid numbers and names.

    >>> import jax, symmetrax as sx
    >>> network = OrbitLSTM(2, algebra=1, key=jax.random.key(0))
    >>> task = sx.tasks.booth(start=[5.0, -5.0])
    >>> trace = sx.unroll(sx.UpdateRule.at(range(8), 8)(network, task), task, jax.random.key(1), steps=8)
    >>> trace.loss.shape
    (9,)
    """

    kind: ClassVar[str] = "orbit-lstm"

    core: LSTM
    head: Linear
    algebra_head: Linear | None
    size: int = eqx.field(static=True)
    algebra: int = eqx.field(static=True)
    orbit: int = eqx.field(static=True)
    sees: tuple[str, ...] = eqx.field(static=True)
    gated: bool = eqx.field(static=True)
    max_norm: float | None = eqx.field(static=True)
    rates: tuple[float, float] = eqx.field(static=True)
    least: float = eqx.field(static=True)
    centre: Centre = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        algebra: int = 0,
        orbit: int | None = None,
        sees: Sequence[str] = ("slopes",),
        gated: bool = True,
        max_norm: float | int | None = None,
        rates: Sequence[float] = (0.05, 5.0),
        least: float | int = 0.0,
        centre: Centre = "identity",
        width: int = 32,
        depth: int = 2,
        key: Key[Array, ""],
    ):
        check_key(key)
        unknown = set(sees) - set(SEES)
        if unknown:
            raise ValueError(f"`sees` can be any of {', '.join(SEES)}, got {sorted(unknown)}.")
        check_heads((), (), rates, max_norm, False)
        self.sees = tuple(name for name in SEES if name in sees)
        self.orbit = (algebra if orbit is None else orbit) if self.sees else 0
        if min(size, width, depth) < 1 or algebra < 0 or (self.sees and self.orbit < 1):
            raise ValueError(
                "OrbitLSTM needs size, width and depth of at least 1, and with `sees` the number of algebra "
                f"coordinates as algebra=... or orbit=..., got size={size}, width={width}, depth={depth}, "
                f"algebra={algebra}, orbit={orbit}, sees={self.sees}."
            )
        core, head, algebra_head = jax.random.split(key, 3)
        seen = self.orbit * (3 * ("slopes" in self.sees) + ("best" in self.sees))
        self.core = LSTM(2 * size + 4 + seen, width, depth, key=core)
        self.head = Linear(width, size + 1, key=head)
        self.algebra_head = Linear(width, algebra + gated, key=algebra_head) if algebra else None
        self.size, self.algebra, self.gated = size, algebra, gated
        # A peak needs the slope in each of the coordinates that the head emits.
        unseen = "slopes" not in self.sees or (algebra and self.orbit != algebra)
        if centre not in get_args(Centre) or (centre == "peak" and unseen):
            raise ValueError(
                '`centre` must be "identity", or "peak" where the network sees "slopes" along each of its '
                f"algebra coordinates, got {centre!r} with sees={self.sees}, algebra={algebra}, "
                f"orbit={self.orbit}."
            )
        self.centre: Centre = centre
        self.max_norm = None if max_norm is None else float(max_norm)
        self.rates, self.least = (float(rates[0]), float(rates[1])), float(least)
        self.width, self.depth = width, depth

    @property
    def wants(self) -> tuple[Want, ...]:
        wanted: dict[str, Want] = {"slopes": "slopes", "best": "best"}
        return tuple(wanted[name] for name in self.sees)

    @property
    def algebra_bound(self) -> float | None:
        if self.max_norm is None or not self.algebra:
            return None
        # Each coordinate of a peak is at most pi / 2.
        return self.max_norm + (math.sqrt(self.algebra) * math.pi / 2 if self.centre == "peak" else 0.0)

    def vector_products(self) -> list[Any]:
        heads = [self.head] if self.algebra_head is None else [self.head, self.algebra_head]
        return [*self.core.vector_products(), *(head.weight for head in heads)]

    def memory(self, params: PyTree, symmetry: AbstractLieSymmetry | None = None) -> OrbitMemory:
        size = sum(x.size for x in jax.tree.leaves(params))
        if size != self.size:
            raise ValueError(
                f"This OrbitLSTM is built for {self.size} parameters, got {size}: build one with size={size}."
            )
        zero = jnp.zeros(())
        return OrbitMemory(self.core.zero_state(), jnp.array(False), zero, zero, zero)

    def propose(self, observation: Observation, memory: OrbitMemory) -> tuple[Proposal, OrbitMemory]:
        if observation.value is None:
            raise ValueError(
                "OrbitLSTM needs the loss, the unit of its steps: pass value=..., the loss at params, to "
                "`update`."
            )
        gradient, unravel = flat(observation.gradient)
        previous, _ = flat(observation.previous)
        known = jnp.isfinite(observation.value)
        excess = jnp.maximum(jnp.where(known, observation.value, 0.0) - self.least, 0.0)
        # Directions and logarithms of ratios: nothing that the network sees depends on a scale.
        g, norm = _direction(gradient)
        u, length = _direction(previous)
        loss, log_norm = _log(excess), norm.log(_TINY)
        memory = memory._replace(
            started=jnp.array(True),
            first_loss=jnp.where(memory.started, memory.first_loss, loss),
            first_gradient=jnp.where(memory.started, memory.first_gradient, log_norm),
            loss=jnp.where(memory.started, memory.loss, loss),
        )
        scalars = [
            loss - memory.first_loss,
            loss - memory.loss,
            log_norm - memory.first_gradient,
            jnp.where(length.some, length.log(_TINY) + log_norm - loss, 0.0),
        ]
        features = [
            g,
            u,
            jnp.tanh(jnp.stack(scalars) / 5),
            *(_along(observation, name) for name in self.sees),
        ]
        # tanh(x / 5) above is nearly linear over the usual range of these logarithms, and bounded beyond it.
        hidden, core = self.core(jnp.concatenate(features), memory.core)
        out = self.head(hidden)

        # A function of the gradient, because with order="step-first" a teleport moves the point in between.
        def step(gradient: PyTree) -> PyTree:
            g, norm = _direction(flat(gradient)[0])
            direction, _ = _direction(g + out[1:])
            # Divided in turn: the product of the two parts of the norm can overflow.
            unit = jnp.where(norm.some, excess / norm.unit / norm.part, 0.0)
            step = -between(out[0], *self.rates) * unit * direction
            # Without a finite loss there is no unit: NaN makes the caller reject the step.
            return unravel(jnp.where(known, step, jnp.nan))

        proposal = Proposal(update=step)
        if self.algebra_head is not None:
            chosen = self.algebra_head(hidden)
            algebra = coordinates(chosen[: self.algebra], self.max_norm, False)
            if self.centre == "peak":
                algebra = algebra + _slopes(observation).peak.reshape(algebra.shape)
            proposal = proposal._replace(algebra=algebra)
            if self.gated:
                proposal = proposal._replace(gate=jax.nn.sigmoid(chosen[-1]))
        return proposal, memory._replace(core=core, loss=loss)

    def example(self) -> Observation:
        ramp = jnp.linspace(-1.0, 2.0, self.size)
        along = jnp.linspace(0.5, 1.0, self.orbit)
        return Observation(
            gradient=ramp,
            params=1 - ramp,
            previous=0.1 * ramp,
            value=jnp.array(0.7),
            slopes=OrbitDerivatives(along, -along),
            best=0.3 * along,
        )

    def config(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "algebra": self.algebra,
            "orbit": self.orbit,
            "sees": list(self.sees),
            "gated": self.gated,
            "max_norm": self.max_norm,
            "rates": list(self.rates),
            "least": self.least,
            "centre": self.centre,
            "width": self.width,
            "depth": self.depth,
        }

    def contract(self) -> dict[str, Any]:
        return {
            "version": 1,
            "reads": ["directions", "logarithms of loss, gradient norm and last step", *self.sees],
            "emits": ["update", *(["algebra"] if self.algebra else []), *(["gate"] if self.gated else [])],
            "step_unit": "(loss - least) / gradient norm",
            "centre": self.centre,
        }


def _along(observation: Observation, name: str) -> Float[Array, " features"]:
    """Returns the network's features along the orbit.

    With J the squared gradient norm, a = J'/J and b = J''/J, per coordinate. If J(t) is a constant plus a
    sinusoid of 2 t, as for a quadratic rotated by an angle t, its peak is at half the angle of the vector
    (-b, 2 a) (see `OrbitDerivatives.peak`). The network sees the direction of that vector and the asinh of
    its length.
    """
    if name == "best":
        return jnp.ravel(jnp.asarray(observation.best))
    a, b = (jnp.ravel(x) for x in _slopes(observation).relative)
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(b), 2 * jnp.abs(a)))
    some = unit > _FLAT
    unit = jnp.where(some, unit, _FLAT)
    size = unit * jnp.sqrt(jnp.where(some, (b / unit) ** 2 + (2 * a / unit) ** 2, 1.0))
    return jnp.concatenate([-b / size, 2 * a / size, jnp.arcsinh(size)])


def _slopes(observation: Observation) -> OrbitDerivatives:
    assert observation.slopes is not None  # requested through `wants`
    return observation.slopes


def _direction(x: Float[Array, " n"]) -> tuple[Float[Array, " n"], Length]:
    """Normalizes a vector, and returns its length; zero stays zero, with derivative zero."""
    length = Length.of(x)
    return jnp.where(length.some, x / length.unit / length.part, 0.0), length


def _log(x: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of a nonnegative number, clamped so that it has a derivative at zero."""
    return jnp.log(jnp.where(x > _TINY, x, _TINY))
