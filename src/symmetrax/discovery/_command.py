"""`symmetrax discover`: runs a search on the model returned by a user's function."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import Any

import jax

from symmetrax._files import check_writable, write_atomic
from symmetrax._text import near_match
from symmetrax._theirs import blamed, named
from symmetrax.discovery._find import find_symmetries
from symmetrax.discovery._plan import discovery_cost
from symmetrax.discovery._scope import GROUPS

#: Path that stands for standard output.
STANDARD_OUTPUT = Path("-")

#: Maximum number of random transformations per certificate; the points of all of them stay in memory.
MOST_TRIALS = 1000


def discover_from(
    function: str,
    groups: Sequence[str],
    *,
    heads: Sequence[int],
    budget: int | None,
    trials: int,
    method: str,
    seconds: float | None,
    memory: float | None,
    seed: int,
    double: bool,
    json: Path | None,
) -> None:
    """Prints the predicted cost, the result and the specs as code; writes JSON if a file is given.

    If the file is "-", the JSON goes to standard output and everything else to standard error.

    >>> options = {"heads": [], "budget": None, "trials": 3, "method": "auto"}
    >>> options |= {"seconds": None, "memory": None, "seed": 0, "double": False, "json": None}
    >>> discover_from("my.models:small", ["Permutations"], **options)
    Traceback (most recent call last):
    ValueError: There is no group 'Permutations' to look for. Did you mean 'Permutation'? There are: ...
    """
    by_name = {group.__name__: group for group in GROUPS}
    for name in groups:
        if name not in by_name:
            raise ValueError(
                f"There is no group {name!r} to look for.{near_match(name, by_name)} There are: "
                f"{', '.join(by_name)}."
            )
    if not 1 <= trials <= MOST_TRIALS:
        raise ValueError(f"The number of trials is from 1 to {MOST_TRIALS}, got {trials}.")
    as_it_is = contextlib.nullcontext()
    elsewhere = contextlib.redirect_stdout(sys.stderr) if json == STANDARD_OUTPUT else as_it_is
    # Before the search, which may take minutes.
    if json is not None and json != STANDARD_OUTPUT:
        _check_target(json)
    chosen = tuple(by_name[name] for name in groups) or GROUPS
    with elsewhere, jax.enable_x64(True) if double else as_it_is, blamed(function):
        loss, params, batch = _model(function)
        if double:
            params = jax.tree.map(_in_double, params)
        asked = {"groups": chosen, "heads": heads or None, "trials": trials, "method": method}
        cost = discovery_cost(params, **asked)
        print(f"Evaluations of the loss: {cost}.", flush=True)
        key = jax.random.key(seed)
        limits = {"budget": budget, "seconds": seconds, "memory": memory and memory * 1e9}
        found = find_symmetries(loss, params, key, batch=batch, progress=_tell, **limits, **asked)
        print(f"\n{found}\n")
        if found.found:
            print(found.text)
    if json is not None:
        text = dumps(found.to_json(), indent=2) + "\n"
        if json == STANDARD_OUTPUT:
            sys.stdout.write(text)
        else:
            write_atomic(json, text)


def _tell(line: str) -> None:
    """Shows progress, if somebody is there to see it."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _check_target(json: Path) -> None:
    """Raises ValueError, before any computation, if the JSON cannot be written there."""
    try:
        target = check_writable(json)
    except ValueError as error:
        raise ValueError(f"{error} Give a file, or - for standard output.") from error
    if not target.parent.is_dir():
        raise ValueError(f"The folder of {json} does not exist.")


def _in_double(leaf: Any) -> Any:
    return leaf.astype("float64") if getattr(leaf, "dtype", None) == "float32" else leaf


def _model(name: str) -> tuple[Callable, Any, Any]:
    """Calls the function, which returns a loss, parameters and optionally a batch, else raises ValueError."""
    make = named(name, "function")
    if not callable(make):
        module, _, attribute = name.partition(":")
        raise ValueError(f"{module} has no function {attribute!r}: it is of type {type(make).__name__}.")
    made = make()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]):
        raise ValueError(
            f"{name} must return (loss, params) or (loss, params, batch), with a loss that can be "
            f"called; it returned {type(made).__name__}."
        )
    return made[0], made[1], made[2] if len(made) == 3 else None
