"""Atomic files, and checksummed files of arrays with a JSON card. No pickles.

This module alone decides which paths may be written, and what may be read.
"""

import contextlib
import datetime
import hashlib
import json
import math
import os
import pathlib
import secrets
import socket
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.core import Tracer
from jaxtyping import PyTree

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Limits on what is parsed before anything is known about a file.
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

#: Names of arrays with their shapes and dtypes, including typed keys.
Layout = dict[str, jax.ShapeDtypeStruct]


def check_writable(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the file that writing to `path` creates or replaces, following links.

    Raises ValueError for an existing path that is not a regular file (a folder, a device, a pipe) or not
    writable, and for a file to which this process prints.
    """
    target = pathlib.Path(os.path.realpath(path))
    try:
        found = os.stat(path)  # not of the target: the path of an open pipe does not resolve to a file
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise ValueError(f"Cannot write {path}: {error.strerror}.") from error
    if found is None:
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir():
            raise ValueError(f"Cannot write {path}: {folder} is {_what(folder.stat())}, not a folder.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"Cannot write {path}: no permission to write in {folder}.")
        return target
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"Cannot write {path}: it is {_what(found)}, and only a regular file is replaced.")
    if any(_is_open_as(descriptor, found) for descriptor in (1, 2)):
        raise ValueError(f"Cannot write {path}: what this process prints goes there already.")
    if not os.access(target, os.W_OK):
        raise ValueError(f"Cannot write {path}: no permission to change it.")
    return target


def write_atomic(path: str | pathlib.Path, content: bytes | str) -> None:
    """Writes a file atomically: a crash at any moment leaves the old file or the new one, never a part.

    Any number of processes may write and read the same path: each writes to a temporary file of its own and
    then renames it. Raises ValueError, before writing anything, for paths that `check_writable` refuses.
    """
    target = check_writable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary, file = _fresh(target)
    try:
        with file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            if fcntl is None:
                file.close()  # Windows does not rename open files
            temporary.replace(target)  # while it is locked, so that no other process deletes it
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some systems do not support this, and the content is safe anyway
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Locks an existing folder for this process alone; the lock is released if the process dies.

    Raises ValueError, naming the holder, if another process holds the lock. Does nothing if the file system
    does not support locks.
    """
    if fcntl is None:
        yield
        return
    path = check_writable(folder / ".lock")
    while True:
        file = path.open("a+b")
        if _lock(file) is False:
            with file:
                raise ValueError(
                    f"{folder} is in use by {_holder(file)}. Wait until it is done, or choose another folder."
                )
        if _is_at(path, file):
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
            path.unlink(missing_ok=True)


def save_arrays(path: str | pathlib.Path, arrays: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes arrays, including typed keys, and a JSON card as one `.safetensors` file with a checksum.

    Raises ValueError, and writes nothing, for a card that is not JSON, too long or too deep, for dtypes that
    the format lacks, and for paths that `check_writable` refuses.
    """
    implementations = {
        name: str(jax.random.key_impl(array)) for name, array in arrays.items() if is_key(array)
    }
    # Not np.ascontiguousarray, which adds an axis to a number of shape ().
    plain = {name: np.asarray(_data(array), order="C") for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype not in _DTYPES.values():
            raise ValueError(
                f"Cannot write {path}: the array {name!r} has dtype {array.dtype}, which the format lacks."
            )
    text = json.dumps(check_card(card, f"Cannot write {path}: it"), sort_keys=True)
    metadata = {"card": text, "data": _data_digest(plain)}
    if implementations:
        metadata["keys"] = json.dumps(implementations, sort_keys=True)
    metadata["sha256"] = _digest(metadata, _stored_layout(plain))
    content = safetensors.numpy.save(plain, metadata)
    if int.from_bytes(content[:8], "little") > LONGEST_HEADER:
        raise ValueError(
            f"Cannot write {path}: its card and the names of its arrays have more than {LONGEST_HEADER} "
            "bytes."
        )
    write_atomic(path, content)


def check_card(card: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the card as it will be read; ValueError, naming `where`, if it is not JSON or too deep."""
    try:
        read = json.loads(json.dumps(card))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} has a card that is not JSON: {error}.") from error
    if _depth(read) > DEEPEST_CARD:
        raise ValueError(f"{where} has a card that is nested deeper than {DEEPEST_CARD} levels.")
    return read


class ArrayFile(NamedTuple):
    """An open file of arrays with a verified header; the arrays are not read yet."""

    path: pathlib.Path
    card: Any
    layout: Layout
    file: BinaryIO
    places: dict[str, tuple[int, np.dtype, tuple[int, ...]]]
    implementations: dict[str, str]
    digest: str

    def read(self) -> dict[str, Any]:
        """Returns the arrays by name. Raises ValueError if they differ from those that were written."""
        digest, arrays = hashlib.sha256(), {}
        for name, (start, dtype, shape) in sorted(self.places.items()):
            self.file.seek(start)
            content = self.file.read(math.prod(shape) * dtype.itemsize)
            digest.update(content)
            arrays[name] = content
        if digest.hexdigest() != self.digest:
            raise ValueError(
                f"{self.path} is damaged: its arrays are not those that were written (checksum)."
            )
        for name, (_, dtype, shape) in self.places.items():
            arrays[name] = np.frombuffer(arrays[name], dtype).reshape(shape)
        for name, implementation in self.implementations.items():
            arrays[name] = jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=implementation)
        return arrays


@contextlib.contextmanager
def open_arrays(path: str | pathlib.Path, what: str) -> Iterator[ArrayFile]:
    """Opens a file from `save_arrays`. Raises ValueError, saying `what` was expected, for anything else.

    Only the header is read, up to a maximum length, so that you can inspect card and layout first.
    """
    path = pathlib.Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would block
            raise ValueError(f"{path} is {_what(found)}. Expected a {what}.")
        file = path.open("rb")
    except FileNotFoundError:
        raise ValueError(f"There is no {what} at {path}.") from None
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}. Expected a {what}.") from error
    with file:
        yield _opened(path, file, what)


def load_arrays(path: str | pathlib.Path, what: str) -> tuple[dict[str, Any], Any]:
    """Returns the arrays and the card of a file from `save_arrays`. Raises ValueError for anything else."""
    with open_arrays(path, what) as file:
        return file.read(), file.card


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """Returns the arrays of a tree by path: `core.cells.0.bias`. Typed keys remain typed."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path)
        if name in named:
            raise ValueError(f"Two arrays have the same name {name!r}: rename a key of their dictionaries.")
        typed = is_key(leaf) or isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
        named[name] = leaf if typed else np.asarray(leaf)
    return named


def layout_of(tree: PyTree) -> Layout:
    """Returns the names, shapes and dtypes of the arrays of a tree."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named_arrays(tree).items()}


def check_layout(found: Layout, expected: Layout, where: str) -> None:
    """Raises ValueError, naming `where`, unless names, shapes and dtypes match exactly."""
    for name, wanted in expected.items():
        if name not in found:
            raise ValueError(f"{where} lacks the array {name!r} of shape {wanted.shape}.")
        for aspect in ("shape", "dtype"):
            a, b = getattr(found[name], aspect), getattr(wanted, aspect)
            if a != b:
                raise ValueError(f"{where} has an array {name!r} that has {aspect} {a}, expected {b}.")
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise ValueError(f"{where} has arrays that do not belong there: {', '.join(map(repr, extra[:5]))}.")


def restore(like: PyTree, arrays: dict[str, Any]) -> PyTree:
    """Returns a tree like `like` with the arrays of these names, whose layout has been checked."""

    def leaf(at, expected):
        found = arrays[_name(at)]
        return found if isinstance(expected, np.ndarray) or is_key(found) else jnp.asarray(found)

    return jax.tree_util.tree_map_with_path(leaf, like)


def is_key(leaf: Any) -> bool:
    """Returns whether `leaf` is an array of typed keys, or the shape of one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_finite_arrays(arrays: dict[str, Any], where: str) -> None:
    """Raises ValueError, naming `where`, if an array has an entry that is infinite or NaN."""
    for name, array in arrays.items():
        if not is_key(array) and jnp.issubdtype(array.dtype, jnp.inexact):
            bad = np.size(array) - int(np.sum(np.isfinite(np.asarray(array))))
            if bad:
                raise ValueError(
                    f"{where} has {bad} entries of {np.size(array)} in {name!r} that are infinite or NaN."
                )


def _opened(path: pathlib.Path, file: BinaryIO, what: str) -> ArrayFile:
    size = os.fstat(file.fileno()).st_size
    broken = f"{path} is not a whole safetensors file"
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"{broken}: it has {size} bytes. Expected a {what}.")
    if length > LONGEST_HEADER:
        raise ValueError(f"{broken}: its header has {length} bytes, at most {LONGEST_HEADER} are read.")
    try:
        header = json.loads(file.read(length).decode())
        metadata = header.pop("__metadata__", {})
        places, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (begin, stop) = tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)) or begin != end:
                raise ValueError(f"the array {name!r} is not where it should be")
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"the array {name!r} has dtype {entry['dtype']}")
            dtype, end = _DTYPES[entry["dtype"]], stop
            if stop - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"the array {name!r} does not have the bytes of its shape")
            places[name] = (8 + length + begin, dtype, shape)
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes and should have {8 + length + end}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{broken}: {error}. Expected a {what}.") from error
    return ArrayFile(path, *_checked(path, metadata, places, file, what))


def _checked(path, metadata, places, file, what) -> tuple:
    """Returns the fields of an `ArrayFile` except its path, from the metadata of a complete header."""
    strings = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    if not strings or "card" not in metadata:
        raise ValueError(f"{path} has no card in its metadata, so it is not a {what}.")
    if "sha256" not in metadata:
        raise ValueError(
            f"{path} has no checksum, so it is not a {what} that this version of symmetrax wrote: make it "
            "anew."
        )
    stored = {name: (dtype, shape) for name, (_, dtype, shape) in places.items()}
    claimed = metadata.pop("sha256")
    if claimed != _digest(metadata, stored):
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
    return card, layout, file, places, implementations, metadata.get("data", "")


def _struct(dtype: np.dtype, shape: tuple[int, ...], implementation: str | None) -> jax.ShapeDtypeStruct:
    struct = jax.ShapeDtypeStruct(shape, dtype)
    if implementation is None:
        return struct
    return jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=implementation), struct)


def _stored_layout(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def _digest(metadata: dict[str, str], layout: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> str:
    """The checksum of everything in a header but itself; `metadata` includes the checksum of the arrays."""
    told = sorted((name, dtype.name, *shape) for name, (dtype, shape) in layout.items())
    return hashlib.sha256(json.dumps([metadata, told], sort_keys=True).encode()).hexdigest()


def _data_digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _depth(value: Any) -> int:
    """The nesting depth of lists and objects, found without recursion."""
    depth, level = 0, [value]
    while level:
        inner = (x.values() if isinstance(x, dict) else x if isinstance(x, list) else () for x in level)
        depth, level = depth + 1, [item for items in inner for item in items]
    return depth


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _what(found: os.stat_result) -> str:
    """The kind of a file, in words."""
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((words for is_kind, words in kinds.items() if is_kind(found.st_mode)), "a file")


def _is_open_as(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found)
    except OSError:  # closed
        return False


def _lock(file: BinaryIO) -> bool | None:
    """Locks an open file until it is closed: False if another process holds it, None without lock support."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: pathlib.Path, file: BinaryIO) -> bool:
    """Returns whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: BinaryIO) -> str:
    """Describes the process that has locked a file, from the file's content."""
    try:
        file.seek(0)
        told = json.loads(file.read(1000))
        return f"process {told['pid']} on {told['host']} since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        return "another process"


def _fresh(target: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    """Creates a temporary file beside the target, locked so that other processes see that it is in use."""
    while True:
        temporary = target.with_name(f"{_stem(target)}{os.getpid()}-{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")
        # Between creation and locking it looked abandoned, and may have been deleted by another process.
        if _lock(file) is not False and _is_at(temporary, file):
            return temporary, file
        file.close()


def _sweep(target: pathlib.Path) -> None:
    """Deletes the temporary files that killed processes left beside the target: those that nobody locks."""
    stem = _stem(target)
    for left in target.parent.iterdir():
        if left.name.startswith(stem) and left.name.endswith(".tmp"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                if _lock(file):
                    left.unlink()


def _stem(target: pathlib.Path) -> str:
    """The prefix of temporary files for the target, truncated because file names have a maximum length."""
    return f".{target.name[:50]}."
