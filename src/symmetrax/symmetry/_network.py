"""Groups acting on a parameter tree through axis specs: almost every exact symmetry of a network."""

import dataclasses
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from symmetrax._keys import check_key
from symmetrax._text import near_match
from symmetrax._tree import leaf_names
from symmetrax.groups._diagonal import AbstractGroup, Permutation
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition
from symmetrax.symmetry._sharding import split_like
from symmetrax.symmetry._specs import (
    Both,
    Concatenated,
    Entry,
    Merged,
    Node,
    Plain,
    entries,
    offset_of,
    parse,
    written,
)
from symmetrax.symmetry._walk import Binding, Visit, check_commuting, index_lengths, walk


class NetworkSymmetry(AbstractLieSymmetry):
    """Matrix groups acting on the array axes that share a hidden space.

    `spaces` maps the name of each hidden space to its group. `specs` maps each array with an axis in a space
    to an axis spec, an einops-like string with an entry per axis. `h` transforms with g, `h*` with g^-T, and
    `_` does not transform; `(h _)` is a merged axis, `a+b` a concatenated axis, `h^2` a power. For a hidden
    layer w2 relu(w1 x + b1), for example, the specs are w1 "h _", b1 "h", w2 "_ h*", and the group is
    `PositiveDiagonal`. A spec may end in an offset: write "h - 1" for a gain w that enters the network as 1 +
    w, since 1 + w transforms with g.

    Arrays are named by their path, such as `layers.0.weight`, in any pytree: dicts, equinox modules, flax
    states. A pattern `{i}` in paths, entries and spaces makes a copy for every matching array. Arrays without
    a spec, and leaves that are not arrays, pass through untouched.

    **Arguments:** `like` is the parameter tree; only its shapes are used, to expand the patterns and to check
    every axis at construction. Raises ValueError for a missing array, an unknown name, an axis whose length
    differs from the size of its space, and a space without a spec.

    An element is a dict from space names to group elements. The algebra has a single coordinate vector of
    shape (k,), the concatenation of the groups' coordinates; discrete groups contribute no coordinates. The
    action is linear, up to the constants introduced by offsets, so a single gradient determines the gradient
    on the whole orbit: at `act(a, w)` it is `transport_gradient(a, w, gradient)`. The action is computed in
    at least float32 and returned in each array's own dtype.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> params = {"w1": jnp.ones((4, 3)), "b1": jnp.ones(4), "w2": jnp.ones((2, 4))}
    >>> specs = {"w1": "h _", "b1": "h", "w2": "_ h*"}
    >>> symmetry = NetworkSymmetry({"h": sx.groups.PositiveDiagonal(4)}, specs, like=params)
    >>> there = symmetry.act({"h": jnp.array([1.0, 2.0, 3.0, 4.0])}, params)
    >>> print(there["b1"])
    [1. 2. 3. 4.]
    """

    linear: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ("holds",)

    spaces: dict[str, AbstractGroup] = eqx.field(static=True)
    specs: dict[str, str] = eqx.field(static=True)

    def __init__(self, spaces: Mapping[str, AbstractGroup], specs: Mapping[str, str], like: PyTree):
        arrays = named_shapes(like)
        expanded, bindings = _expand_specs(specs, arrays)
        self.specs = _Frozen(expanded)
        self.spaces = _Frozen(_expand_spaces(spaces, self.specs, bindings))
        _check_indices(self.spaces)
        self.check(arrays)

    @property
    def algebra(self) -> tuple[int]:
        return (sum(self._lengths().values()),)

    def identity(self) -> dict[str, Any]:
        return {name: group.identity() for name, group in self.spaces.items()}

    def compose(self, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return {name: group.compose(a[name], b[name]) for name, group in self.spaces.items()}

    def inverse(self, a: dict[str, Any]) -> dict[str, Any]:
        return {name: group.inverse(a[name]) for name, group in self.spaces.items()}

    def dual(self, a: dict[str, Any]) -> dict[str, Any]:
        """The inverse transpose of `a`, which moves gradients when `a` moves parameters."""
        return {name: group.dual(a[name]) for name, group in self.spaces.items()}

    def sample(self, key: Key[Array, ""]) -> dict[str, Any]:
        check_key(key)
        keys = jax.random.split(key, len(self.spaces))
        return {name: group.sample(k) for k, (name, group) in zip(keys, self.spaces.items(), strict=True)}

    def exp(self, coordinates: Float[Array, " k"]) -> dict[str, Any]:
        return {name: self.spaces[name].exp(part) for name, part in self.split(coordinates).items()}

    def bounded(self, coordinates: Float[Array, " k"], bound: float | Array) -> Float[Array, " k"]:
        parts = self.split(coordinates)
        return self.join({name: self.spaces[name].bounded(part, bound) for name, part in parts.items()})

    def split(self, coordinates: Float[Array, " k"]) -> dict[str, Array]:
        """Splits a coordinate vector by space, into the shapes of the groups' algebras."""
        ends = np.cumsum([0, *self._lengths().values()])
        return {
            name: coordinates[low:high].reshape(group.algebra)
            for (name, group), low, high in zip(self.spaces.items(), ends, ends[1:], strict=False)
        }

    def join(self, parts: Mapping[str, Array]) -> Float[Array, " k"]:
        """Joins the spaces' coordinates into a vector, the inverse of `split`; zeros for missing spaces."""
        zeros = {name: jnp.zeros(group.algebra) for name, group in self.spaces.items()}
        return jnp.concatenate([jnp.ravel(parts.get(name, zero)) for name, zero in zeros.items()])

    def act(self, a: dict[str, Any], params: PyTree, batch: PyTree = None) -> PyTree:
        def move(spec: str, w: Array, a: dict[str, Any]) -> Array:
            if not (offset := offset_of(spec)):
                return self._linear(spec, w, a)
            wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
            origin = jnp.full_like(wide, offset)
            # A (w + c) - c, evaluated in an order in which the identity does not round a small w.
            moved = self._linear(spec, wide, a) + (self._linear(spec, origin, a) - origin)
            return moved.astype(w.dtype)

        return self._placed(a, params, move)

    def transport_tangent(
        self, a: dict[str, Any], params: PyTree, tangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        return self._placed(a, tangent, self._linear)

    def transport_gradient(
        self, a: dict[str, Any], params: PyTree, cotangent: PyTree, batch: PyTree = None
    ) -> PyTree:
        return self._placed(self.dual(a), cotangent, self._linear)

    def pull_squared(self, a: dict[str, Any], squares: PyTree) -> PyTree:
        """Carries entrywise squares of gradients from `params` to `act(a, params)`.

        Exact for scalings, signs and permutations; raises ValueError for groups that mix entries.
        """
        return self.push_squared(self.dual(a), squares)

    def push_squared(self, a: dict[str, Any], squares: PyTree) -> PyTree:
        """Carries entrywise squares of displacements to `act(a, params)`; see `pull_squared`."""
        squared = {name: group.squared(a[name]) for name, group in self.spaces.items()}
        return self._placed(squared, squares, self._linear)

    def shifted(self, params: PyTree) -> PyTree:
        """Parameters plus their offsets, in at least float32; the groups act linearly on this tree."""

        def shift(spec: str, w: Any) -> Any:
            offset = offset_of(spec)
            return w.astype(jnp.promote_types(w.dtype, jnp.float32)) + offset if offset else w

        return self._each(params, shift)

    @property
    def has_offsets(self) -> bool:
        """Whether any spec has an offset, so that the action is linear only up to constants."""
        return any(map(offset_of, self.specs.values()))

    def _linear(self, spec: str, x: Array, a: dict[str, Any]) -> Array:
        """The linear part of the action on an array: moves tangents and, given duals, gradients."""

        def block(x: Array, bindings: tuple[Binding, ...]) -> Array:
            moved = x
            for binding in bindings:
                moved = apply(self.spaces[binding.entry.name], a[binding.entry.name], moved, binding)
            return moved.astype(x.dtype)

        return walk(spec, x, self.spaces, block)

    def _placed(self, a: dict[str, Any], tree: PyTree, move: Callable[[str, Array, Any], Array]) -> PyTree:
        """Applies `move(spec, array, a)` to every array with a spec, keeping its sharding."""

        def placed(spec: str, leaf: Any) -> Array:
            leaf = jnp.asarray(leaf)
            return split_like(leaf, partial(move, spec), leaf, a)

        return self._each(tree, placed)

    def holds(self, params: PyTree, batch: PyTree = None) -> Precondition:
        """Always holds: names and sizes are checked at construction. Use `verify` to test the loss."""
        return Precondition(jnp.array(0), jnp.array(0.0))

    def check(self, params: PyTree) -> None:
        jax.eval_shape(lambda tree: self.visit(tree, lambda x, bindings: x), named_shapes(params))

    def visit(self, tree: PyTree, visit: Visit) -> PyTree:
        """Calls `visit(block, bindings)` on the blocks of every array with a spec and reassembles the arrays.

        Offsets are ignored: pass `shifted(params)` to visit the tree on which the groups act linearly.
        Raises ValueError, naming the array, if an array with a spec is missing or has the wrong shape.
        """
        return self._each(tree, lambda spec, leaf: walk(spec, leaf, self.spaces, visit))

    def _each(self, tree: PyTree, move: Callable[[str, Any], Any]) -> PyTree:
        """Applies `move(spec, array)` to every array with a spec; errors name the array."""
        leaves, structure = jax.tree.flatten(tree)
        names = leaf_names(tree)
        check_present(self.specs, names)

        def named(name: str, leaf: Any) -> Any:
            if name not in self.specs:
                return leaf
            try:
                return move(self.specs[name], leaf)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

        return jax.tree.unflatten(structure, map(named, names, leaves))

    def within(self, tree: PyTree) -> "NetworkSymmetry":
        """Restricts the symmetry to the arrays present in `tree`, for parameters split into parts.

        Moving a part alone changes the loss; moving all parts by the same element preserves it.

        >>> import jax.numpy as jnp, symmetrax as sx
        >>> params = {"w1": jnp.ones((4, 3)), "w2": jnp.ones((2, 4))}
        >>> sx.models.mlp_symmetry(params).within({"w2": params["w2"]}).specs
        {'w2': '_ hidden1*'}
        """
        names = set(leaf_names(tree))
        return self._made(self.spaces, {path: text for path, text in self.specs.items() if path in names})

    def only(self, *names: str) -> "NetworkSymmetry":
        """Restricts the symmetry to the named spaces; the other spaces no longer act."""
        for name in names:
            if name not in self.spaces:
                raise ValueError(f"There is no space {name!r}.{near_match(name, self.spaces)}")
        dropped = set(self.spaces) - set(names)
        specs = {path: _without(text, dropped, self.spaces) for path, text in self.specs.items()}
        kept = {path: text for path, text in specs.items() if any(w.name in names for w in _all_words(text))}
        return self._made({name: self.spaces[name] for name in names}, kept)

    def __or__(self, other: Any) -> Any:
        """Combines two symmetries: the spaces of both, and on every array the specs of both, axis by axis.

        With a symmetry of another type, elements are pairs that act one after the other.
        """
        if not isinstance(other, NetworkSymmetry):
            return super().__or__(other)
        for name in self.spaces:
            if name in other.spaces:
                raise ValueError(
                    f"Both symmetries have a space {name!r}, which would tie them together: rename one, "
                    f"symmetry.renamed({{{name!r}: ...}})."
                )
        spaces = {**self.spaces, **other.spaces}
        _check_indices(spaces)
        paths = [*self.specs, *(path for path in other.specs if path not in self.specs)]
        specs = {path: _both(path, self.specs.get(path), other.specs.get(path), spaces) for path in paths}
        return self._made(spaces, specs)

    def renamed(self, names: Mapping[str, str]) -> "NetworkSymmetry":
        """Renames some of the spaces: {old: new}."""
        for name in names:
            if name not in self.spaces:
                raise ValueError(f"There is no space {name!r}.{near_match(name, self.spaces)}")
        spaces = {names.get(name, name): group for name, group in self.spaces.items()}
        if len(spaces) < len(self.spaces):
            raise ValueError(f"Two spaces would have the same name under {dict(names)}.")
        _check_indices(spaces)
        specs = {path: _renamed(text, names) for path, text in self.specs.items()}
        return self._made(spaces, specs)

    def with_specs(self, specs: Mapping[str, str]) -> "NetworkSymmetry":
        """Replaces the specs, given by the full path of each array; the new specs are not checked."""
        return self._made(self.spaces, dict(specs))

    def _made(self, spaces: dict[str, AbstractGroup], specs: dict[str, str]) -> "NetworkSymmetry":
        """Builds a symmetry from parts that are already checked."""
        made = object.__new__(type(self))
        object.__setattr__(made, "spaces", _Frozen(spaces))
        object.__setattr__(made, "specs", _Frozen(specs))
        return made

    def _lengths(self) -> dict[str, int]:
        return {name: int(np.prod(group.algebra)) for name, group in self.spaces.items()}

    def __str__(self) -> str:
        lines = [f"{name}: {group}" for name, group in self.spaces.items()]
        width = max((len(path) for path in self.specs), default=0)
        return "\n".join([*lines, *(f"  {path:<{width}}  {text}" for path, text in self.specs.items())])


def _all_words(text: str) -> tuple[Entry, ...]:
    return tuple(entry for node in parse(text) for entry in entries(node))


class _Frozen(dict):
    """A hashable dict, for the cache key of a compiled program; order matters, as it does in coordinates."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self, other) and (not isinstance(other, _Frozen) or [*self] == [*other])


def apply(group: AbstractGroup, element: PyTree, x: Array, binding: Binding) -> Array:
    """Multiplies the axis of `x` given by `binding` by the element, or by its dual or power."""
    return along(binding, x, lambda flat: group.multiply(element_for(group, element, binding.entry), flat))


def element_for(group: AbstractGroup, element: PyTree, entry: Entry) -> PyTree:
    """The part of an element that a entry refers to: its dual, a power, or the elements at some indices."""
    if entry.index is not None:
        taken = entry.index if isinstance(entry.index, int) else slice(*entry.index)
        element = jax.tree.map(lambda leaf: leaf[taken], element)
    if entry.star:
        element = group.dual(element)
    return element if entry.power == 1 else group.power(element, entry.power)


def along(binding: Binding, x: Any, multiply: Callable[[Any], Any]) -> Any:
    """Applies `multiply` with the index axes first, then the bound axis, then all other axes flattened."""
    library = np if isinstance(x, np.ndarray) else jnp
    front = range(len(binding.indices) + 1)
    axes = (*binding.indices, binding.axis)
    apart = library.moveaxis(x, axes, front)
    flat = apart.reshape(*apart.shape[: len(axes)], -1)
    return library.moveaxis(multiply(flat).reshape(apart.shape), front, axes)


def named_shapes(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of all arrays in a tree, by name.

    >>> named_shapes({"w": jnp.ones((2, 3)), "activation": jnp.tanh})["w"].shape
    (2, 3)
    """
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    }


def match_paths(pattern: str, names: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The names that match a pattern, each with the values of its `{i}`. Raises ValueError without a match.

    A pattern may end in `.value`, the suffix of flax variables that names in this library omit.

    >>> match_paths("layers.{i}.weight", {"layers.0.weight": 0, "layers.1.weight": 0, "head": 0})
    {'layers.0.weight': {'i': '0'}, 'layers.1.weight': {'i': '1'}}
    """
    regex, seen = "", set()
    for literal, field, _, _ in string.Formatter().parse(pattern):
        regex += re.escape(literal)
        if field is not None:
            regex += f"(?P={field})" if field in seen else f"(?P<{field}>[^.]+)"
            seen.add(field)
    found = {name: match.groupdict() for name in names if (match := re.fullmatch(regex, name))}
    if not found and pattern.endswith(".value"):
        found = match_paths(pattern.removesuffix(".value"), names)
    if not found:
        listed = ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")
        raise ValueError(f"No array is called {pattern!r}.{near_match(pattern, names)} There are: {listed}.")
    return found


def only_path(pattern: str, names: Mapping[str, Any]) -> str:
    """The unique name that matches. Raises ValueError if no name matches, or several do."""
    found = list(match_paths(pattern, names))
    if len(found) > 1:
        raise ValueError(f"{pattern!r} should name one array, but it matches {', '.join(found)}.")
    return found[0]


def check_present(paths: Collection[str], names: Sequence[str]) -> None:
    """Raises ValueError if the tree lacks arrays on which the symmetry acts."""
    known = set(names)
    missing = [path for path in paths if path not in known]
    if not missing:
        return
    path, more = missing[0], f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    under = {name.removesuffix(f".{path}") for name in names if name.endswith(f".{path}")}
    inside = [name for name in names if path.endswith(f".{name}")]
    if len(under) == 1:
        (under,) = under
        hint = f" It is under {under!r} here: pass that, or make the symmetry with `like` this tree."
    elif inside:
        hint = (
            f" It is {inside[0]!r} here: pass the tree that has it under "
            f"{path.removesuffix(inside[0])[:-1]!r}, or make the symmetry with `like` this one."
        )
    else:
        hint = f"{near_match(path, names)} There are: {', '.join(names[:8])}{', ...' * (len(names) > 8)}."
    raise ValueError(f"The symmetry acts on the array {path!r}{more}, which is not in the tree.{hint}")


def _expand_specs(
    specs: Mapping[str, str], arrays: Mapping[str, Any]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The spec of every array, and the values of the patterns' `{i}`."""
    expanded: dict[str, str] = {}
    bindings: list[dict[str, str]] = []
    for pattern, text in specs.items():
        for name, bound in match_paths(pattern, arrays).items():
            if name in expanded:
                raise ValueError(f"The array {name!r} has two specs, the second from {pattern!r}.")
            expanded[name] = _fill(text, bound, f"the spec {text!r} of {pattern!r}")
            bindings.append(bound)
    return expanded, bindings


def _expand_spaces(
    spaces: Mapping[str, AbstractGroup], specs: Mapping[str, str], bindings: list[dict[str, str]]
) -> dict[str, AbstractGroup]:
    """A space for every copy named in a spec."""
    used = {entry.name for text in specs.values() for entry in _all_words(text)}
    expanded: dict[str, AbstractGroup] = {}
    for pattern, group in spaces.items():
        fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        copies = (
            {pattern.format(**bound) for bound in bindings if fields <= set(bound)} if fields else {pattern}
        )
        names = sorted(copies & used, key=_natural)
        if not names:
            raise ValueError(f"The space {pattern!r} has no spec.{near_match(pattern, used)}")
        expanded |= dict.fromkeys(names, group)
    return expanded


def _fill(text: str, bound: Mapping[str, str], where: str) -> str:
    try:
        return text.format(**bound)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{where} has a {{}} that its path does not have, or a brace too many: {error}."
        ) from None


def _check_indices(spaces: Mapping[str, AbstractGroup]) -> None:
    """Raises ValueError if an index is also a space: its action would not commute with the indexed group."""
    for name in (name for group in spaces.values() for name, _ in group.per):
        if name in spaces:
            raise ValueError(
                f"{name!r} is a space and an index of another group: the two would not commute. Make two "
                "symmetries, or give the index another name."
            )


def _natural(name: str) -> list:
    """Sort key that puts qk2 before qk10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _without(text: str, dropped: set[str], groups: Mapping[str, AbstractGroup]) -> str:
    """Removes spaces from a spec: their entries, and indices used by no other space, become numbers."""
    nodes = parse(text)
    lengths = index_lengths(nodes, groups)
    kept = {
        name for space, group in groups.items() if space not in dropped for name in (space, *dict(group.per))
    }

    def blank(node: Node) -> Node:
        match node:
            case Entry(name):
                return node if name in kept else Plain(groups[name].size if name in groups else lengths[name])
            case Plain():
                return node
            case Both(parts):
                left = tuple(part for part in parts if part.name in kept)
                return Both(left) if len(left) > 1 else left[0] if left else blank(parts[0])
            case Merged(parts) | Concatenated(parts):
                return type(node)(tuple(blank(part) for part in parts))

    def axis(node: Node) -> Node:
        left = blank(node)
        return left if entries(left) else Plain()  # keep indices: another axis may need them

    return written(map(axis, nodes), offset_of(text))


def _renamed(text: str, names: Mapping[str, str]) -> str:
    def rename(node: Node) -> Node:
        match node:
            case Entry(name):
                return dataclasses.replace(node, name=names.get(name, name))
            case Plain():
                return node
            case Both(parts):
                return Both(
                    tuple(dataclasses.replace(part, name=names.get(part.name, part.name)) for part in parts)
                )
            case Merged(parts) | Concatenated(parts):
                return type(node)(tuple(rename(part) for part in parts))

    return written(map(rename, parse(text)), offset_of(text))


def _join_axes(one: Node, other: Node) -> Node:
    """Joins two specs of the same axis; raises ValueError where they split it differently."""
    if one == other or isinstance(other, Plain):
        return one
    if isinstance(one, Plain):
        return other
    for kind in (Merged, Concatenated):
        if isinstance(one, kind) and isinstance(other, kind) and len(one.parts) == len(other.parts):
            return kind(tuple(_join_axes(a, b) for a, b in zip(one.parts, other.parts, strict=True)))
    if isinstance(one, Entry | Both) and isinstance(other, Entry | Both):
        return Both((*entries(one), *entries(other)))
    raise ValueError(f"one axis has the specs {one} and {other}, which cannot be joined: write them as one")


def _both(path: str, first: str | None, second: str | None, spaces: Mapping[str, AbstractGroup]) -> str:
    if first is None or second is None:
        return first or second or ""
    ones, others = parse(first), parse(second)
    if len(ones) != len(others):
        raise ValueError(f"{path}: the specs {first!r} and {second!r} differ in their number of axes.")
    # Permutations preserve constants, so they act the same way under any offset.
    offsets = {offset_of(text) for text in (first, second) if not _permutes(text, spaces)} or {0.0}
    if len(offsets) > 1:
        raise ValueError(
            f"{path}: the specs {first!r} and {second!r} have other offsets: both would be no action."
        )
    try:
        nodes = [_join_axes(one, other) for one, other in zip(ones, others, strict=True)]
        text = written(nodes, *offsets)
        check_commuting(text, spaces)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    return text


def _permutes(text: str, spaces: Mapping[str, AbstractGroup]) -> bool:
    """Whether every group that acts in a spec is a permutation group."""
    acting = [spaces[entry.name] for entry in _all_words(text) if entry.name in spaces]
    return all(isinstance(group, Permutation) for group in acting)
