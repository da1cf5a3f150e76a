"""The experiments that have a name, and running one in its folder. Imports nothing heavy."""

import importlib
import runpy
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from symmetrax._text import near_match

PRESETS = ("quick", "full")


class Experiment(NamedTuple):
    """The title of an experiment, and the module whose `STUDIES` have its `Study` by name.

    >>> EXPERIMENTS["fig3"].module
    'symmetrax.studies.plane'
    """

    title: str
    module: str


_PLANE = "symmetrax.studies.plane"
_FIGURE = "learned optimizers with and without teleportation on {} (arXiv:2504.15399, figure {})"

EXPERIMENTS = {
    "demo": Experiment(
        "start here: an optimizer that learns to teleport, against Adam and Newton; then one for digits",
        "symmetrax.studies.demo",
    ),
    "digits": Experiment(
        "the coordinate-wise LSTM trains classifiers of digits, against tuned Adam",
        "symmetrax.studies.digits",
    ),
    "baselines": Experiment(
        "coordinate-wise LSTM and RNNProp, with and without the tricks of their training, on digits",
        "symmetrax.studies.baselines",
    ),
    "transformer-league": Experiment(
        "does AdamW gain from teleports to an eigenbasis on transformers? against Muon, SOAP, ARO, controls",
        "symmetrax.studies.transformer_league",
    ),
    "quantization": Experiment(
        "what rounding weights to few bits loses, and how much of it equalization and rotations win back",
        "symmetrax.studies.quantization",
    ),
    "basis-policy": Experiment(
        "can it be learned when to teleport to an eigenbasis, and how far? trained on tiny transformers",
        "symmetrax.studies.basis_policy",
    ),
    "objectives": Experiment(
        "which objective predicts what an optimizer gains from a rescaling of a network",
        "symmetrax.studies.objectives",
    ),
    "fig1": Experiment(
        "Newton's direction taken apart, convex and not (arXiv:2504.15399, figure 1)",
        "symmetrax.studies.fig1",
    ),
    "fig2": Experiment(
        "which way a learned rotation turns, and how fast (arXiv:2504.15399, figure 2)",
        "symmetrax.studies.fig2",
    ),
    "nonconvex": Experiment(
        "is a teleport like Newton's step where the loss is not convex? (arXiv:2504.15399, appendix A)",
        "symmetrax.studies.nonconvex",
    ),
    "online": Experiment(
        "learning to teleport on the fly: algorithm 2 and its controls (arXiv:2504.15399)",
        "symmetrax.studies.online",
    ),
    "transfer": Experiment(
        "learned teleports on networks that were not trained on: other widths, depths and images",
        "symmetrax.studies.transfer",
    ),
    "fig3": Experiment(_FIGURE.format("one ellipse", 3), _PLANE),
    "fig4": Experiment(_FIGURE.format("random ellipses", 4), _PLANE),
    "fig5": Experiment(_FIGURE.format("one Rosenbrock-like function", 5), _PLANE),
    "fig6": Experiment(_FIGURE.format("random Rosenbrock-like functions", 6), _PLANE),
    "plane-league": Experiment(
        "all optimizers on the plane: does a learned teleport beat the same optimizer without?",
        "symmetrax.studies.plane_league",
    ),
    "misalignment": Experiment(
        "optimizers trained on one family of the plane and tested on another: a matrix for each arm",
        "symmetrax.studies.misalignment",
    ),
    "predictors": Experiment(
        "which tasks gain from learned teleports, and can one know beforehand? (arXiv:2504.15399)",
        "symmetrax.studies.predictors",
    ),
    "emergent": Experiment(
        "what trained optimizers do: momentum, schedule, clipping, gate, and which way they turn",
        "symmetrax.studies.emergent",
    ),
    "groups": Experiment(
        "learned teleports in other groups: SO(n) up to n = 20, scalings, permutations",
        "symmetrax.studies.groups",
    ),
    "fig7": Experiment(
        "learned step size, momentum and teleport on a regression (arXiv:2504.15399, figure 7)",
        "symmetrax.studies.fig7",
    ),
    "frequency": Experiment(
        "how often to teleport: learned teleports every 1, 5, 10 steps, on the plane and a regression",
        "symmetrax.studies.frequency",
    ),
    "classification": Experiment(
        "learned step sizes, teleports and momentum on classifiers of digits and MNIST, with controls",
        "symmetrax.studies.classification",
    ),
    "momentum-correlation": Experiment(
        "does learned momentum go with the gain in gradient norm of a teleport?",
        "symmetrax.studies.momentum_correlation",
    ),
    "teleport-plane": Experiment(
        "gradient descent with teleports on Booth's and Rosenbrock's functions (arXiv:2205.10637)",
        "symmetrax.studies.teleport_plane",
    ),
    "teleport-regression": Experiment(
        "one teleport while a small network learns a regression (arXiv:2205.10637)",
        "symmetrax.studies.teleport_regression",
    ),
    "teleport-optimizers": Experiment(
        "teleports inside six optimizers, against a reset of their state (arXiv:2305.13404)",
        "symmetrax.studies.teleport_optimizers",
    ),
    "teleport-generalization": Experiment(
        "teleports to other sharpness and curvature, and the validation loss (arXiv:2305.13404)",
        "symmetrax.studies.teleport_generalization",
    ),
    "balancing": Experiment(
        "balanced networks: how many learning rates train a badly scaled classifier",
        "symmetrax.studies.balancing",
    ),
    "barrier": Experiment(
        "the loss barrier between trained networks, matched by permutations alone and by all groups",
        "symmetrax.studies.barrier",
    ),
}


def choose(what: str, name: str, names: Any) -> str:
    """`name` if it is one of `names`, else a ValueError that lists them.

    >>> choose("preset", "quik", PRESETS)
    Traceback (most recent call last):
    ValueError: Unknown preset 'quik'; choose one of quick, full. Did you mean 'quick'?
    """
    if name in names:
        return name
    raise ValueError(f"Unknown {what} {name!r}; choose one of {', '.join(names)}.{near_match(name, names)}")


def checked_seed(seed: int) -> int:
    """`seed` if it is one of the 2^32 that give different random numbers, else a ValueError.

    >>> checked_seed(-1)
    Traceback (most recent call last):
    ValueError: A seed is a whole number from 0 to 4294967295, got -1.
    """
    if 0 <= seed < 2**32:
        return seed
    raise ValueError(f"A seed is a whole number from 0 to {2**32 - 1}, got {seed}.")


def run_experiment(
    name: Any, preset: str = "full", out: str | Path | None = None, seed: int = 0, *, quiet: bool = False
) -> Path:
    """Run a study, or continue it, in its folder (by default `runs/NAME-PRESET-SEED`).

    `name` is one of `EXPERIMENTS`, a `Study`, or the path of a Python file that defines one (see `study_of`).
    A complete run is not repeated; its `report.html` is written again if it is missing. Raises ValueError for
    unknown names, for a folder that holds anything but a run of these settings, and while another process
    runs in it.

    >>> run_experiment("fig0")
    Traceback (most recent call last):
    ValueError: Unknown experiment 'fig0'; choose one of demo, digits, ... Did you mean 'fig7'?
    """
    choose("preset", preset, PRESETS)
    checked_seed(seed)
    study, source = _study(name)
    study = study.preset(preset, seed)
    from symmetrax.studies.core._console import Reporter
    from symmetrax.studies.core._folder import RunFolder

    # Imported before the run: a library that is missing is reported now, not after hours of work.
    from symmetrax.studies.core._report import write_report
    from symmetrax.studies.core._run_files import REPORT
    from symmetrax.studies.core._runner import run_study, show_study

    path = Path("runs", f"{study.name}-{preset}-{seed}") if out is None else Path(out)
    fresh = not path.exists()
    about = {"title": study.title} | ({"source": source} if source else {})
    folder = RunFolder(path, study.name, preset, study.identity(), about)
    reporter = Reporter(quiet=quiet)
    results = folder.finished()
    if results is None:
        began = time.perf_counter()
        with folder.alone():
            try:
                results = run_study(study, folder, reporter)
            except (ValueError, OSError):
                if fresh:
                    folder.withdraw()
                raise
            seconds = time.perf_counter() - began
            folder.results({"experiment": study.name, "preset": preset, "seconds": seconds, **results})
            folder.drop_checkpoints()
        reporter.note(f"done in {seconds:.0f} s")
        write_report(path)
        show_study(study, results, reporter)
    else:
        try:
            show_study(study, results, reporter)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, StopIteration) as error:
            raise ValueError(
                f"{path}/results.json does not hold the results of this experiment ({error!r}): delete it, "
                "and the same command makes it anew."
            ) from error
        reporter.note(f"{path} held this run already; delete it to run again")
        if not (path / REPORT).exists():
            write_report(path)
    reporter.note(f"results, plots and artifacts: {path}")
    reporter.note(f"to look at: {path / REPORT}")
    return path


def _study(name: Any) -> tuple[Any, str | None]:
    """A study, and where it comes from: a name, a file, or nowhere if it is one already."""
    if not isinstance(name, str):
        return name, None
    if name.partition(":")[0].endswith(".py"):
        return study_of(name), name
    module = importlib.import_module(EXPERIMENTS[choose("experiment", name, EXPERIMENTS)].module)
    return module.STUDIES[name], name


def study_of(place: str) -> Any:
    """The `Study` that a Python file defines; with several, write FILE.py:NAME to choose one.

    Raises ValueError if there is no such file, if it fails, or if it defines no study or several.

    >>> study_of("no-such-file.py")
    Traceback (most recent call last):
    ValueError: no-such-file.py: there is no such file. Give the path of a file that defines a Study.
    """
    from symmetrax._theirs import blamed
    from symmetrax.studies.core._study import Study

    file, _, wanted = place.partition(":")
    if not Path(file).is_file():
        raise ValueError(f"{file}: there is no such file. Give the path of a file that defines a Study.")
    sys.path.insert(0, str(Path(file).resolve().parent))  # so that it can import its neighbours
    with blamed(file):
        found = {name: x for name, x in runpy.run_path(file).items() if isinstance(x, Study)}
    if wanted:
        return found[choose(f"study of {file}", wanted, found)]
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise ValueError(f"{file} defines no study: assign a symmetrax.studies.Study to a name in it.")
    raise ValueError(f"{file} defines {', '.join(found)}: choose one, as in {file}:{next(iter(found))}.")
