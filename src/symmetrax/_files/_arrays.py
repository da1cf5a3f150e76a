"""Files of arrays with a JSON card and a checksum, in the format `.safetensors`."""

import contextlib
import hashlib
import json
import pathlib
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from symmetrax._files._layout import Layout, is_key
from symmetrax._files._paths import kind_of
from symmetrax._files._writing import write_atomic

#: Limits on what is parsed before anything is known about a file. (safetensors' own is 100 MB.)
LONGEST_HEADER = 16_000_000
DEEPEST_CARD = 50

# The dtypes of arrays that files may hold, by their names in the format.
_DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(jnp.bfloat16),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "C64": np.dtype("complex64"),
}


def save_arrays(path: str | pathlib.Path, arrays: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes arrays, including typed keys, and a JSON card as one `.safetensors` file with a checksum.

    Raises ValueError, and writes nothing, for a card that is not JSON, too long or too deep, for dtypes that
    the format lacks, and for paths that `check_writable` rejects.

    >>> save_arrays("it.safetensors", {"w": np.ones(2, "complex128")}, {})
    Traceback (most recent call last):
    ValueError: Cannot write it.safetensors: the array 'w' has dtype complex128, which the format lacks. ...
    """
    implementations = {
        name: str(jax.random.key_impl(array)) for name, array in arrays.items() if is_key(array)
    }
    # Not np.ascontiguousarray, which adds an axis to a number of shape ().
    plain = {name: np.asarray(_data(array), order="C") for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype not in _DTYPES.values():
            raise ValueError(
                f"Cannot write {path}: the array {name!r} has dtype {array.dtype}, which the format lacks. "
                f"Convert it to one of {', '.join(dtype.name for dtype in _DTYPES.values())}."
            )
    text = json.dumps(check_card(card, f"Cannot write {path}: it"), sort_keys=True)
    metadata = {"card": text, "data": _data_digest(plain)}
    if implementations:
        metadata["keys"] = json.dumps(implementations, sort_keys=True)
    stored = {name: (array.dtype, array.shape) for name, array in plain.items()}
    metadata["sha256"] = _digest(metadata, stored)
    content = safetensors.numpy.save(plain, metadata)
    if int.from_bytes(content[:8], "little") > LONGEST_HEADER:
        raise ValueError(
            f"Cannot write {path}: its card and the names of its arrays have more than {LONGEST_HEADER} "
            "bytes. Shorten the card."
        )
    write_atomic(path, content)


def check_card(card: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the card as it will be read; ValueError, naming `where`, if it is not JSON or too deep.

    >>> check_card({"sizes": (2, 3)}, "it")
    {'sizes': [2, 3]}
    """
    try:
        read = json.loads(json.dumps(card))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} has a card that is not JSON: {error}.") from error
    if _depth(read) > DEEPEST_CARD:
        raise ValueError(f"{where} has a card that is nested deeper than {DEEPEST_CARD} levels.")
    return read


class ArrayFile(NamedTuple):
    """An open file of arrays with a verified header; the arrays are not read yet.

    >>> ArrayFile._fields
    ('path', 'card', 'layout', 'file', 'implementations', 'digest')
    """

    path: pathlib.Path
    card: Any
    layout: Layout
    file: Any
    implementations: dict[str, str]
    digest: str

    def read(self) -> dict[str, Any]:
        """Returns the arrays by name. Raises ValueError if they differ from those that were written.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_arrays(folder + "/it", {"w": np.arange(2)}, {})
        ...     with open_arrays(folder + "/it", "example") as file:
        ...         print(file.layout["w"].shape, file.read())
        (2,) {'w': array([0, 1])}
        """
        arrays = {name: self.file.get_tensor(name) for name in self.layout}
        if _data_digest(arrays) != self.digest:
            raise ValueError(
                f"{self.path} is damaged: its arrays are not those that were written (checksum)."
            )
        for name, implementation in self.implementations.items():
            arrays[name] = jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=implementation)
        return arrays


@contextlib.contextmanager
def open_arrays(path: str | pathlib.Path, what: str) -> Iterator[ArrayFile]:
    """Opens a file from `save_arrays`. Raises ValueError, saying `what` was expected, for anything else.

    Only the header is read, up to a maximum length, so that you can inspect card and layout first.

    >>> with open_arrays("/dev/null", "checkpoint"):
    ...     pass
    Traceback (most recent call last):
    ValueError: /dev/null is a device. Expected a checkpoint.
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as opened:
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would block
                raise ValueError(f"{path} is {kind_of(found)}. Expected a {what}.")
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
            if LONGEST_HEADER < length <= found.st_size:
                raise ValueError(
                    f"{path} is not a whole safetensors file: its header has {length} bytes, and at most "
                    f"{LONGEST_HEADER} are read. Expected a {what}."
                )
            # It checks the claims of the header against each other and against the size of the file.
            file = opened.enter_context(safetensors.safe_open(path, framework="numpy"))
        except FileNotFoundError:
            raise ValueError(f"There is no {what} at {path}.") from None
        except OSError as error:
            raise ValueError(f"Cannot read {path}: {error.strerror}. Expected a {what}.") from error
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path} is not a whole safetensors file: {error}. Expected a {what}."
            ) from error
        yield _checked(path, file, what)


def load_arrays(path: str | pathlib.Path, what: str) -> tuple[dict[str, Any], Any]:
    """Returns the arrays and the card of a file from `save_arrays`. Raises ValueError for anything else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(folder + "/it", {"w": np.arange(2)}, {"kind": "example"})
    ...     load_arrays(folder + "/it", "example")
    ({'w': array([0, 1])}, {'kind': 'example'})
    """
    with open_arrays(path, what) as file:
        return file.read(), file.card


def _checked(path: pathlib.Path, file: Any, what: str) -> ArrayFile:
    """Returns an open file with its card and layout. Raises ValueError if they are not as they were written.

    The card is parsed only after the checksum has shown that this library wrote it.
    """
    metadata = file.metadata() or {}
    if "card" not in metadata:
        raise ValueError(f"{path} has no card in its metadata, so it is not a {what}.")
    if "sha256" not in metadata:
        raise ValueError(
            f"{path} has no checksum, so it is not a {what} that this version of symmetrax wrote: make it "
            "anew."
        )
    stored = {}
    for name in file.keys():  # noqa: SIM118 (the file cannot be iterated)
        part = file.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise ValueError(
                f"{path} is not a whole safetensors file that symmetrax wrote: the array {name!r} has dtype "
                f"{part.get_dtype()}. Expected a {what}."
            )
        stored[name] = _DTYPES[part.get_dtype()], tuple(part.get_shape())
    if metadata.pop("sha256") != _digest(metadata, stored):
        raise ValueError(f"{path} is damaged: its header is not the one that was written (checksum).")
    try:
        card = json.loads(metadata["card"])
        implementations = json.loads(metadata.get("keys", "{}"))
        layout = {
            name: _struct(dtype, shape, implementations.get(name)) for name, (dtype, shape) in stored.items()
        }
        if not implementations.keys() <= layout.keys():
            raise ValueError("it names keys that are not there")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"The card of {path} is not JSON: {error}. Expected a {what}.") from error
    check_card(card, str(path))
    return ArrayFile(path, card, layout, file, implementations, metadata.get("data", ""))


def _struct(dtype: np.dtype, shape: tuple[int, ...], implementation: str | None) -> jax.ShapeDtypeStruct:
    struct = jax.ShapeDtypeStruct(shape, dtype)
    if implementation is None:
        return struct
    return jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=implementation), struct)


def _digest(metadata: dict[str, str], layout: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> str:
    """The checksum of everything in a header but itself; `metadata` includes the checksum of the arrays."""
    entries = sorted((name, dtype.name, *shape) for name, (dtype, shape) in layout.items())
    return hashlib.sha256(json.dumps([metadata, entries], sort_keys=True).encode()).hexdigest()


def _data_digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _depth(value: Any) -> int:
    """The nesting depth of lists and objects, found without recursion, which a hostile card could exhaust."""
    depth, level = 0, [value]
    while level:
        inner = (x.values() if isinstance(x, dict) else x if isinstance(x, list) else () for x in level)
        depth, level = depth + 1, [item for items in inner for item in items]
    return depth


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
