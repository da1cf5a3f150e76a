"""Our side of the comparison: one meta-step from the public pieces, as a freshly compiled program."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

import symmetrax as sx

WIDTH, UNROLL = 20, 10

# Every meta-step starts from the same points: at a rate this small thousands of them time the same work.
RATE = 1e-6


class Workload(NamedTuple):
    """A network to train, and tasks underway: `rollouts`, with the task as last axis, or without for one."""

    estimator: sx.metatrain.TruncatedBPTT
    network: Any
    rollouts: Any


class Program(NamedTuple):
    """`run()` does `meta_steps` meta-steps and returns when they are done."""

    run: Callable[[], jax.Array]
    meta_steps: int
    compile_seconds: float


def make_workload(tasks: int) -> Workload:
    """Random Rosenbrock tasks, the best-conditioned quarter of a draw.

    On the others float32 may overflow before the window ends, or amplify the last digit beyond comparison.
    """
    rule = sx.UpdateRule(schedule=jnp.ones(UNROLL, bool), guard=None)
    family = sx.tasks.make_family("rosenbrock-random")
    # Recomputing steps in the backward pass is faster here, at one task and at a thousand.
    estimator = sx.metatrain.TruncatedBPTT(family, rule, UNROLL, UNROLL, 4 * tasks, remat=True)
    network = sx.learned.FlatGradientLSTM(2, algebra=1, width=WIDTH, key=jax.random.key(0))
    rollouts = estimator.init(network, jax.random.key(1), None)
    steep = np.minimum(np.abs(rollouts.drawn.a), np.abs(rollouts.drawn.c[0]))
    kept = np.argsort(steep)[-tasks:]
    rollouts = jax.tree.map(lambda x: x[..., kept[0] if tasks == 1 else kept], rollouts)
    return Workload(dataclasses.replace(estimator, tasks=tasks), network, rollouts)


def build(work: Workload, *, meta_steps: int, devices: int = 1) -> Program:
    """Compile `meta_steps` meta-steps as one program, with tasks sharded over `devices` host devices.

    Many meta-steps in one program is how `meta_train` runs: whole runs of windows in one `lax.scan`.
    """
    optimizer = optax.adam(RATE)

    def meta_step(network, outer, rollouts):
        loss, gradient, _ = work.estimator.step(network, rollouts, jax.random.key(2), None)
        if devices > 1:
            # One message for all of it.
            flat, unravel = ravel_pytree((loss, gradient))
            loss, gradient = unravel(jax.lax.pmean(flat, "tasks"))
        updates, outer = optimizer.update(gradient, outer, network)
        return optax.apply_updates(network, updates), outer, loss

    def many(network, outer, rollouts):
        def body(carry, _):
            network, outer, loss = meta_step(carry[0], carry[1], rollouts)
            return (network, outer), loss

        (network, outer), losses = jax.lax.scan(body, (network, outer), None, length=meta_steps)
        return network, outer, losses[-1]

    network, outer, rollouts = work.network, optimizer.init(cast(Any, work.network)), work.rollouts
    program: Callable = many
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("tasks",))
        whole = PartitionSpec()
        last = jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), "tasks"), rollouts)
        ends = {"in_specs": (whole, whole, last), "out_specs": (whole, whole, whole)}
        program = jax.shard_map(many, mesh=mesh, check_vma=False, **ends)
        network, outer = jax.device_put((network, outer), NamedSharding(mesh, whole))
        rollouts = jax.device_put(rollouts, jax.tree.map(lambda spec: NamedSharding(mesh, spec), last))
    began = time.perf_counter()
    compiled = jax.jit(program).lower(network, outer, rollouts).compile()
    compile_seconds = time.perf_counter() - began

    def run() -> jax.Array:
        nonlocal network, outer
        # Blocking every time: sharded programs that queue up can deadlock on few cores.
        network, outer, loss = jax.block_until_ready(compiled(network, outer, rollouts))
        return loss

    return Program(run, meta_steps, compile_seconds)


def check_finite(program: Program) -> None:
    """Raise if the numbers that were timed are not numbers."""
    if not np.isfinite(program.run()):
        raise RuntimeError("The benchmark's meta-loss is not finite: choose tamer tasks.")
