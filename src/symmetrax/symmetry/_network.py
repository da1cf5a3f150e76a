"""Groups acting on a parameter tree through axis specs: almost every exact symmetry of a network."""

from collections.abc import Callable, Iterable, Mapping
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
from symmetrax.groups._diagonal import AbstractGroup
from symmetrax.symmetry._along import Multiply, apply
from symmetrax.symmetry._base import AbstractLieSymmetry, Precondition
from symmetrax.symmetry._combine import combined, renamed, without
from symmetrax.symmetry._expand import check_indices, expand_spaces, expand_specs
from symmetrax.symmetry._paths import check_present, named_shapes
from symmetrax.symmetry._sharding import split_like
from symmetrax.symmetry._specs import names_in, offset_of
from symmetrax.symmetry._walk import Binding, Visit, walk


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
        expanded, matches = expand_specs(specs, arrays)
        self.specs = _Frozen(expanded)
        self.spaces = _Frozen(expand_spaces(spaces, self.specs, matches))
        check_indices(self.spaces)
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
        # Computed in NumPy, so that the slices are static under `jax.jit`.
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
            # A (w + c) - c, evaluated as A w + (A c - c): the identity then does not round a small w.
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

    def transport_squared_gradient(self, a: dict[str, Any], squares: PyTree) -> PyTree:
        """Carries entrywise squares of gradients from `params` to `act(a, params)`.

        Exact for scalings, signs and permutations; raises ValueError for groups that mix entries.
        """
        # A gradient transforms with the dual, so its squares transform with the squares of the dual.
        return self.transport_squared_tangent(self.dual(a), squares)

    def transport_squared_tangent(self, a: dict[str, Any], squares: PyTree) -> PyTree:
        """Carries entrywise squares of displacements; see `transport_squared_gradient`."""
        squared = {name: group.squared(a[name]) for name, group in self.spaces.items()}
        return self._placed(squared, squares, self._linear)

    def transport_mean_squares(self, a: dict[str, Any], squares: PyTree) -> PyTree:
        """Carries mean squares of gradients to `act(a, params)`, as if their entries were uncorrelated.

        Groups that mix entries multiply by the squares of their matrices: the mean squares that uncorrelated
        gradients would have there. For scalings, signs and permutations it is `transport_squared_gradient`.
        """

        def move(spec: str, x: Array, a: dict[str, Any]) -> Array:
            return self._linear(spec, x, a, lambda group: group.multiply_squares)

        return self._placed(self.dual(a), squares, move)

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

    def _linear(
        self,
        spec: str,
        x: Array,
        a: dict[str, Any],
        multiply: Callable[[AbstractGroup], Multiply] = lambda group: group.multiply,
    ) -> Array:
        """The linear part of the action on an array: moves tangents and, given duals, gradients."""

        def block(x: Array, bindings: tuple[Binding, ...]) -> Array:
            moved = x
            for binding in bindings:
                group = self.spaces[binding.entry.name]
                moved = apply(group, a[binding.entry.name], moved, binding, multiply(group))
            return moved.astype(x.dtype)  # rounded once, after all spaces have acted

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
        # Traced, not computed: `walk` checks all shapes without allocating an array.
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
            except ValueError as error:  # `walk` does not know the name of the array
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
        self._check_known(names)
        dropped = set(self.spaces) - set(names)
        # Arrays on which no remaining space acts lose their spec, and may be missing from a tree.
        specs = {path: without(text, dropped, self.spaces) for path, text in self.specs.items()}
        kept = {path: text for path, text in specs.items() if not names_in(text).isdisjoint(names)}
        return self._made({name: self.spaces[name] for name in names}, kept)

    def __or__(self, other: Any) -> Any:
        """Combines two symmetries: the spaces of both, and on every array the specs of both, axis by axis.

        With a symmetry of another type, elements are pairs that act one after the other.
        """
        if not isinstance(other, NetworkSymmetry):
            return super().__or__(other)
        # One name means one element. If that is intended, it is one symmetry, with all specs in one dict.
        for name in self.spaces:
            if name in other.spaces:
                raise ValueError(
                    f"Both symmetries have a space {name!r}, which would make them share its elements: "
                    f"rename one of them by symmetry.renamed({{{name!r}: ...}})."
                )
        spaces = {**self.spaces, **other.spaces}
        check_indices(spaces)
        paths = [*self.specs, *(path for path in other.specs if path not in self.specs)]
        specs = {path: combined(path, self.specs.get(path), other.specs.get(path), spaces) for path in paths}
        return self._made(spaces, specs)

    def renamed(self, names: Mapping[str, str]) -> "NetworkSymmetry":
        """Renames some of the spaces: {old: new}."""
        self._check_known(names)
        spaces = {names.get(name, name): group for name, group in self.spaces.items()}
        if len(spaces) < len(self.spaces):
            raise ValueError(
                f"Two spaces would have the same name under {dict(names)}: choose names other than the "
                f"present ones, {', '.join(self.spaces)}."
            )
        check_indices(spaces)
        specs = {path: renamed(text, names) for path, text in self.specs.items()}
        return self._made(spaces, specs)

    def with_specs(self, specs: Mapping[str, str]) -> "NetworkSymmetry":
        """Replaces the specs, given by the full path of each array; the new specs are not checked."""
        return self._made(self.spaces, dict(specs))

    def _made(self, spaces: dict[str, AbstractGroup], specs: dict[str, str]) -> "NetworkSymmetry":
        """Constructs a symmetry from parts that are already checked."""
        # Without `__init__`, which needs an example tree for the shapes.
        made = object.__new__(type(self))
        object.__setattr__(made, "spaces", _Frozen(spaces))
        object.__setattr__(made, "specs", _Frozen(specs))
        return made

    def _check_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.spaces:
                raise ValueError(
                    f"There is no space {name!r}.{near_match(name, self.spaces)} The spaces are: "
                    f"{', '.join(self.spaces)}."
                )

    def _lengths(self) -> dict[str, int]:
        return {name: int(np.prod(group.algebra)) for name, group in self.spaces.items()}

    def __str__(self) -> str:
        lines = [f"{name}: {group}" for name, group in self.spaces.items()]
        width = max((len(path) for path in self.specs), default=0)
        return "\n".join([*lines, *(f"  {path:<{width}}  {text}" for path, text in self.specs.items())])


class _Frozen(dict):
    """A hashable dict, for the cache key of a compiled program."""

    # Order matters: it is the order of the coordinates, so two symmetries with the same spaces in another
    # order must not share a program.

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self, other) and (not isinstance(other, _Frozen) or [*self] == [*other])
