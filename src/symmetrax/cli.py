"""The command line's entry point: every outcome but success is one line on standard error.

It imports what it runs inside `main`, so that an interrupt during the start is answered like any other.
"""

import contextlib
import io
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from symmetrax._optional import STUDIES, needing

INTERRUPTED = 128 + 2  # what shells say of a program that SIGINT ended
CLOSED = 128 + 13  # and of one whose reader has gone away


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `symmetrax`.

    Exit code 2 for bad input and for files that cannot be used, 130 for an interrupt, 1 for a failed claim.
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    warnings.formatwarning = _note
    _prepare_jax()
    try:
        with _interrupts_end(given), needing("The command line"):
            _run(given)
    except KeyboardInterrupt:
        _stop(_stopped(given), INTERRUPTED)
    except BrokenPipeError:
        # Nobody reads any more; without this the interpreter would complain when it flushes.
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
    if given == ["--version"]:
        print(f"symmetrax {_version()}")
    else:
        _asked(given)()
    sys.stdout.flush()


@contextlib.contextmanager
def _interrupts_end(given: list[str]) -> Iterator[None]:
    """Let an interrupt end the process at once.

    As an exception it would get lost where it is raised in a callback of the garbage collector, and become
    another one while an extension is imported. All files are written so that a kill leaves them whole.
    """

    def end(*_: object) -> None:
        with contextlib.suppress(Exception):  # they may be in use
            sys.stdout.flush()
        terminal = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a progress bar has hidden the cursor
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
    """The command that the arguments ask for. Raises ValueError, in one line, if there is none."""
    import tyro

    from symmetrax._commands import COMMANDS, deferred
    from symmetrax.experiments._registry import choose

    if arguments and not arguments[0].startswith("-"):
        choose("command", arguments[0], COMMANDS)
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(deferred(command))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return app.cli(
                prog="symmetrax",
                description="Symmetries, teleportation and learned optimizers. "
                "`symmetrax --version` tells the version.",
                args=arguments,
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise  # --help
        raise ValueError(_in_one_line(complaint.getvalue(), arguments)) from None


def _in_one_line(box: str, arguments: list[str]) -> str:
    """tyro's boxed message in one line: its first paragraph, a near match, and where to find help.

    >>> print(_in_one_line("╭─ Title ─╮\\n│ Unrecognized options: --sed │\\n╰─╯", ["run", "--sed"]))
    Unrecognized options: --sed. Did you mean '--seed'? For help: symmetrax run --help
    """
    from symmetrax._commands import COMMANDS, options
    from symmetrax._text import near_match

    title, *lines = box.splitlines() or [""]  # the frame is of spaces where there is no Unicode
    inside = [line.strip("│|╰╯ ").replace("─", "-") for line in lines]
    paragraphs = "\n".join("" if not line.strip("-") else line for line in inside).strip().split("\n\n")
    text = " ".join((paragraphs[0] or title).split()).replace(" (required)", "").rstrip(".")
    known = COMMANDS.get(arguments[0]) if arguments else None
    hint = ""
    if known is not None and text.startswith("Unrecognized"):
        unknown = next((word for word in text.split() if word.startswith("-")), "")
        hint = near_match(unknown.split("=")[0].rstrip(","), options(known))
    command = f"symmetrax {arguments[0]}" if known is not None else "symmetrax"
    return f"{text}.{hint} For help: {command} --help"


def _about_files(error: OSError) -> str:
    where = f" {error.filename}" if error.filename is not None else ""
    return f"Cannot use{where}: {error.strerror or error}. Name a place that can be read and written."


def _note(message: Warning | str, *_: object, **__: object) -> str:
    """A warning in one line, for people who did not write the code that it comes from."""
    return f"symmetrax: note: {' '.join(str(message).split())}\n"


def _stop(message: str, code: int = 2) -> None:
    print(f"symmetrax: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None


def _version() -> str:
    from importlib.metadata import version

    return version("symmetrax")


def _prepare_jax() -> None:
    """Settings that must stand before JAX is imported: a compilation cache that keeps every program, and one
    host device per core, over which the seeds of an experiment are spread. What the user has set stays."""
    with contextlib.suppress(OSError, RuntimeError):  # without a place for it programs are compiled anew
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
