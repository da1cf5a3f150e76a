"""Meta-training on networks in plain PyTorch, run eagerly: one task as in the published code, or a batch.

The task is f(W1, W2) = 1/2 ||Y - W2 s(W1 X)||^2 with two 20 x 20 matrices and s a leaky ReLU. Stacked LSTMs
read the flattened gradient and emit an update or a step size, and T of norm 0.01; then
(W2, W1) <- (W2 g^-1, s^-1(g s(W1 X)) X^+) with g = exp(T), arXiv:2205.10637, at every step; after `unroll`
steps the mean loss is differentiated in the weights, and Adam steps. The gradient that the networks read is a
constant. Without an axis of tasks X^+ is computed in every step, as in the published code; hand-batched, with
the tasks as first axis, once for a window, as a careful user would. The published code has I + T for g and
I - T for its inverse; here a second term makes the action exact to 1e-7, at the price of one product.
"""
# Torch is an extra, which the linters do without.
# pyright: reportMissingImports=false

from typing import NamedTuple

import torch
from torch import Tensor, nn

SIZE, MAX_NORM, RATES, SLOPE = 20, 0.01, (1e-7, 5e-3), 0.1


class Tasks(NamedTuple):
    """Inputs and targets, samples as columns, and starting weights: each (20, 20), or (tasks, 20, 20)."""

    x: Tensor
    y: Tensor
    start: tuple[Tensor, Tensor]


class Network(nn.Module):
    """Two LSTM cells and linear heads `name: outputs`. The cells' second bias stays zero."""

    def __init__(self, width: int, heads: dict[str, int]):
        super().__init__()
        self.first, self.second = nn.LSTMCell(2 * SIZE**2, width), nn.LSTMCell(width, width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, outputs) for name, outputs in heads.items()})
        for cell in (self.first, self.second):
            nn.init.zeros_(cell.bias_hh).requires_grad_(False)

    def forward(self, gradient: Tensor, state) -> tuple[dict[str, Tensor], tuple]:
        first = self.first(gradient, state[0])
        second = self.second(first[0], state[1])
        return {name: head(second[0]) for name, head in self.heads.items()}, (first, second)


def loss(tasks: Tasks, w1: Tensor, w2: Tensor) -> Tensor:
    """f, one number per task."""
    features = nn.functional.leaky_relu(w1 @ tasks.x, SLOPE)
    return 0.5 * (tasks.y - w2 @ features).square().sum((-2, -1))


def teleport(tasks: Tasks, w1: Tensor, w2: Tensor, algebra: Tensor, inverse: Tensor | None):
    """The weights moved by exp(`algebra`), made MAX_NORM long; `inverse` is X^+, if it is known."""
    t = algebra.unflatten(-1, (SIZE, SIZE))
    t = t * (MAX_NORM / torch.linalg.vector_norm(t, dim=(-2, -1), keepdim=True))
    even = torch.eye(SIZE) + t @ t / 2
    features = (even + t) @ nn.functional.leaky_relu(w1 @ tasks.x, SLOPE)
    before = torch.where(features > 0, features, features / SLOPE)
    return before @ (torch.linalg.pinv(tasks.x) if inverse is None else inverse), w2 @ (even - t)


def meta_loss(networks: list[Network], tasks: Tasks, unroll: int) -> Tensor:
    """The mean of f(x_1) ... f(x_unroll) over steps and tasks."""
    batch = tasks.x.shape[:-2]
    inverse = torch.linalg.pinv(tasks.x) if batch else None
    zeros = [torch.zeros(*batch, network.first.hidden_size) for network in networks]
    states = [((zero, zero), (zero, zero)) for zero in zeros]
    w1, w2 = (w.detach().requires_grad_() for w in tasks.start)
    value, losses = loss(tasks, w1, w2), []
    for _ in range(unroll):
        # One forward pass serves the meta-loss and this gradient, which comes out as a constant.
        d1, d2 = torch.autograd.grad(value.sum(), (w1, w2), retain_graph=True)
        seen = torch.cat([d1.flatten(-2), d2.flatten(-2)], -1)
        out = {}
        for index, network in enumerate(networks):
            emitted, states[index] = network(seen, states[index])
            out |= emitted
        if "step" in out:
            u1, u2 = out["step"].unflatten(-1, (2, SIZE, SIZE)).unbind(-3)
        else:
            rate = RATES[0] * (RATES[1] / RATES[0]) ** torch.sigmoid(out["rate"].unsqueeze(-1))
            u1, u2 = -rate * d1, -rate * d2
        w1, w2 = teleport(tasks, w1 + u1, w2 + u2, out["algebra"], inverse)
        value = loss(tasks, w1, w2)
        losses.append(value.mean())
    return torch.stack(losses).mean()


class MetaStep:
    """One meta-step per call: meta-loss, its gradient, Adam."""

    def __init__(self, networks: list[Network], tasks: Tasks, unroll: int, rate: float):
        self.networks, self.tasks, self.unroll = networks, tasks, unroll
        weights = [p for network in networks for p in network.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(weights, lr=rate)

    def __call__(self) -> float:
        self.adam.zero_grad()
        value = meta_loss(self.networks, self.tasks, self.unroll)
        value.backward()
        self.adam.step()
        return value.item()
