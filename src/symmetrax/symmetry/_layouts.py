"""Storage layouts of layers and the specs they imply: helpers for the ready-made symmetries."""

import string
from collections.abc import Mapping
from typing import Any, Literal

from symmetrax.symmetry._paths import match_paths

Layout = Literal["out in", "in out"]
HeadLayout = Literal["out in", "in out", "heads"]


def matrix_spec(out: str, into: str, layout: HeadLayout) -> str:
    """The spec of a matrix from the entries of its two sides.

    >>> matrix_spec("h", "_", "out in"), matrix_spec("h", "_", "in out")
    ('h _', '_ h')
    """
    return f"{out} {into}" if layout == "out in" else f"{into} {out}"


def stream_spec(axes: int, entry: str, side: Literal["write", "read"], layout: HeadLayout) -> str:
    """The spec of an array whose output ("write") or input ("read") side is the stream.

    >>> stream_spec(2, "stream", "write", "out in"), stream_spec(3, "stream*", "read", "out in")
    ('stream _', '_ _ stream*')
    """
    first = (layout == "out in") == (side == "write")
    blanks = ["_"] * (axes - 1)
    return " ".join([entry, *blanks] if first else [*blanks, entry])


def kernel_spec(axes: int, out: str, into: str, layout: Layout) -> str:
    """The spec of a matrix or a convolution from the entries of its outputs and inputs.

    >>> kernel_spec(4, "h", "g*", "out in"), kernel_spec(4, "h", "g*", "in out")
    ('h g* _ _', '_ _ g* h')
    """
    space = ["_"] * (axes - 2)
    return " ".join([out, into, *space] if layout == "out in" else [*space, into, out])


def vector_spec(axes: int, entry: str) -> str:
    """The spec of a bias; convolution biases in equinox have trailing axes of length 1.

    >>> vector_spec(3, "h")
    'h _ _'
    """
    return " ".join([entry, *["_"] * (axes - 1)])


def head_size(arrays: Mapping[str, Any], path: str, heads: int, layout: HeadLayout) -> int:
    """The number of entries per head. Raises ValueError if the heads do not divide the outputs.

    >>> import jax.numpy as jnp
    >>> head_size({"query": jnp.ones((12, 7))}, "query", heads=3, layout="out in")
    4
    """
    shape = shape_of(arrays, path)
    if layout == "heads":
        return shape[-1]
    length = shape[0 if layout == "out in" else -1]
    if length % heads:
        raise ValueError(
            f"{path} has {length} outputs, which is not a multiple of {heads} heads: pass another number of "
            f"heads, or another layout than {layout!r}."
        )
    return length // heads


def side_of(shape: tuple[int, ...], side: Literal["out", "in"], layout: Layout) -> int:
    """The number of outputs or inputs of a kernel of this shape.

    >>> side_of((16, 8, 3, 3), "out", "out in"), side_of((3, 3, 8, 16), "in", "in out")
    (16, 8)
    """
    if layout == "out in":
        return shape[0] if side == "out" else shape[1]
    return shape[-1] if side == "out" else shape[-2]


def shape_of(arrays: Mapping[str, Any], path: str) -> tuple[int, ...]:
    """The shape of the first array that matches.

    >>> import jax.numpy as jnp
    >>> shape_of({"blocks.0.up": jnp.ones((4, 3))}, "blocks.{i}.up")
    (4, 3)
    """
    return arrays[next(iter(match_paths(path, arrays)))].shape


def with_axes(arrays: Mapping[str, Any], axes: int) -> tuple[str, ...]:
    """The paths of all arrays with this number of axes, in tree order.

    >>> import jax.numpy as jnp
    >>> with_axes({"b": jnp.ones(4), "w": jnp.ones((4, 3))}, 2)
    ('w',)
    """
    return tuple(path for path, array in arrays.items() if len(array.shape) == axes)


def path_fields(pattern: str) -> str:
    """The `{i}` of a pattern, to append to the name of a space.

    >>> path_fields("blocks.{i}.mlp.up")
    '{i}'
    """
    return "".join(
        f"{{{field}}}" for _, field, _, _ in string.Formatter().parse(pattern) if field is not None
    )
