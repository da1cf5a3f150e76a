"""Optional dependencies, and the error for a missing one."""

import contextlib
from collections.abc import Iterator

#: The packages installed by the extra `studies`, by import name.
STUDIES = ("jinja2", "matplotlib", "plotly", "rich", "sklearn", "tyro")


@contextlib.contextmanager
def needing(what: str) -> Iterator[None]:
    """Raises with install instructions if a package of the extra `studies` that `what` imports is missing.

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
