"""User code that a command names as MODULE:NAME: importing it, and attributing its errors."""

import contextlib
import importlib
import os
import pathlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from typing import Any

from symmetrax._text import near_match

_OURS = str(pathlib.Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def named(name: str, what: str) -> Any:
    """Imports the object that a user names as MODULE:NAME; `what` describes it in errors.

    The working directory is searched too. Raises ValueError if there is no such object, or if its module
    cannot be imported.

    >>> named("json:dumps", "function")([1])
    '[1]'
    >>> named("json:dump_", "function")
    Traceback (most recent call last):
    ValueError: json has no function 'dump_'. Did you mean 'dump'?
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"Name a {what} as MODULE:{what.upper()}, such as my.models:small; got {name!r}.")
    if module_name.startswith(".") or "/" in module_name or module_name.endswith(".py"):
        parts = pathlib.PurePath(module_name.removesuffix(".py")).parts
        dotted = ".".join(part for part in parts if part.strip("./")).strip(".")
        raise ValueError(
            f"Name a {what} by its module, as in an import, not by a file or from within a package: got "
            f"{name!r}, expected one such as '{dotted or 'my.models'}:{attribute}'."
        )
    # An installed script has its own folder on the path, unlike `python -m`, which has the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # Not pkgutil.resolve_name: its AttributeError may come from the module as well as from the name.
    with blamed(f"The module {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # caused by an import within the module itself
            near = near_match(module_name, [path.stem for path in pathlib.Path().glob("*.py")])
            raise ValueError(f"There is no module {module_name!r}: {error}.{near}") from None
        found = getattr(module, attribute, None)
    if found is None:
        raise ValueError(f"{module_name} has no {what} {attribute!r}.{near_match(attribute, dir(module))}")
    return found


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Converts an exception to a one-line ValueError that names it and the last place in user code.

    The place is included if user code raised the exception or called the code that did. Errors that this
    library raises for invalid input are left unchanged.

    >>> with blamed("The model"):
    ...     {}["width"]
    Traceback (most recent call last):
    ValueError: The model raised KeyError: 'width' (...
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # a script without a main guard may end with sys.exit()
        place = _place(error)
        if place is None and isinstance(error, ValueError | OSError):
            raise
        said = str(error).strip().splitlines()
        kind = type(error).__name__ + (f": {said[0]}" if said else "")
        frames = traceback.extract_tb(error.__traceback__)
        place = place or f"{frames[-1].filename}, line {frames[-1].lineno}"
        raise ValueError(f"{what} raised {kind} ({place}).") from error


def _place(error: BaseException) -> str | None:
    """The last place in code that belongs neither to this library nor to any installed one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    places = [
        f"{frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", _OURS, *_LIBRARIES))
    ]
    return places[-1] if places else None
