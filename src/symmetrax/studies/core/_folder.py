"""Run folders: a config beside its results, resumed by the same command and refused to any other."""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from symmetrax._files import alone_in, write_atomic

_MAKE_ANEW = "delete it, and run the experiment again"
LIBRARIES = ("symmetrax", "jax", "jaxlib", "equinox", "optax", "numpy")


class RunFolder:
    """The folder of one run of an experiment.

    Opening it writes `config.json`: the experiment, its preset and every setting, what `about` adds for
    people, library versions, and the machine. If the folder holds a run of the same settings, that run is
    continued; of others, or if the folder holds anything else, it is left untouched and a ValueError says
    what differs.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folder = RunFolder(place + "/run", "fig3", "quick", {"seeds": 3})
    ...     sorted(path.name for path in folder.path.iterdir())
    ['config.json']
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        experiment: str,
        preset: str,
        settings: dict[str, Any],
        about: dict[str, str] | None = None,
    ):
        self.path = pathlib.Path(path)
        identity = {"experiment": experiment, "preset": preset, "settings": json.loads(json.dumps(settings))}
        #: What its checkpoints are of, beside what `meta_train` sees by itself.
        self.identity = json.dumps(identity, sort_keys=True)
        if self._is_of(identity):
            return
        os.makedirs(os.path.realpath(self.path), exist_ok=True)
        with alone_in(self.path):
            if not self._is_of(identity):  # still: another process may have been faster
                versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
                config = {**identity, **(about or {}), "versions": versions, "machine": machine()}
                write_atomic(self.path / "config.json", as_json(config))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process. Raises ValueError, naming the holder, if another works in it."""
        with alone_in(self.path):
            yield

    def _is_of(self, identity: dict[str, Any]) -> bool:
        """Whether a run of these settings is there. Raises ValueError if anything else is."""
        config = self.path / "config.json"
        if config.exists():
            self._check_same(config, identity)
            return True
        strange = self.path.exists() and (
            not self.path.is_dir() or any(path.name != ".lock" for path in self.path.iterdir())
        )
        if strange:
            raise ValueError(
                f"{self.path} exists and is not a run folder: choose an empty or new one with --out."
            )
        return False

    def _check_same(self, config: pathlib.Path, identity: dict[str, Any]) -> None:
        try:
            found = json.loads(config.read_text())
            different = [name for name in identity if found[name] != identity[name]]
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            raise ValueError(
                f"{config} is not the config of a run ({error}); choose another --out."
            ) from error
        if different:
            name = different[0]
            which = _difference(name, found[name], identity[name])
            raise ValueError(
                f"{self.path} holds a run with other settings: {which}. "
                "Choose another --out, or delete the folder."
            )

    def arrays(self, name: str, arrays: dict[str, np.ndarray]) -> pathlib.Path:
        """Write arrays as `NAME.npz`."""
        path, content = self.path / f"{name}.npz", io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_atomic(path, content.getvalue())
        return path

    def results(self, results: dict[str, Any]) -> pathlib.Path:
        """Write `results.json`, which says that the run is complete."""
        path = self.path / "results.json"
        write_atomic(path, as_json(results))
        return path

    def withdraw(self) -> None:
        """Delete the folder if it holds nothing but its config: a run that was refused leaves nothing."""
        if [path.name for path in self.path.iterdir() if path.name[0] != "."] == ["config.json"]:
            shutil.rmtree(os.path.realpath(self.path))

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of training, which a complete run does not need."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def finished(self) -> dict[str, Any] | None:
        """The results of a complete run, else None. Raises ValueError for what `results` did not write."""
        return read_results(self.path)


def read_results(folder: pathlib.Path) -> dict[str, Any] | None:
    """The results in a run folder, or None if the run is not complete.

    Raises ValueError if `results.json` is damaged.

    >>> read_results(pathlib.Path("no-such-run")) is None
    True
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} has no results that can be read ({error}); {_MAKE_ANEW}.") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} has no results, but {found!r}; {_MAKE_ANEW}.")
    return found


def machine() -> dict[str, Any]:
    """What ran it: processor, cores, system, Python.

    >>> sorted(machine())
    ['cores', 'processor', 'python', 'system']
    """
    processor = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), processor)
    except OSError:
        pass
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def as_json(value: Any) -> str:
    """Indented JSON; infinities and NaNs, which JSON lacks, become the strings "inf", "-inf" and "nan".

    >>> as_json({"loss": float("inf")})
    '{\\n  "loss": "inf"\\n}'
    """

    def plain(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return plain(dataclasses.asdict(value))
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else str(float(value))
        return value.item() if isinstance(value, np.generic) else value

    return json.dumps(plain(value), indent=2, allow_nan=False)


def _difference(name: str, found: Any, wanted: Any) -> str:
    """Where two settings differ; of the digests of definitions, only that they do."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return f"{name} is {found} there, {wanted} here"
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if name in ("arms", "families"):
        here = {key: "is new" if key not in found else "is defined otherwise" for key in wanted}
        return f"of the {name}, " + ", ".join(f"{key!r} {here.get(key, 'is missing here')}" for key in keys)
    return ", ".join(_difference(key, found.get(key), wanted.get(key)) for key in keys)
