"""Ready-made symmetries of attention, head by head."""

from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import PyTree

from symmetrax.groups._diagonal import AbstractGroup, PositiveDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation
from symmetrax.symmetry._layouts import HeadLayout, head_size, matrix_spec, path_fields
from symmetrax.symmetry._network import NetworkSymmetry
from symmetrax.symmetry._paths import named_shapes


def attention_symmetry(
    params: PyTree,
    query: str,
    key: str,
    value: str,
    output: str,
    *,
    heads: int,
    kv_heads: int | None = None,
    biases: Mapping[str, str] | None = None,
    rotary: Literal["interleaved", "half"] | None = None,
    rotary_size: int | None = None,
    normalized: bool = False,
    gains: tuple[str, str] | None = None,
    layout: HeadLayout = "out in",
) -> NetworkSymmetry:
    """The symmetry of attention: queries against keys and values against outputs, head by head.

    Scores are products of queries and keys, so (W_q, W_k) -> (A W_q, A^-T W_k) preserves them for any
    invertible A of a head; (W_v, W_o) -> (A W_v, W_o A^-1) preserves the output of the head. With fewer
    key-value heads than heads (grouped-query, multi-query), all heads of a group share A. Rotary embeddings
    leave only 2 x 2 scaled rotations, one per frequency; normalized queries and keys leave only orthogonal A
    (with rotary embeddings, rotations); trainable gains after the normalization leave only scalings of the
    query gain against the key gain. Values and outputs have their full freedom in all cases.

    **Arguments:** `query`, `key`, `value` and `output` are paths or patterns of the four matrices. `biases`
    maps "query", "key", "value" to paths. `rotary` is the pairing of entries: "interleaved" (0 with 1) or
    "half" (0 with size/2); `rotary_size` is the number of a head's entries that rotate (default all).
    `layout="heads"` is the layout of flax, (in, heads, size) and (heads, size, out).

    >>> import equinox as eqx, jax
    >>> layer = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))
    >>> names = [f"{part}_proj.weight" for part in ("query", "key", "value", "output")]
    >>> print(attention_symmetry(layer, *names, heads=2))
    qk: GeneralLinear(4, kv=2)
    vo: GeneralLinear(4, kv=2)
      query_proj.weight   (kv qk) _
      key_proj.weight     (kv qk*) _
      value_proj.weight   (kv vo) _
      output_proj.weight  _ (kv vo*)
    """
    arrays, fields = named_shapes(params), path_fields(query)
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise ValueError(
            f"`heads` must be a multiple of `kv_heads`, got heads={heads} and kv_heads={kv_heads}."
        )
    size, read = (head_size(arrays, path, kv_heads, layout) for path in (key, value))
    kv = {"kv": kv_heads}
    # In grouped-query attention the heads of a group share an element: they are a blank beside `kv`.
    several = "" if heads == kv_heads else " _"

    def axes(entries: str, shared: str = "") -> str:
        """The heads and their entries, on one axis or two depending on the layout."""
        if layout != "heads":
            return f"(kv{shared} {entries})"
        return " ".join((f"(kv{shared})" if shared else "kv", f"({entries})" if " " in entries else entries))

    # Keys and values are the narrower matrices in grouped-query attention, so the sizes are read from them.
    pairs = _pairs(size, rotary, rotary_size)
    spaces: dict[str, AbstractGroup] = {f"vo{fields}": GeneralLinear(read, kv)}
    sides = {"value": axes(f"vo{fields}")}
    if gains is None:  # else the matrices stay, and only the gains of the normalization move
        entries, more = _query_key(fields, size, pairs, rotary, normalized, kv)
        spaces = more | spaces  # queries and keys first, as in the specs
        sides |= {"query": axes(entries(""), several), "key": axes(entries("*"))}
    written = {"query": query, "key": key, "value": value}
    specs = {written[part]: matrix_spec(sides[part], "_", layout) for part in written if part in sides}
    specs[output] = matrix_spec("_", axes(f"vo{fields}*", several), layout)
    for part, path in (biases or {}).items():
        if part not in written:
            raise ValueError(
                f"`biases` maps 'query', 'key' and 'value' to paths, got {part!r}: the output's bias does "
                "not transform, so leave it out."
            )
        if part in sides:
            specs[path] = sides[part]
    if gains is not None:
        if not normalized:
            raise ValueError(
                f"`gains` are those of normalized queries and keys, got gains={gains} without "
                "normalized=True: pass both, or neither."
            )
        entries, more = _gains(fields, size, pairs, rotary)
        spaces |= more
        specs |= {path: entries(star) for path, star in zip(gains, ("", "*"), strict=True)}
    return NetworkSymmetry(spaces, specs, params)


def _pairs(size: int, rotary: str | None, rotary_size: int | None) -> int:
    """The number of pairs of a head's entries that rotate."""
    if rotary not in (None, "interleaved", "half"):
        raise ValueError(f"`rotary` must be 'interleaved', 'half' or None, got {rotary!r}.")
    if rotary is None:
        return 0
    turning = size if rotary_size is None else rotary_size
    if turning % 2 or not 0 < turning <= size:
        raise ValueError(
            f"`rotary_size` must be even and at most the {size} entries of a head, got {turning}."
        )
    return turning // 2


def _gains(
    fields: str, size: int, pairs: int, rotary: str | None
) -> tuple[Callable[[str], str], dict[str, AbstractGroup]]:
    """The spec of a gain vector as a function of its star, and its groups; rotating pairs share a scale."""
    # The two entries of a pair are rotated into each other, so their gains must scale together.
    rest = size - 2 * pairs
    spaces: dict[str, AbstractGroup] = {f"gain{fields}": PositiveDiagonal(pairs)} if pairs else {}
    if rest:
        spaces[f"gain{fields}" if not pairs else f"rest{fields}"] = PositiveDiagonal(rest)

    def entries(star: str) -> str:
        gain = f"gain{fields}{star}"
        if not pairs:
            return gain
        paired = f"({gain} _)" if rotary == "interleaved" else f"(_ {gain})"
        return f"{paired}+rest{fields}{star}" if rest else paired

    return entries, spaces


def _query_key(
    fields: str, size: int, pairs: int, rotary: str | None, normalized: bool, kv: dict[str, int]
) -> tuple[Callable[[str], str], dict[str, AbstractGroup]]:
    """The spec of a head's entries as a function of its star, and the groups of queries and keys."""
    rest = size - 2 * pairs
    spaces: dict[str, AbstractGroup] = {}
    if rest:
        spaces[f"qk{fields}"] = Orthogonal(rest, kv) if normalized else GeneralLinear(rest, kv)
    if not pairs:
        return lambda star: f"qk{fields}{star}", spaces
    # Only complex numbers commute with the rotation of a pair; the remaining entries keep their full freedom.
    spaces[f"turn{fields}"] = ScaledRotation(per={**kv, "f": pairs}, unit=normalized)

    def entries(star: str) -> str:
        turn = f"turn{fields}{star}"
        turning = f"f {turn}" if rotary == "interleaved" else f"{turn} f"
        return f"({turning})+qk{fields}{star}" if rest else turning

    return entries, spaces
