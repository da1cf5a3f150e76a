"""Everything in a run folder that a report shows, read from its files alone."""

import dataclasses
import json
import pathlib
import shlex
import zipfile
from typing import Any

import numpy as np

from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._folder import read_results

REPORT = "report.html"
#: What `np.load` and reading one of its members raise for a file that is damaged or of another format.
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder.

    `results` is None for a run that was stopped. `problems` lists in plain words what is missing or cannot be
    read.

    >>> RunFiles(pathlib.Path("runs/fig3-full-0"), {"experiment": "fig3", "preset": "full"}).command()
    'symmetrax run fig3'
    """

    folder: pathlib.Path
    config: dict[str, Any]
    results: dict[str, Any] | None = None
    trajectories: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    pictures: tuple[pathlib.Path, ...] = ()
    files: tuple[pathlib.Path, ...] = ()
    checkpoints: tuple[pathlib.Path, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return str(self.config["experiment"])

    @property
    def is_registered(self) -> bool:
        """Whether the experiment is one of this library's."""
        return self.name in EXPERIMENTS

    @property
    def is_anonymous(self) -> bool:
        """Whether the folder does not say which file defines its study."""
        return not self.is_registered and "source" not in self.config

    @property
    def preset(self) -> str:
        """The preset of the settings, "quick" or "full"."""
        return str(self.config.get("preset", "full"))

    @property
    def seed(self) -> int:
        """The seed of all random draws, which studies made of several parts keep in the settings of each."""
        return _find_seed(self.config.get("settings")) or 0

    @property
    def title(self) -> str:
        """What the experiment asks, in one sentence; empty if the folder doesn't say."""
        title = str(self.config.get("title", EXPERIMENTS[self.name].title if self.is_registered else ""))
        return title[:1].upper() + title[1:]

    def command(self) -> str:
        """The command that makes this folder, or continues it if it isn't complete.

        A study that was run from Python has no file that the folder could record: `FILE.py`.
        """
        source = self.config.get("source", self.name if self.is_registered else "FILE.py")
        words = ["symmetrax", "run", str(source)]
        if self.preset != "full":
            words += ["--preset", self.preset]
        if self.folder.parts[-2:] != ("runs", f"{self.name}-{self.preset}-{self.seed}"):
            words += ["--out", str(self.folder)]
        if self.seed:
            words += ["--seed", str(self.seed)]
        return shlex.join(words)


def read_run(folder: str | pathlib.Path) -> RunFiles:
    """Read a run folder, complete or not.

    Raises ValueError if there is no readable `config.json`, or if `results.json` is damaged. Whatever else
    can't be read becomes one of `problems`: a report is worth having without its trajectories.

    >>> read_run("no-such-run")
    Traceback (most recent call last):
    ValueError: no-such-run is not a run folder: expected config.json there, as `symmetrax run` writes it.
    """
    folder = pathlib.Path(folder)
    config, results = _read_config(folder), read_results(folder)
    names = sorted(path for path in folder.rglob("*") if path.is_file() and _is_shown(path, folder))
    checkpoints = tuple(path for path in names if path.relative_to(folder).parts[0] == "checkpoints")
    problems = []
    if results is None:
        problems.append("This run is not complete: there is no results.json.")
    trajectories = {}
    for path in names:
        if path.parent == folder and path.name.startswith("trajectories") and path.suffix == ".npz":
            try:
                # Opened here: `np.load` leaves a damaged file open.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    trajectories[path.stem] = _checked(dict(arrays))
            except _UNREADABLE as error:
                problems.append(f"{path.name} could not be read: {error}")
    return RunFiles(
        folder,
        config,
        results,
        trajectories,
        pictures=tuple(path for path in names if path.suffix == ".png" and path not in checkpoints),
        files=tuple(path for path in names if path not in checkpoints),
        checkpoints=checkpoints,
        problems=tuple(problems),
    )


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a run folder: expected config.json there, as `symmetrax run` writes it."
        )
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the config of a run ({error}); run the experiment anew.") from error
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), str):
        raise ValueError(f"{path} is not the config of a run: expected an object with 'experiment'.")
    return config


def _checked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, if they are those of `trajectories` in `_trajectories.py`, else a ValueError."""
    dimensions = {"points": 3, "arrows": 4, "grid.x": 2, "grid.y": 2, "grid.loss": 3}
    for name in [name.removesuffix(".points") for name in arrays if name.endswith(".points")]:
        for part, expected in dimensions.items():
            found = arrays.get(f"{name}.{part}")
            if found is None or found.ndim != expected or found.dtype.kind != "f":
                raise ValueError(f"{name}.{part} is not a float array of {expected} dimensions")
            if part in ("grid.x", "grid.y") and not np.all(np.isfinite(found)):
                raise ValueError(f"{name}.{part} is not finite")
    return arrays


def _is_shown(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Locks and unfinished writes start with a dot; the page doesn't link to itself."""
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") for part in parts) and parts != (REPORT,)


def _find_seed(settings: Any) -> int | None:
    if not isinstance(settings, dict):
        return None
    if isinstance(settings.get("seed"), int):
        return settings["seed"]
    return next((seed for part in settings.values() if (seed := _find_seed(part)) is not None), None)
