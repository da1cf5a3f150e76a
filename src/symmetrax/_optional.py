"""Packages that the core does without, and what to say where one of them is missing."""

import contextlib
from collections.abc import Iterator

#: What the extra `studies` installs, by the names that are imported.
STUDIES = ("matplotlib", "rich", "sklearn", "tyro")


@contextlib.contextmanager
def needing(what: str) -> Iterator[None]:
    """Say how to install a package of the extra `studies` that `what` imports here, if it is missing.

    >>> with needing("The example"):
    ...     raise ModuleNotFoundError("No module named 'rich'", name="rich")
    Traceback (most recent call last):
    ModuleNotFoundError: The example needs rich: pip install "symmetrax[studies]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in STUDIES:
            raise
        message = f'{what} needs {package}: pip install "symmetrax[studies]"'
        raise ModuleNotFoundError(message, name=package) from None
