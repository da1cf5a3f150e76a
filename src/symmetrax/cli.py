"""The command line. What is heavy is imported when a command needs it, so that `--help` answers at once."""

import os
import sys
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from symmetrax.experiments._registry import EXPERIMENTS, PRESETS, run_experiment

Positional = tyro.conf.Positional


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `symmetrax`: exit code 2, and one line on standard error, for bad input."""
    app = tyro.extras.SubcommandApp()
    for name, command in {
        "list": list_,
        "run": run,
        "evaluate": evaluate,
        "claims": claims,
        "discover": discover,
        "bench": bench,
    }.items():
        app.command(name=name)(command)
    _prepare_jax()
    try:
        app.cli(
            prog="symmetrax", description="Symmetries, teleportation and learned optimizers.", args=arguments
        )
    except ValueError as error:
        print(f"symmetrax: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def list_() -> None:
    """List the experiments and task families."""
    from symmetrax.tasks._families import family_names

    print("experiments (symmetrax run NAME):")
    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        print(f"  {name:<{width}}  {experiment.title}")
    print(f"presets: {', '.join(PRESETS)}")
    print(f"families (symmetrax evaluate ARTIFACT --family NAME): {', '.join(family_names())}")


def run(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")],
    /,
    preset: str = "full",
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Run an experiment, or continue one that was stopped.

    Args:
        name: What to run; `symmetrax list` names them.
        preset: "full", or "quick" for fewer seeds and tasks.
        out: The folder of the run; by default runs/NAME-PRESET-SEED.
        seed: Seed of all random draws.
    """
    run_experiment(name, preset, out, seed)


def evaluate(
    artifact: Annotated[Positional[Path], tyro.conf.arg(metavar="ARTIFACT")],
    /,
    family: str,
    steps: int = 12,
    tasks: int = 1000,
    seed: int = 0,
) -> None:
    """Evaluate a trained optimizer from its file on unseen tasks, beside tuned Adam.

    Args:
        artifact: A .safetensors file that `symmetrax run` or `symmetrax.save` wrote.
        family: The task family; `symmetrax list` names them.
        steps: Steps per task.
        tasks: Number of tasks.
        seed: Seed of the tasks.
    """
    from symmetrax.experiments.evaluation import evaluate_artifact

    evaluate_artifact(artifact, family, steps=steps, tasks=tasks, seed=seed)


def claims(json: bool = False) -> None:
    """Check the papers' claims as numbers; exit code 1 if one fails.

    Args:
        json: Print a JSON list instead of a table.
    """
    from symmetrax.experiments._report import Reporter, claims_table
    from symmetrax.experiments.claims import CLAIMS, check

    rows = [check(claim) for claim in CLAIMS]
    if json:
        print(dumps(rows, indent=2))
    else:
        Reporter().print(claims_table(rows))
    if any(row["outcome"] == "failed" for row in rows):
        raise SystemExit(1)


def discover(
    function: Annotated[Positional[str], tyro.conf.arg(metavar="MODULE:FUNCTION")],
    /,
    groups: tuple[str, ...] = (),
    heads: tuple[int, ...] = (),
    budget: int | None = None,
    trials: int = 3,
    seed: int = 0,
    double: bool = False,
    json: Path | None = None,
) -> None:
    """Find the symmetries of a model from gradients of its loss, and certify them.

    Args:
        function: A function without arguments that returns (loss, params), or (loss, params, batch); batch is
            data, or a function of a key that draws some. The module may be in the working directory.
        groups: Names of groups to look for, such as PositiveDiagonal; by default all.
        heads: Numbers of heads that merged axes may be split into; by default all divisors.
        budget: The most evaluations of the loss.
        trials: Random elements for every certificate.
        seed: Seed of all random draws.
        double: Make the model in double precision too. The search is in double precision either way.
        json: A file for everything that was found, as JSON; "-" is standard output, and then all else goes to
            standard error.
    """
    from symmetrax.discovery._command import discover_from

    discover_from(
        function, groups, heads=heads, budget=budget, trials=trials, seed=seed, double=double, json=json
    )


def bench(json: bool = False, quick: bool = False) -> None:
    """Time this library against plain PyTorch, and print the ratios.

    Args:
        json: Print a JSON list instead of a table.
        quick: Fewer repetitions.
    """
    import runpy

    import symmetrax

    folder = Path(symmetrax.__file__).resolve().parents[2] / "benchmarks"
    if not (folder / "run.py").exists():
        raise ValueError(
            "The benchmarks are part of the source checkout, not of the installed package: clone the "
            "repository and run `make bench` there."
        )
    sys.path.insert(0, str(folder))
    flags = [*(["--json"] if json else []), *(["--quick"] if quick else [])]
    sys.argv = [str(folder / "run.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _prepare_jax() -> None:
    """Settings that must stand before JAX is imported: a compilation cache that keeps every program, and one
    host device per core, over which the seeds of an experiment are spread. What the user has set stays."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "symmetrax", "jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        cores = min(os.cpu_count() or 1, 8)
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cores}".strip()


if __name__ == "__main__":
    main()
