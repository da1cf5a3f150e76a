"""Which paths may be written."""

import os
import pathlib
import stat

_KINDS = {"d": "a folder", "c": "a device", "b": "a device", "p": "a pipe", "s": "a socket"}


def check_writable(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the file that writing to `path` creates or replaces, following links.

    Raises ValueError for an existing path that is not a regular file (a folder, a device, a pipe) or not
    writable, and for a file to which this process prints.

    >>> check_writable("/dev/null")
    Traceback (most recent call last):
    ValueError: Cannot write /dev/null: it is a device, and only a regular file is replaced. ...
    """
    target = pathlib.Path(os.path.realpath(path))
    try:
        # The status of `path`, not of `target`: the path of an open pipe does not resolve to a file.
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise ValueError(f"Cannot write {path}: {error.strerror}. Choose another path.") from error
    if found is None:
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir():
            raise ValueError(
                f"Cannot write {path}: {folder} is {kind_of(folder.stat())}, not a folder. Choose another "
                "path."
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"Cannot write {path}: no permission to write in {folder}. Choose a folder of your own."
            )
        return target
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(
            f"Cannot write {path}: it is {kind_of(found)}, and only a regular file is replaced. "
            "Choose another path."
        )
    # The output that follows would go to the replaced file, which has no name any more, and be lost.
    if any(_is_open_as(descriptor, found) for descriptor in (1, 2)):
        raise ValueError(
            f"Cannot write {path}: what this process prints goes there already. Choose another path."
        )
    # A rename needs no permission to write the file that it replaces, so a read-only file would be replaced.
    if not os.access(target, os.W_OK):
        raise ValueError(f"Cannot write {path}: no permission to change it. Choose another path.")
    return target


def kind_of(found: os.stat_result) -> str:
    """Returns the kind of a file in words.

    >>> kind_of(os.stat("/dev/null")), kind_of(os.stat("/"))
    ('a device', 'a folder')
    """
    return _KINDS.get(stat.filemode(found.st_mode)[0], "a file")


def _is_open_as(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found)
    except OSError:  # the descriptor is closed
        return False
