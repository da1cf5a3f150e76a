"""Our side of the comparison on networks, and the same weights, tasks and starting points for torch."""
# Torch is an extra, which the linters do without.
# pyright: reportMissingImports=false

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

import symmetrax as sx
import torch_baseline
import torch_networks as baseline
from parity import GRADIENT_TOLERANCE, LOSS_TOLERANCE, named_weights
from torch_networks import MAX_NORM, RATES, SIZE
from workload import UNROLL, Workload

#: Width of the LSTMs: what each of them emits. "algebra" is T, "step" an update, "rate" a step size.
ARMS: dict[int, tuple[dict[str, int], ...]] = {
    20: ({"algebra": SIZE**2, "rate": 1},),
    300: ({"step": 2 * SIZE**2}, {"algebra": SIZE**2}),
}

# Fresh heads give updates as large as the weights, and the loss would not survive a window.
SMALL = 0.03


def make_workload(width: int, tasks: int) -> Workload:
    """The arm (lr, tele) with one LSTM of width 20, or (update, tele) with two of width 300.

    Weights start centred and Gaussian: with positive ones the first gradients are of order 1e5, and every
    gate is saturated.
    """
    emitted = {"rate": "step_size", "step": "update"}
    networks = []
    for key, heads in zip(jax.random.split(jax.random.key(0), len(ARMS[width])), ARMS[width], strict=True):
        network = sx.learned.FlatGradientLSTM(
            2 * SIZE**2,
            emits=[emitted[name] for name in heads if name in emitted],
            algebra=heads.get("algebra", 0),
            max_norm=MAX_NORM,
            fixed=True,
            rates=RATES,
            width=width,
            key=key,
        )
        if "step" in heads:
            network = eqx.tree_at(lambda n: n.head, network, jax.tree.map(lambda w: SMALL * w, network.head))
        networks.append(network)
    dims = (SIZE, SIZE, SIZE)
    family = sx.tasks.RegressionFamily("benchmark", dims, samples=SIZE, start="gaussian", action="preimage")
    rule = sx.UpdateRule(schedule=jnp.ones(UNROLL, bool), guard=None)
    estimator = sx.metatrain.TruncatedBPTT(family, rule, UNROLL, UNROLL, tasks)
    joined = sx.learned.Joint(tuple(networks))
    rollouts = jax.jit(lambda network: estimator.init(network, jax.random.key(1), None))(joined)
    return Workload(estimator, joined, rollouts)


def to_torch(work: Workload, width: int, tasks: int) -> tuple[list[baseline.Network], baseline.Tasks]:
    """The same, for `tasks` of our tasks: one without an axis, or all with the tasks as first axis."""
    networks = []
    for ours, heads in zip(work.network.networks, ARMS[width], strict=True):
        theirs = baseline.Network(width, heads)
        torch_baseline.set_weights(theirs, _weights(ours))
        networks.append(theirs)

    def tensor(x: Any, transpose: bool) -> torch.Tensor:
        x = np.array(x)
        if x.ndim == 3:
            x = x[..., 0] if tasks == 1 else np.moveaxis(x, -1, 0)
        return torch.tensor(np.ascontiguousarray(np.swapaxes(x, -1, -2) if transpose else x))

    x, y = (tensor(part, transpose=True) for part in work.rollouts.drawn)
    params = work.rollouts.carry.params
    return networks, baseline.Tasks(x, y, (tensor(params["w1"], False), tensor(params["w2"], False)))


def _weights(network: Any) -> dict[str, np.ndarray]:
    """Our weights (or gradients) by torch's names. Both sides have gates in the order i, f, g, o."""
    heads = {"step": network.head, "algebra": network.algebra_head, "rate": network.scalar_head}
    return named_weights(network.core, {f"heads.{name}": head for name, head in heads.items()})


def check(work: Workload, width: int, tasks: int) -> dict[str, float]:
    """Relative differences of meta-loss and meta-gradient on both sides; raises if they are too large."""
    step = eqx.filter_jit(lambda network, rollouts: work.estimator.step(network, rollouts, None, None)[:2])  # pyright: ignore
    loss, gradient = step(work.network, work.rollouts)
    networks, theirs = to_torch(work, width, tasks)
    value = baseline.meta_loss(networks, theirs, UNROLL)
    value.backward()
    flat: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for ours, network in zip(gradient.networks, networks, strict=True):
        expected, mine = torch_baseline.get_weights(network, gradients=True), _weights(ours)
        for name in mine:
            flat[0].append(mine[name].ravel())
            flat[1].append(expected[name].ravel())
    ours, expected = (np.concatenate(side) for side in flat)
    error = {
        "loss": abs(float(loss) - value.item()) / abs(value.item()),
        "gradient": float(np.linalg.norm(ours - expected) / np.linalg.norm(expected)),
    }
    if not (error["loss"] <= LOSS_TOLERANCE and error["gradient"] <= GRADIENT_TOLERANCE):
        raise RuntimeError(
            f"The two sides differ, relatively, at width {width} and {tasks} task(s): {error}."
        )
    return error
