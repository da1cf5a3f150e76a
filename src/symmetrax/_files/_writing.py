"""Atomic writing: a file has its old content or its new one at any moment."""

import contextlib
import os
import pathlib
import secrets
import stat
from typing import BinaryIO

from symmetrax._files._locks import RENAMES_OPEN_FILES, is_at, lock
from symmetrax._files._paths import check_writable


def write_atomic(path: str | pathlib.Path, content: bytes | str) -> None:
    """Writes a file atomically: a crash at any moment leaves the old file or the new one, never a part.

    Any number of processes may write and read the same path: each writes to a temporary file of its own and
    then renames it. Raises ValueError, before writing anything, for paths that `check_writable` rejects.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(folder + "/new/it.txt", "hello")
    ...     pathlib.Path(folder, "new/it.txt").read_text(), os.listdir(folder + "/new")
    ('hello', ['it.txt'])
    """
    target = check_writable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary, file = _fresh(target)
    try:
        with file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # Before the rename: a file system may otherwise store the new name first and, after a power
            # failure, have an empty file there.
            os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            if not RENAMES_OPEN_FILES:
                file.close()
            temporary.replace(target)  # while it is locked, so that no other process deletes it
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some systems do not support this, and the content is safe anyway
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _fresh(target: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    """Creates a temporary file beside the target, locked so that other processes see that it is in use.

    `tempfile` would give it the mode 0600, where others expect to read a new file as the umask allows.
    """
    while True:
        temporary = target.with_name(f"{_stem(target)}{os.getpid()}-{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")
        # Between creation and locking it looked abandoned, and may have been deleted by another process.
        if lock(file) is not False and is_at(temporary, file):
            return temporary, file
        file.close()


def _sweep(target: pathlib.Path) -> None:
    """Deletes the temporary files that killed processes left beside the target: those that nobody locks."""
    stem = _stem(target)
    for left in target.parent.iterdir():
        if left.name.startswith(stem) and left.name.endswith(".tmp"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                if lock(file):  # not None: without locks, nobody can tell whether it is in use
                    left.unlink()


def _stem(target: pathlib.Path) -> str:
    """The prefix of temporary files for the target, truncated because file names have a maximum length."""
    return f".{target.name[:50]}."
