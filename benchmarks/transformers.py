"""What teleports to an eigenbasis cost AdamW on transformers, by width: ratios of the time of a step.

`python benchmarks/transformers.py` prints, for every width, the median over rebuilds of the ratio of 200
steps with two teleports to 200 steps without, alternating in one process, compile time apart. Everything is
charged: second moments at every tenth step, eigenvectors, guard, and the transport of parameters and state.
"""

import argparse
import statistics
import time

import jax
import optax

import symmetrax as sx

STEPS = 200


def program(task: sx.tasks.LanguageModel, every: int | None):
    """A compiled function of a key that trains for `STEPS` steps, teleporting at every `every`-th."""
    optimizer = optax.with_extra_args_support(optax.adamw(3e-3, b2=0.99))
    if every is not None:
        spaces = [name for name, group in task.symmetry().spaces.items() if group.rotates]
        optimizer = sx.teleported(
            optimizer,
            task.symmetry().only(*spaces),
            search=sx.search.Eigenbasis(stride=10),
            schedule=sx.schedules.every_n_steps(every),
        )

    def run(key):
        params = task.init(key)

        def step(carry, key):
            params, state = carry
            batch = task.batch(key)
            gradient = jax.grad(task.loss)(params, batch)
            updates, state = optimizer.update(gradient, state, params, value_fn=lambda w: task.loss(w, batch))
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, STEPS))
        return jax.tree.leaves(params)[0]

    return jax.jit(run).lower(jax.random.key(0)).compile()


def seconds(compiled, key) -> float:
    start = time.perf_counter()
    compiled(key).block_until_ready()
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--widths", type=int, nargs="*", default=[64, 128, 256])
    arguments.add_argument("--every", type=int, default=100)
    arguments.add_argument("--rebuilds", type=int, default=3)
    given = arguments.parse_args()
    text = sx.tasks.standard_library()
    for width in given.widths:
        architecture = sx.tasks.Architecture(
            width=width, heads=width // 16, kv_heads=width // 16, hidden=3 * width
        )
        task = sx.tasks.LanguageModel(text, architecture)
        ratios, plain_steps = [], []
        for _ in range(given.rebuilds):
            jax.clear_caches()
            plain, teleporting = program(task, None), program(task, given.every)
            for repeat in range(3):
                key = jax.random.key(repeat)
                base = seconds(plain, key)
                ratios.append(seconds(teleporting, key) / base)
                plain_steps.append(base / STEPS)
        milliseconds = 1e3 * statistics.median(plain_steps)
        print(
            f"width {width}: a step of AdamW {milliseconds:.1f} ms, with teleports every {given.every} steps "
            f"{statistics.median(ratios):.3f} times ({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
