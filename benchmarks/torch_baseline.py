"""The same meta-step in plain PyTorch, run eagerly: what a careful user would write without this library.

A two-layer LSTM reads the gradient of f(x, y) = (c y + d(x))^2 + (a x + b)^2 and emits an update and a
rotation angle; x <- h^-1(R(angle) h(x + update)) with h(x, y) = (c y + d(x), a x + b); after `unroll` steps
the mean loss is differentiated in the weights, and Adam steps. Tasks are the *first* axis, hand-batched, the
layout that torch's modules want. The gradient that the network reads is treated as a constant.
"""
# Torch is an extra, which the linters do without.
# pyright: reportMissingImports=false

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Tasks(NamedTuple):
    """Maps h and starting points: `a`, `b`, `c` of shape (tasks,), `d` (3, tasks), `start` (tasks, 2)."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    start: Tensor


def forward_map(tasks: Tasks, x: Tensor) -> Tensor:
    """h(x), shape (tasks, 2)."""
    first, second = x.unbind(-1)
    return torch.stack([tasks.c * second + _polynomial(tasks.d, first), tasks.a * first + tasks.b], -1)


def inverse_map(tasks: Tasks, u: Tensor) -> Tensor:
    """The point whose image under h is `u`, shape (tasks, 2)."""
    first, second = u.unbind(-1)
    x = (second - tasks.b) / tasks.a
    return torch.stack([x, (first - _polynomial(tasks.d, x)) / tasks.c], -1)


def rotate(angle: Tensor, u: Tensor) -> Tensor:
    """`u` rotated by `angle` (tasks,), counter-clockwise."""
    cosine, sine = angle.cos(), angle.sin()
    first, second = u.unbind(-1)
    return torch.stack([cosine * first - sine * second, sine * first + cosine * second], -1)


def loss(tasks: Tasks, x: Tensor) -> Tensor:
    """f at `x`, one number per task."""
    return forward_map(tasks, x).square().sum(-1)


def _polynomial(d: Tensor, x: Tensor) -> Tensor:
    return (d[0] * x + d[1]) * x + d[2]


class Optimizer(nn.Module):
    """Two LSTM cells and two linear heads. `nn.LSTMCell` has two biases; the second stays zero."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.first, self.second = nn.LSTMCell(2, width), nn.LSTMCell(width, width)
        self.head, self.angle = nn.Linear(width, 2), nn.Linear(width, 1)
        for cell in (self.first, self.second):
            nn.init.zeros_(cell.bias_hh).requires_grad_(False)

    def forward(self, gradient: Tensor, state) -> tuple[Tensor, Tensor, tuple]:
        first = self.first(gradient, state[0])
        second = self.second(first[0], state[1])
        return self.head(second[0]), self.angle(second[0]).squeeze(-1), (first, second)


def meta_loss(network: Optimizer, tasks: Tasks, unroll: int) -> Tensor:
    """The mean of f(x_1) ... f(x_unroll) over steps and tasks."""
    zeros = torch.zeros(len(tasks.start), network.width)
    state = ((zeros, zeros), (zeros, zeros))
    x = tasks.start.detach().requires_grad_()
    value, losses = loss(tasks, x), []
    for _ in range(unroll):
        # One forward pass serves the meta-loss and this gradient, which comes out as a constant.
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        update, angle, state = network(gradient, state)
        x = inverse_map(tasks, rotate(angle, forward_map(tasks, x + update)))
        value = loss(tasks, x)
        losses.append(value.mean())
    return torch.stack(losses).mean()


class MetaStep:
    """One meta-step per call: meta-loss, its gradient, Adam."""

    def __init__(self, network: Optimizer, tasks: Tasks, unroll: int, rate: float):
        self.network, self.tasks, self.unroll = network, tasks, unroll
        self.adam = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)

    def __call__(self) -> float:
        self.adam.zero_grad()
        value = meta_loss(self.network, self.tasks, self.unroll)
        value.backward()
        self.adam.step()
        return value.item()


def set_weights(network: nn.Module, weights: dict[str, np.ndarray]) -> None:
    """Set the weights by torch's names, such as "first.weight_ih"."""
    values = {name: torch.tensor(np.array(value)) for name, value in weights.items()}
    left = network.load_state_dict(values, strict=False)
    if left.unexpected_keys or set(left.missing_keys) != {"first.bias_hh", "second.bias_hh"}:
        raise ValueError(f"These weights do not fit: {left}.")


def get_weights(network: nn.Module, *, gradients: bool = False) -> dict[str, np.ndarray]:
    """The weights that are trained, or their gradients, by torch's names."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return {name: _numpy(p.grad if gradients else p) for name, p in trained.items()}


def _numpy(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy().copy()
