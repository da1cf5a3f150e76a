"""Digests of definitions: whether the arm, family or function of a run is the one that is asked for now."""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def digest(value: Any) -> str:
    """Eight hexadecimal digits that change with what `value` is made of, and are equal in every process.

    Records are read by their fields, arrays by their numbers, and functions by their code, defaults and the
    variables that they enclose; what a function finds under a global name is not followed.

    >>> def scaled(by):
    ...     return lambda rate: by * rate
    >>> digest(scaled(2)) == digest(scaled(2)), digest(scaled(2)) == digest(scaled(3))
    (True, False)
    """
    whole = hashlib.sha256()
    for part in _parts(value, ()):
        whole.update(part + b"\0")
    return whole.hexdigest()[:8]


def _parts(value: Any, within: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of a value; `within` are the ids of what it is part of, since values may form a circle."""
    if not isinstance(value, types.FunctionType | type) and hasattr(value, "__wrapped__"):
        value = value.__wrapped__  # a compiled function does what the function does
    yield type(value).__qualname__.encode()
    if id(value) in within:
        return
    inner: list[Any] = []
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value).encode()
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        numbers: Any = value
        if jnp.issubdtype(numbers.dtype, jax.dtypes.prng_key):
            numbers = jax.random.key_data(numbers)
        array = np.asarray(numbers)
        yield f"{array.dtype}{array.shape}".encode() + array.tobytes()
    elif isinstance(value, Mapping):
        inner = [*value.items()]
    elif isinstance(value, list | tuple):
        inner = [*value]
    elif isinstance(value, set | frozenset):
        inner = sorted(value, key=repr)
    elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        yield f"{getattr(value, '__module__', '')}.{value.__name__}".encode()
    elif isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif dataclasses.is_dataclass(value):
        inner = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    elif isinstance(value, types.FunctionType):
        inner = _function(value)
    elif isinstance(value, types.CodeType):
        inner = [value.co_code, value.co_names, value.co_varnames, value.co_consts]
    else:
        inner = [*getattr(value, "__dict__", {}).items()]
    for part in inner:
        yield from _parts(part, (*within, id(value)))


def _function(function: Any) -> list[Any]:
    # Not its qualified name: the same function may be defined in another test or notebook cell.
    own = [function.__name__, function.__code__, function.__defaults__, function.__kwdefaults__]
    if hasattr(function, "__wrapped__"):
        return [*own, function.__wrapped__]  # what decorators enclose beside it may be a cache
    enclosed = []
    for cell in function.__closure__ or ():
        try:
            enclosed.append(cell.cell_contents)
        except ValueError:  # a name that is not assigned yet
            enclosed.append(None)
    return [*own, enclosed]
