"""Can it be learned when to teleport to an eigenbasis, and how far? A policy, trained on tiny transformers.

At every tenth step a policy looks at each space: it turns only where the entries off the diagonal of the
second moment are more than a `threshold` of all, and then a `share` of the way; `decay` says how long the
moment remembers. The three numbers are trained on tiny models by the cross-entropy method, on the held-out
loss after the last step, and tested on larger ones, at more steps, against a teleport every 50 and every 10
steps.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from jaxtyping import Array, Float, Key

from symmetrax.search._basis import Eigenbasis
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies._transformer_arms import Arm, Teleporting, adamw, held_out_program, train
from symmetrax.studies.core._console import number, titled_table
from symmetrax.studies.core._played import judged
from symmetrax.studies.core._run import Run
from symmetrax.studies.core._statistics import compare, t_interval
from symmetrax.studies.core._streams import Streams
from symmetrax.studies.core._study import Claim, Study
from symmetrax.tasks._language import Architecture, LanguageModel, standard_library

#: How often a policy looks.
LOOK = 10


TINY = Architecture(width=16, layers=1, heads=2, kv_heads=2, hidden=48, context=32)
LARGER = Architecture()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The models and lengths of training and testing, and the size of the search for a policy.

    >>> Settings().population
    12
    """

    tiny: Architecture = TINY
    larger: Architecture = LARGER
    steps: int = 150
    test_steps: int = 600
    rate: float = 0.0125
    population: int = 12
    elite: int = 4
    generations: int = 8
    starts: int = 3


def policy(z: Float[Array, " 3"]) -> Eigenbasis:
    """The search of a policy with these coordinates: logits of threshold, share and decay.

    >>> search = policy(jnp.zeros(3))
    >>> float(search.threshold), float(search.share), search.stride
    (0.5, 0.5, 10)
    """
    threshold, share, decay = jax.nn.sigmoid(z)
    return Eigenbasis(decay=decay, stride=LOOK, share=share, threshold=threshold)


def learned_policy(
    task: LanguageModel, settings: Settings, keys: Key[Array, " starts"], key: Key[Array, ""]
) -> tuple[np.ndarray, list[float]]:
    """The coordinates of the best policy, by the cross-entropy method, and the best loss of each generation.

    All policies of a generation meet the same starts; the starts change between generations.
    """
    rate = jnp.asarray(settings.rate)

    def make(z):
        return Arm("policy", Teleporting(every=LOOK, search=policy(z)))

    def ends(keys, z):
        run = held_out_program(make(z), task, settings.steps, 1)
        return jax.lax.map(lambda k: run(k, rate)[-1], keys)

    program = jax.jit(ends)
    random = np.random.default_rng(int(jax.random.bits(key)))
    # Where the fixed schedule is: hardly any threshold, the whole way, a long memory.
    mean, spread, best = np.array([-3.0, 3.0, 2.0]), np.full(3, 1.5), []
    for generation in range(settings.generations):
        drawn = mean + spread * random.normal(size=(settings.population, 3))
        drawn[0] = mean
        starts = jax.vmap(lambda k: jax.random.fold_in(k, generation))(keys)  # noqa: B023 (used at once)
        losses = np.array([float(jnp.mean(program(starts, jnp.asarray(z)))) for z in drawn])
        elite = drawn[np.argsort(np.where(np.isfinite(losses), losses, np.inf))[: settings.elite]]
        mean, spread = elite.mean(axis=0), 0.7 * elite.std(axis=0) + 0.3 * spread
        best.append(float(np.min(losses)))
    return mean, best


REFERENCES = ("adamw", "every-50", "every-10")

CLAIMS = (
    Claim("policy", "every-50", "a learned policy of teleports is better than a teleport every 50 steps"),
    Claim("policy", "every-10", "a learned policy of teleports is better than a teleport every 10 steps"),
    Claim("every-50", "adamw", "teleports every 50 steps improve AdamW"),
)


def analyse(run: Run) -> dict[str, Any]:
    """Learns a policy on tiny models, and compares it on larger ones."""
    settings: Settings = run.study.settings
    text, streams = standard_library(), Streams.of(run.study.seed, run.study.seeds)
    run.reporter.note("a policy is learned on tiny models")
    starts = jax.random.split(streams.train, settings.starts)
    z, best = learned_policy(LanguageModel(text, settings.tiny), settings, starts, streams.tune)
    chosen = {
        name: float(x) for name, x in zip(("threshold", "share", "decay"), jax.nn.sigmoid(z), strict=True)
    }
    arms = (
        Arm("adamw", adamw),
        Arm("every-50", Teleporting(search=Eigenbasis(stride=LOOK))),
        Arm("every-10", Teleporting(every=LOOK, search=Eigenbasis(stride=LOOK))),
        Arm("policy", Teleporting(every=LOOK, search=policy(jnp.asarray(z, jnp.float32)))),
    )
    task, held, seconds = LanguageModel(text, settings.larger), {}, {}
    for arm in arms:
        run.reporter.note(f"larger models: {arm.name}")
        (found,) = train(arm, task, [settings.rate], streams.test, settings.test_steps, 5)
        held[arm.name], seconds[arm.name] = found.held[:, None], found.seconds
    run.folder.arrays("held-out-loss", {name: x[:, 0] for name, x in held.items()})
    group = compare(held, REFERENCES, run.study.seeds)
    for name, arm in group.items():
        arm["seconds"], arm["held_mean"] = seconds[name], float(np.mean(held[name][..., -1]))
        for other in REFERENCES:
            gaps = (held[name] - held[other])[:, 0, -1]
            arm.setdefault("difference", {})[other] = (float(np.mean(gaps)), *t_interval(gaps))
    return {
        "groups": {"larger": {"arms": group}},
        "policy": chosen | {"generations": best},
        "verdicts": list(judged(CLAIMS, held)),
    }


def tables(study: Study, results: dict[str, Any]) -> Iterator[rich.table.Table | str]:
    """The policy that was learned, and the comparison on larger models."""
    chosen = results["policy"]
    yield "learned: " + ", ".join(
        f"{name} {number(chosen[name]):.3g}" for name in ("threshold", "share", "decay")
    )
    arms = results["groups"]["larger"]["arms"]
    title = f"held-out loss after {study.settings.test_steps} steps, and differences (95 %)"
    table = titled_table(title, "arm", ("loss", *(f"- {other}" for other in REFERENCES), "time of a step"))
    for name, arm in arms.items():
        gaps = [[number(x) for x in arm["difference"][other]] for other in REFERENCES]
        cells = [
            "" if other == name else f"{m:+.4f} ({low:+.4f} to {high:+.4f})"
            for other, (m, low, high) in zip(REFERENCES, gaps, strict=True)
        ]
        table.add_row(
            name,
            f"{number(arm['held_mean']):.4f}",
            *cells,
            f"{arm['seconds'] / arms['adamw']['seconds']:.2f}",
        )
    yield table


_QUICK = Architecture(width=8, layers=1, heads=2, kv_heads=2, hidden=8, context=8)

STUDIES = {
    "basis-policy": Study(
        name="basis-policy",
        title=EXPERIMENTS["basis-policy"].title,
        analyse=analyse,
        tables=tables,
        seeds=8,
        settings=Settings(),
        quick={
            "seeds": 2,
            "settings": Settings(
                _QUICK, _QUICK, steps=20, test_steps=20, population=4, elite=2, generations=2, starts=1
            ),
        },
    )
}
