"""Advisory locks on open files, which the system releases when the process dies."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import BinaryIO

from symmetrax._files._paths import check_writable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Whether an open file can be renamed and deleted. Systems without `fcntl` do neither.
RENAMES_OPEN_FILES = fcntl is not None


def lock(file: BinaryIO) -> bool | None:
    """Locks an open file until it is closed: False if another process holds it, None without lock support.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file, open(file.name, "rb") as again:
    ...     lock(file), lock(again)
    (True, False)
    """
    if fcntl is None:
        return None
    try:
        # Not `lockf`: locks of that kind belong to the process, and closing any descriptor of the file, for
        # example in a thread that reads it, would release them.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # network file systems may not support locks
        return None
    return True


def is_at(path: pathlib.Path, file: BinaryIO) -> bool:
    """Returns whether an open file still has this path: another process may have deleted or replaced it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "it")
    ...     with path.open("wb") as file:
    ...         before = is_at(path, file)
    ...         path.unlink()
    ...         before, is_at(path, file)
    (True, False)
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Locks an existing folder for this process alone; the lock is released if the process dies.

    Raises ValueError, naming the holder, if another process holds the lock. Does nothing if the file system
    does not support locks.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place, alone_in(pathlib.Path(place)):
    ...     with alone_in(pathlib.Path(place)):
    ...         pass
    Traceback (most recent call last):
    ValueError: ... is in use by process ... Wait until it is done, or choose another folder.
    """
    if fcntl is None:
        yield
        return
    path = check_writable(folder / ".lock")
    while True:
        file = path.open("a+b")  # does not truncate: the file names the holder
        if lock(file) is False:
            with file:
                raise ValueError(
                    f"{folder} is in use by {_holder(file)}. Wait until it is done, or choose another folder."
                )
        if is_at(path, file):
            break
        file.close()  # the previous holder deleted it between our opening and locking it
    with file:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        file.flush()
        try:
            yield
        finally:
            # Deleted while it is locked: afterwards, it could be the file of the next holder.
            path.unlink(missing_ok=True)


def _holder(file: BinaryIO) -> str:
    """Describes the process that has locked a file, from the file's content."""
    try:
        file.seek(0)
        holder = json.loads(file.read(1000))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        return "another process"
