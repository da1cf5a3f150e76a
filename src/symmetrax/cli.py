"""The command-line entry point: every outcome except success is one line on standard error.

`main` does its own imports, so that an interrupt during startup is handled like any other.
"""

import argparse
import contextlib
import inspect
import io
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from symmetrax._optional import STUDIES, needing

INTERRUPTED = 128 + 2  # the exit code that shells report for a program ended by SIGINT
CLOSED = 128 + 13  # and for a program whose output pipe was closed


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `symmetrax`.

    The exit code is 2 for invalid input and unusable files, 130 for an interrupt, 1 for a failed claim.

    >>> import subprocess
    >>> command = [sys.executable, "-m", "symmetrax.cli", "rum"]
    >>> done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    >>> print(done.returncode, done.stderr)
    2 symmetrax: Unknown command 'rum'; choose one of list, run, ... Did you mean 'run'?
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    warnings.formatwarning = _note
    _prepare_jax()  # before anything imports JAX, which reads the environment once
    try:
        with _interrupts_end(given), needing("The command line"):
            _run(given)
    except KeyboardInterrupt:
        _stop(_stopped(given), INTERRUPTED)
    except BrokenPipeError:
        # Nobody is reading any more; without this, the interpreter would fail when it flushes.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open)
        raise SystemExit(CLOSED) from None
    except ModuleNotFoundError as error:
        if error.name not in STUDIES:
            raise
        _stop(str(error))
    except OSError as error:
        _stop(_about_files(error))
    except ValueError as error:
        _stop(str(error))


def _run(given: list[str]) -> None:
    if given == ["--version"]:  # answered without tyro, which the core does not install
        print(f"symmetrax {_version()}")
    else:
        _asked(given)()
    sys.stdout.flush()


@contextlib.contextmanager
def _interrupts_end(given: list[str]) -> Iterator[None]:
    """Lets an interrupt end the process at once.

    As an exception, it would be lost if raised in a callback of the garbage collector, and replaced by
    another one during the import of an extension. All files are written so that a kill leaves them intact.
    """

    def end(*_: object) -> None:
        with contextlib.suppress(Exception):  # the streams may be in use
            sys.stdout.flush()
        terminal = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # restore the cursor hidden by a progress bar
        os.write(2, f"{terminal}symmetrax: {_stopped(given)}\n".encode(errors="backslashreplace"))
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped(given: list[str]) -> str:
    how = "goes on from here" if given[:1] == ["run"] else "starts anew"
    return f"stopped; the same command {how}: {shlex.join(['symmetrax', *given])}"


def _asked(arguments: list[str]) -> Callable[[], None]:
    """Returns the command that the arguments ask for. Raises a one-line ValueError if there is none."""
    import tyro

    from symmetrax._commands import COMMANDS, deferred
    from symmetrax.studies._registry import choose

    if not arguments or arguments[0].startswith("-"):
        _parser().parse_args(arguments)  # ends here for --help, and for unknown options
        raise ValueError(f"Name a command: one of {', '.join(COMMANDS)}. For help: symmetrax --help")
    name = choose("command", arguments[0], COMMANDS)
    complaint = io.StringIO()
    try:
        # One command at a time: tyro's parser of all commands takes three times as long as the help of all.
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(deferred(COMMANDS[name]), prog=f"symmetrax {name}", args=arguments[1:])
    except SystemExit as stopped:
        if not stopped.code:
            raise  # --help
        raise ValueError(_in_one_line(complaint.getvalue(), name)) from None


def _parser() -> argparse.ArgumentParser:
    """Returns a parser that knows the commands, but none of their arguments."""
    from symmetrax._commands import COMMANDS

    parser = _Parser(
        prog="symmetrax", description="Symmetries of parameters, teleportation, and learned optimizers."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", description="symmetrax COMMAND --help for more"
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=(inspect.getdoc(command) or "").partition("\n")[0])
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that raises ValueError instead of ending the process after two lines."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].upper()}{message[1:]}. For help: symmetrax --help")


def _in_one_line(box: str, name: str) -> str:
    """Reduces tyro's boxed message to one line: its first paragraph, a near match, and where to find help.

    >>> print(_in_one_line("╭─ Title ─╮\\n│ Unrecognized options: --sed │\\n╰─╯", "run"))
    Unrecognized options: --sed. Did you mean '--seed'? For help: symmetrax run --help
    """
    from symmetrax._commands import COMMANDS, options
    from symmetrax._text import near_match

    title, *lines = box.splitlines() or [""]  # without Unicode, the frame consists of spaces
    inside = [line.strip("│|╰╯ ").replace("─", "-") for line in lines]
    paragraphs = "\n".join("" if not line.strip("-") else line for line in inside).strip().split("\n\n")
    text = " ".join((paragraphs[0] or title).split()).replace(" (required)", "").rstrip(".")
    hint = ""
    if text.startswith("Unrecognized"):
        unknown = next((word for word in text.split() if word.startswith("-")), "")
        hint = near_match(unknown.split("=")[0].rstrip(","), options(COMMANDS[name]))
    return f"{text}.{hint} For help: symmetrax {name} --help"


def _about_files(error: OSError) -> str:
    where = f" {error.filename}" if error.filename is not None else ""
    return f"Cannot use{where}: {error.strerror or error}. Name a place that can be read and written."


def _note(message: Warning | str, *_: object, **__: object) -> str:
    """Formats a warning as one line, for readers who did not write the code that raised it."""
    return f"symmetrax: note: {' '.join(str(message).split())}\n"


def _stop(message: str, code: int = 2) -> None:
    print(f"symmetrax: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None


def _version() -> str:
    from importlib.metadata import version

    return version("symmetrax")


def _prepare_jax() -> None:
    """Applies the settings that JAX reads on import; those that the user has set take precedence.

    They are a compilation cache that keeps every program, and one host device per core, over which the seeds
    of an experiment are distributed.
    """
    with contextlib.suppress(OSError, RuntimeError):  # without a cache folder, programs are recompiled
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "symmetrax", "jax")
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        cores = min(os.cpu_count() or 1, 8)
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cores}".strip()


if __name__ == "__main__":
    main()
