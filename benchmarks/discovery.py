"""How long `find_symmetries` takes: all groups, a transformer of 6 million parameters in single precision.

`python benchmarks/discovery.py` prints seconds, memory and the time in gradients of the same loss, compile
time included, each time in a process of its own: what is compiled is the user's loss, once. `--zoo` prints
the table of docs/discovery.md, from the networks that the tests use, instead.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import symmetrax as sx
from symmetrax.groups._diagonal import AbstractGroup

WIDTH, HEADS, HIDDEN, LAYERS, WORDS, TIME = 288, 6, 1152, 6, 512, 32


def parameters(key: jax.Array) -> dict[str, Any]:
    """Embeddings, six blocks, and a head of its own."""
    keys = iter(jax.random.split(key, 8 * LAYERS + 2))

    def matrix(rows: int, columns: int) -> jax.Array:
        return jax.random.normal(next(keys), (rows, columns)) / columns**0.5

    blocks = [
        {name: matrix(WIDTH, WIDTH) for name in "qkvo"}
        | {"up": matrix(HIDDEN, WIDTH), "bias": jnp.zeros(HIDDEN), "down": matrix(WIDTH, HIDDEN)}
        for _ in range(LAYERS)
    ]
    return {"embed": matrix(WORDS, WIDTH), "blocks": blocks, "head": matrix(WORDS, WIDTH)}


def loss(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Cross-entropy of the next token: pre-RMSNorm, gains folded in, causal attention, ReLU."""

    def norm(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    x = params["embed"][tokens]
    rows, length = tokens.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    for block in params["blocks"]:
        q, k, v = ((norm(x) @ block[name].T).reshape(rows, length, HEADS, -1) for name in "qkv")
        scores = jnp.einsum("bthe,bshe->bhts", q, k) / (WIDTH / HEADS) ** 0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        x = x + jnp.einsum("bhts,bshe->bthe", weights, v).reshape(rows, length, -1) @ block["o"].T
        x = x + jax.nn.relu(norm(x) @ block["up"].T + block["bias"]) @ block["down"].T
    said = jax.nn.log_softmax(norm(x) @ params["head"].T)
    return -jnp.mean(jnp.take_along_axis(said[:, :-1], tokens[:, 1:, None], axis=-1))


def batch(key: jax.Array) -> jax.Array:
    """Two sequences of random tokens."""
    return jax.random.randint(key, (2, TIME), 0, WORDS)


def once() -> dict[str, float]:
    """One search, in this process."""
    params = parameters(jax.random.key(0))
    began = time.perf_counter()
    found = sx.find_symmetries(loss, params, jax.random.key(1), batch=batch)
    seconds = time.perf_counter() - began
    gradient, tokens = jax.jit(jax.grad(loss)), batch(jax.random.key(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, tokens))
        times.append(time.perf_counter() - start)
    kinds = [type(one.group) for one in found.exact]
    # The scale of the whole stream holds up to the epsilon of the norm, and is told as approximate.
    expected = {
        sx.groups.Orthogonal: 1,
        sx.groups.GeneralLinear: 2 * LAYERS,
        sx.groups.PositiveDiagonal: LAYERS,
    }
    for kind, count in (expected | {sx.groups.Permutation: 2 * LAYERS}).items():
        assert kinds.count(kind) == count, f"{kind.__name__}: {kinds.count(kind)} of {count}"
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "symmetries": len(found.exact),
        "evaluations": found.evaluations,
        "seconds": seconds,
        "gradients": seconds / statistics.median(times),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def zoo() -> None:
    """The table of docs/discovery.md: what is found of every network of the tests, in double precision."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    from tests.zoo import ROWS

    jax.config.update("jax_enable_x64", True)
    print(
        "| network | found (number of spaces) | largest change: loss, gradient | smallest gap | evaluations |"
    )
    print("| --- | --- | --- | --- | --- |")
    for row in ROWS:
        jax.clear_caches()
        found = sx.find_symmetries(
            row.loss,
            row.params(),
            jax.random.key(0),
            batch=lambda key, row=row: row.batch(int(jax.random.randint(key, (), 0, 1000))),
        )
        counts: dict[str, int] = {}
        for one in found:
            near = ", nearly" if one.certificate.outcome == "approximate" else ""
            name = short(one.group) + near
            counts[name] = counts.get(name, 0) + 1
        said = ", ".join(f"{name}" + (f" ({count})" if count > 1 else "") for name, count in counts.items())
        certificates = [one.certificate for one in found]
        worst = max(c.loss_change for c in certificates), max(c.gradient for c in certificates)
        gap = min(one.gap[1] for one in found)
        print(f"| {row.name} | {said} | {worst[0]:.0e}, {worst[1]:.0e} | {gap:.0e} | {found.evaluations} |")


def short(group: AbstractGroup) -> str:
    """A group by its letters and size: GL(6) x 2 has one matrix for each of two heads."""
    letters = {"GeneralLinear": "GL", "Orthogonal": "O", "ScaledRotation": "scaled rotation"}
    letters |= {"PositiveDiagonal": "scales", "SignDiagonal": "signs", "Permutation": "permutations"}
    name = letters[type(group).__name__]
    size = "" if name == "scaled rotation" else f"({group.size})"
    copies = int(np.prod(group.lengths))
    return f"{name}{size}" + (f" x {copies}" if copies > 1 else "")


def main() -> None:
    """Run a few searches, each in a process of its own, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="processes")
    parser.add_argument("--child", action="store_true", help="search once and print JSON")
    parser.add_argument("--zoo", action="store_true", help="print the table of docs/discovery.md")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(once()))
        return
    if options.zoo:
        zoo()
        return
    command = [sys.executable, __file__, "--child"]
    runs = [
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        for _ in range(options.runs)
    ]
    for name in runs[0]:
        values = sorted(run[name] for run in runs)
        print(f"{name:<12} {statistics.median(values):>12,.4g}   ({values[0]:,.4g} to {values[-1]:,.4g})")
    print("required: 35 seconds and 3 gigabytes on two cores")


if __name__ == "__main__":
    main()
