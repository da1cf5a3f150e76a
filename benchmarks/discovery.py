"""How long `find_symmetries` takes: all groups, transformers like GPT-2 in single precision, in four sizes.

`python benchmarks/discovery.py --scale` prints seconds, memory and the time in gradients of the same loss,
compile time included, each in a process of its own: what is compiled is the user's loss, once. Layers have
fused projections, biases, gains and heads; embeddings are tied. `--zoo` prints the table of the page about
discovery instead, from the networks that the tests use.
"""

import argparse
import functools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import symmetrax as sx
from symmetrax.groups._diagonal import AbstractGroup

TIME = 64


class Size(NamedTuple):
    """A size of model, and how long its search may take: seconds and gigabytes on two cores."""

    width: int
    heads: int
    layers: int
    words: int
    seconds: float
    gigabytes: float


SIZES = {
    "1M": Size(128, 4, 4, 1_000, 10, 6),
    "10M": Size(320, 5, 7, 4_000, 30, 6),
    "30M": Size(512, 8, 8, 8_000, 90, 6),
    "124M": Size(768, 12, 12, 50_257, 360, 6),
}


def parameters(size: Size) -> dict[str, Any]:
    """Embeddings of words and positions, blocks, and the gain and bias of the last norm."""
    rng, d = np.random.default_rng(0), size.width

    def matrix(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, columns)) / rows**0.5, jnp.float32)

    def linear(rows: int, columns: int) -> dict[str, jax.Array]:
        return {"w": matrix(rows, columns), "b": jnp.zeros(columns)}

    def norm() -> dict[str, jax.Array]:
        return {"g": jnp.ones(d), "b": jnp.zeros(d)}

    blocks = [
        {"n1": norm(), "qkv": linear(d, 3 * d), "out": linear(d, d)}
        | {"n2": norm(), "up": linear(d, 4 * d), "down": linear(4 * d, d)}
        for _ in range(size.layers)
    ]
    return {"words": matrix(size.words, d), "places": matrix(TIME, d), "blocks": blocks, "last": norm()}


def loss(heads: int, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Cross-entropy of the next token: pre-LayerNorm, causal attention, GELU."""

    def norm(x: jax.Array, p: dict[str, jax.Array]) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]

    def linear(x: jax.Array, p: dict[str, jax.Array]) -> jax.Array:
        return x @ p["w"] + p["b"]

    x = params["words"][tokens] + params["places"]
    causal = jnp.tril(jnp.ones((TIME, TIME), bool))
    for block in params["blocks"]:
        fused = jnp.split(linear(norm(x, block["n1"]), block["qkv"]), 3, axis=-1)
        q, k, v = (part.reshape(TIME, heads, -1) for part in fused)
        scores = jnp.einsum("the,she->hts", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        x = x + linear(jnp.einsum("hts,she->the", weights, v).reshape(TIME, -1), block["out"])
        x = x + linear(jax.nn.gelu(linear(norm(x, block["n2"]), block["up"])), block["down"])
    said = jax.nn.log_softmax(norm(x, params["last"]) @ params["words"].T)
    return -jnp.mean(jnp.take_along_axis(said[:-1], tokens[1:, None], axis=-1))


def once(name: str, memory: float | None = None) -> dict[str, float]:
    """One search, in this process, with a bound on its memory in gigabytes."""
    size = SIZES[name]
    params, of = parameters(size), functools.partial(loss, size.heads)

    def batch(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (TIME,), 0, size.words)

    began = time.perf_counter()
    bound = None if memory is None else memory * 1e9
    found = sx.find_symmetries(of, params, jax.random.key(1), batch=batch, method="program", memory=bound)
    seconds = time.perf_counter() - began
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    gradient, tokens = jax.jit(jax.grad(of)), batch(jax.random.key(2))
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, tokens))
        times.append(time.perf_counter() - start)
    kinds = [type(one.group) for one in found.exact]
    layers = size.layers
    # Gains and biases of all norms but the last, which the tied embedding reads; heads and units; the stream.
    expected = {
        sx.groups.GeneralLinear: 2 * layers,
        sx.groups.PositiveDiagonal: 2 * layers,
        sx.groups.SignDiagonal: 2 * layers,
        sx.groups.Permutation: 2 * layers + 1,
    }
    for kind, count in expected.items():
        assert kinds.count(kind) == count, f"{kind.__name__}: {kinds.count(kind)} of {count}"
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "symmetries": len(found.exact),
        "evaluations": found.evaluations,
        "seconds": seconds,
        "gradients": seconds / statistics.median(times[1:]),
        "gigabytes": gigabytes,
    }


def zoo() -> None:
    """The table of docs/discovery.md: what is found of every network of the tests, in double precision."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    from tests.zoo import ROWS

    jax.config.update("jax_enable_x64", True)
    print("| network | found (number of spaces) | largest change: loss, gradient | evaluations |")
    print("| --- | --- | --- | --- |")
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
        print(f"| {row.name} | {said} | {worst[0]:.0e}, {worst[1]:.0e} | {found.evaluations} |")


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
    parser.add_argument("--runs", type=int, default=3, help="processes for each size")
    parser.add_argument(
        "--scale", nargs="*", default=list(SIZES), metavar="SIZE", help="sizes (default: all)"
    )
    parser.add_argument("--memory", type=float, metavar="GB", help="bound on each search (default: none)")
    parser.add_argument("--child", choices=SIZES, help="search once and print JSON")
    parser.add_argument("--zoo", action="store_true", help="print the table of docs/discovery.md")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(once(options.child, options.memory)))
        return
    if options.zoo:
        zoo()
        return
    print("| model | parameters | symmetries | evaluations | seconds (limit) | in gradients | GB (limit) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.scale or SIZES:
        command = [sys.executable, __file__, "--child", name]
        command += [] if options.memory is None else ["--memory", str(options.memory)]
        runs = [
            json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            for _ in range(options.runs)
        ]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        size = SIZES[name]
        counts = " | ".join(f"{middle[key]:,.0f}" for key in ("parameters", "symmetries", "evaluations"))
        cost = f"{middle['seconds']:.1f} ({size.seconds:g}) | {middle['gradients']:.0f}"
        print(f"| {name} | {counts} | {cost} | {middle['gigabytes']:.1f} ({size.gigabytes:g}) |", flush=True)


if __name__ == "__main__":
    main()
