"""The commands. Each imports its heavy dependencies when it runs, so that `--help` is fast."""

import functools
import inspect
import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from symmetrax.studies._registry import EXPERIMENTS, PRESETS, checked_seed, choose, run_experiment


def _argument(metavar: str, default: str | None = None) -> Any:
    """Sets how help displays an argument: its placeholder and its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=None if default is None else f"({default})")


def _list() -> None:
    """List the experiments and task families."""
    from symmetrax.tasks._families import family_names

    print("experiments (symmetrax run NAME):")
    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        print(f"  {name:<{width}}  {experiment.title}")
    print(f"presets: {', '.join(PRESETS)}")
    print(f"families (symmetrax evaluate ARTIFACT --family NAME): {', '.join(family_names())}")


def _run(
    name: Annotated[str, _argument("NAME", "required, or --all")] = "",
    /,
    preset: Annotated[str, _argument("NAME")] = "full",
    out: Annotated[Path | None, _argument("FOLDER", "default: runs/NAME-PRESET-SEED")] = None,
    seed: int = 0,
    all: bool = False,
) -> None:
    """Run an experiment, or resume one that was interrupted.

    Args:
        name: The experiment; `symmetrax list` shows all names. Or the path of a Python file that defines a
            `symmetrax.studies.Study`; if it defines several, FILE.py:NAME.
        preset: "full", or "quick" for fewer seeds and tasks.
        out: The output folder of the run; with --all, the folder of all their folders.
        seed: Seed of all random draws.
        all: Run all experiments, and print one table. Exit code 1 if one of them fails.
    """
    if bool(name) == all:
        given = f"both {name!r} and --all" if name else "neither"
        raise ValueError(f"Name one experiment, or write --all; got {given}. For help: symmetrax run --help")
    if not all:
        run_experiment(name, preset, out, seed)
        return
    from symmetrax.studies._all import run_all

    if run_all(choose("preset", preset, PRESETS), out or "runs", checked_seed(seed)):
        raise SystemExit(1)  # the table has said which


def _report(
    folders: Annotated[tuple[Path, ...], _argument("FOLDER [FOLDER ...]", "required: one or more")],
    /,
    out: Annotated[Path | None, _argument("FILE", "default: FOLDER/report.html, or comparison.html")] = None,
) -> None:
    """Write the report of a run, or one page that compares several runs.

    Args:
        folders: The run folders; one that was interrupted gets a report of what is there.
        out: The HTML file. It opens in any browser, without a network.
    """
    from symmetrax.studies.core._report import write_comparison, write_report

    if not folders:
        raise ValueError("Name at least one run folder: symmetrax report FOLDER [FOLDER ...]")
    one = len(folders) == 1
    print(write_report(folders[0], out) if one else write_comparison(folders, out or Path("comparison.html")))


def _evaluate(
    artifact: Annotated[Path, _argument("ARTIFACT")],
    /,
    family: Annotated[str, _argument("NAME")],
    steps: int = 12,
    tasks: int = 1000,
    seed: int = 0,
) -> None:
    """Evaluate a trained optimizer from a file on unseen tasks, next to tuned Adam.

    Args:
        artifact: A .safetensors file written by `symmetrax run` or `symmetrax.save`.
        family: The task family: a name from `symmetrax list`, or your own as MODULE:OBJECT, either a family
            or a function without arguments that returns one. The module may be in the working directory.
        steps: Steps per task.
        tasks: Number of tasks.
        seed: Seed of the tasks.
    """
    from symmetrax.studies.evaluation import evaluate_artifact

    evaluate_artifact(artifact, family, steps=steps, tasks=tasks, seed=seed)


def _claims(json: bool = False) -> None:
    """Check the papers' claims numerically; exit code 1 if a claim fails.

    Args:
        json: Print a JSON list instead of a table.
    """
    from symmetrax.studies.claims import CLAIMS, check
    from symmetrax.studies.core._console import Reporter, claims_table

    rows = [check(claim) for claim in CLAIMS]
    if json:
        print(dumps(rows, indent=2))
    else:
        Reporter().print(claims_table(rows))
    if any(row["outcome"] == "failed" for row in rows):
        raise SystemExit(1)  # for scripts: the table has been printed already


def _discover(
    function: Annotated[str, _argument("MODULE:FUNCTION")],
    /,
    groups: Annotated[tuple[str, ...], _argument("NAME [NAME ...]", "default: all")] = (),
    heads: Annotated[tuple[int, ...], _argument("INT [INT ...]", "default: all divisors")] = (),
    budget: Annotated[int | None, _argument("INT", "default: no limit")] = None,
    trials: int = 3,
    method: Literal["auto", "program", "gradients"] = "auto",
    seconds: Annotated[float | None, _argument("SECONDS", "default: no limit")] = None,
    memory: Annotated[float | None, _argument("GIGABYTES", "default: no limit")] = None,
    seed: int = 0,
    double: bool = False,
    json: Annotated[Path | None, _argument("FILE", "default: none is written")] = None,
) -> None:
    """Discover the symmetries of your model from its program and gradients of its loss, and certify them.

    Args:
        function: A function without arguments that returns (loss, params) or (loss, params, batch), where
            batch is data or a function of a key that draws some. The module may be in the working directory.
        groups: The groups to search: GeneralLinear (any invertible map), ScaledRotation (a rotation times a
            factor), Orthogonal (rotations), PositiveDiagonal (scaled units), SignDiagonal (negated units),
            Permutation (permuted units).
        heads: The numbers of heads into which an attention axis may be split; specifying them saves time.
        budget: The maximum number of evaluations of the loss or its gradient; skipped questions are reported.
        trials: The number of random transformations that each symmetry must pass before it is reported.
        method: "program" reads the symmetries off the program of the loss, in about 20 evaluations;
            "gradients" searches for them; "auto" does both, unless there are more than 300,000 parameters.
        seconds: The time after which no further evaluation is started; skipped questions are reported.
        memory: The memory in gigabytes that the search may take, besides 0.5 GB for Python and the compiler.
        seed: Seed of all random draws: other points, other transformations.
        double: Build the model in double precision too. The search uses double precision either way.
        json: A file to which to write all results as JSON; "-" is standard output, in which case everything
            else goes to standard error.
    """
    from symmetrax.discovery._command import discover_from

    discover_from(
        function,
        groups,
        heads=heads,
        budget=budget,
        trials=trials,
        method=method,
        seconds=seconds,
        memory=memory,
        seed=checked_seed(seed),
        double=double,
        json=json,
    )


def _bench(json: bool = False, quick: bool = False) -> None:
    """Time this library against plain PyTorch and print the ratios.

    Args:
        json: Print a JSON list instead of a table.
        quick: Fewer repetitions.
    """
    import runpy  # not at the top: everything that this module imports delays `--help`

    import symmetrax

    folder = Path(symmetrax.__file__).resolve().parents[2] / "benchmarks"
    if not (folder / "run.py").exists():
        raise ValueError(
            "The benchmarks are part of the source checkout, not of the installed package: clone the "
            "repository and run `make bench` there."
        )
    sys.path.insert(0, str(folder))
    # In this process, as if its file had been called: it imports its neighbours and reads `sys.argv`.
    flags = [*(["--json"] if json else []), *(["--quick"] if quick else [])]
    sys.argv = [str(folder / "run.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


#: The commands by name. tyro builds each one's parser from its signature, and its help from its docstring.
COMMANDS: dict[str, Callable[..., None]] = {
    "list": _list,
    "run": _run,
    "report": _report,
    "evaluate": _evaluate,
    "claims": _claims,
    "discover": _discover,
    "bench": _bench,
}


def deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Wraps a command to only bind its arguments, so that parsing is complete before anything runs.

    >>> deferred(print)("hello", "world", sep=", ")()
    hello, world
    """

    @functools.wraps(command)
    def bind(*arguments: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *arguments, **options)

    return bind


def options(command: Callable[..., None]) -> list[str]:
    """Returns the options of a command as written on the command line.

    >>> options(COMMANDS["evaluate"])
    ['--family', '--steps', '--tasks', '--seed']
    """
    parameters = inspect.signature(command).parameters.values()
    return [f"--{p.name}" for p in parameters if p.kind is not p.POSITIONAL_ONLY]
