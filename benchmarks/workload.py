"""Our side of the comparison: one meta-step from the public pieces, as a freshly compiled program."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import symmetrax as sx
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

WIDTH, UNROLL = 20, 10

# Every meta-step starts from the same points: at a rate this small thousands of them time the same work.
RATE = 1e-6


class Workload(NamedTuple):
    """A network to train, and tasks underway; `crew` has the task as its last axis, or no axis for one."""

    estimator: sx.TruncatedBPTT
    network: sx.WholeLSTM
    crew: Any


class Program(NamedTuple):
    """`run()` does `meta_steps` meta-steps and returns when they are done."""

    run: Callable[[], jax.Array]
    meta_steps: int
    compile_seconds: float


def make_workload(tasks: int) -> Workload:
    """Rosenbrock tasks, the tamest half of a draw: on the others float32 overflows before the window ends."""
    # Steps are recomputed in the backward pass: faster here, at one task and at a thousand.
    recipe = sx.Recipe(teleports=jnp.ones(UNROLL, bool), guard=None)
    family = sx.make_family("rosenbrock-random")
    estimator = sx.TruncatedBPTT(family, recipe, UNROLL, UNROLL, 2 * tasks, remat=True)
    network = sx.WholeLSTM(2, algebra=1, width=WIDTH, key=jax.random.key(0))
    key = jax.random.key(1)
    crew = estimator.init(network, key, None)
    losses = sx.unroll_many(recipe, network, family, key, UNROLL, 2 * tasks).loss
    tame = np.argsort(np.nan_to_num(np.max(losses, axis=0), nan=np.inf))[:tasks]
    crew = jax.tree.map(lambda x: x[..., tame[0] if tasks == 1 else tame], crew)
    return Workload(dataclasses.replace(estimator, tasks=tasks), network, crew)


def build(work: Workload, *, meta_steps: int = 1, devices: int = 1) -> Program:
    """Compile `meta_steps` meta-steps as one program, with tasks sharded over `devices` host devices.

    Many meta-steps in one program is how `meta_train` runs: whole runs of windows in one `lax.scan`.
    """
    optimizer = optax.adam(RATE)

    def meta_step(network, outer, crew):
        loss, gradient, after = work.estimator.step(network, crew, jax.random.key(2), None)
        if devices > 1:
            # One message for all of it.
            flat, unravel = ravel_pytree((loss, gradient))
            loss, gradient = unravel(jax.lax.pmean(flat, "tasks"))
        updates, outer = optimizer.update(gradient, outer, network)
        return optax.apply_updates(network, updates), outer, loss, after

    def many(network, outer, crew):
        def body(carry, _):
            network, outer, loss, after = meta_step(*carry, crew)
            return (network, outer), (loss, after.carry.value)

        (network, outer), (losses, _) = jax.lax.scan(body, (network, outer), None, length=meta_steps)
        return network, outer, losses[-1], crew

    step = meta_step if meta_steps == 1 else many
    arguments: Any = (work.network, optimizer.init(work.network), work.crew)
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("tasks",))
        whole = PartitionSpec()
        spread = jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), "tasks"), work.crew)
        specs = (whole, whole, spread)
        step = jax.shard_map(
            step, mesh=mesh, in_specs=specs, out_specs=(whole, whole, whole, spread), check_vma=False
        )
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        arguments = tuple(
            jax.tree.map(jax.device_put, argument, place if i == 2 else jax.tree.map(lambda _: place, argument))
            for i, (argument, place) in enumerate(zip(arguments, places, strict=True))
        )
    began = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    network, outer, crew = arguments

    def run() -> jax.Array:
        nonlocal network, outer
        # Blocking every time: sharded steps that queue up can deadlock on few cores.
        network, outer, loss, _ = jax.block_until_ready(compiled(network, outer, crew))
        return loss

    return Program(run, meta_steps, compile_seconds)


def check_finite(program: Program) -> None:
    """Raise if the numbers that were timed are not numbers."""
    if not np.isfinite(program.run()):
        raise RuntimeError("The benchmark's meta-loss is not finite: choose tamer tasks.")
