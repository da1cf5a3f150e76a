"""Both sides compute the same numbers, or the comparison means nothing."""
# Torch is an extra, which the linters do without.
# pyright: reportMissingImports=false

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import torch

import symmetrax as sx
import torch_baseline as baseline
from workload import UNROLL, WIDTH, Workload

# Relative, in float32: of the meta-loss, and of the meta-gradient as one vector.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


def weights_of(network: Any) -> dict[str, np.ndarray]:
    """Our weights (or gradients) by torch's names. Both sides have gates in the order i, f, g, o."""
    return named_weights(network.core, {"head": network.head, "angle": network.algebra_head})


def named_weights(core: Any, heads: dict[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a two-layer core and of these heads, by torch's names; heads may be None."""
    named = {}
    for name, cell in zip(("first", "second"), core.cells, strict=True):
        named |= {
            f"{name}.weight_ih": cell.weight_ih,
            f"{name}.weight_hh": cell.weight_hh,
            f"{name}.bias_ih": cell.bias,
        }
    for name, head in heads.items():
        if head is not None:
            named |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    return {name: np.asarray(value) for name, value in named.items()}


def with_weights(
    network: sx.learned.FlatGradientLSTM, weights: dict[str, np.ndarray]
) -> sx.learned.FlatGradientLSTM:
    """Our network with torch's weights."""

    def leaves(network: Any) -> list:
        cells = [leaf for cell in network.core.cells for leaf in (cell.weight_ih, cell.weight_hh, cell.bias)]
        heads = [leaf for head in (network.head, network.algebra_head) for leaf in (head.weight, head.bias)]
        return [*cells, *heads]

    return eqx.tree_at(leaves, network, [jnp.asarray(weights[name]) for name in weights_of(network)])


def to_torch(work: Workload) -> tuple[baseline.Optimizer, baseline.Tasks]:
    """The same weights, tasks and starting points in torch, where the tasks are the first axis."""
    network = baseline.Optimizer(WIDTH)
    baseline.set_weights(network, weights_of(work.network))

    def last_axis(x: Any) -> torch.Tensor:
        x = np.array(x)
        return torch.tensor(x if work.rollouts.carry.value.ndim else x[..., None])

    h = work.rollouts.drawn
    a, b, c, d = (last_axis(x) for x in (h.a, h.b, h.c[0], h.d))
    return network, baseline.Tasks(a, b, c, d, last_axis(work.rollouts.carry.params).T.contiguous())


def check(work: Workload) -> dict[str, float]:
    """Relative differences of meta-loss and meta-gradient; raises if they are too large.

    Once with our weights handed to torch, and once with torch's own handed to us.
    """
    network, tasks = to_torch(work)
    differences = [_difference(work, network, tasks)]
    torch.manual_seed(0)
    network = baseline.Optimizer(WIDTH)
    differences.append(_difference(work, network, tasks))
    loss, gradient = (max(values) for values in zip(*differences, strict=True))
    if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
        raise RuntimeError(
            f"The two sides differ: meta-loss by {loss:.1e} (allowed {LOSS_TOLERANCE:.0e}), meta-gradient by "
            f"{gradient:.1e} (allowed {GRADIENT_TOLERANCE:.0e}), relatively."
        )
    return {"loss": loss, "gradient": gradient}


def _difference(work: Workload, network: baseline.Optimizer, tasks: baseline.Tasks) -> tuple[float, float]:
    ours = with_weights(work.network, baseline.get_weights(network))
    step = eqx.filter_jit(lambda network, rollouts: work.estimator.step(network, rollouts, None, None)[:2])  # pyright: ignore
    loss, gradient = step(ours, work.rollouts)
    value = baseline.meta_loss(network, tasks, UNROLL)
    value.backward()
    theirs = baseline.get_weights(network, gradients=True)
    mine = weights_of(gradient)
    flat = [np.concatenate([side[name].ravel() for name in mine]) for side in (mine, theirs)]
    error = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    return abs(float(loss) - value.item()) / abs(value.item()), float(error)
