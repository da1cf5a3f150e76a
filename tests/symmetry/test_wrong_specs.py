"""One wrong entry in the specs of a network: `verify` must see it, and name the axis.

Every spec of every ready constructor gets every single mistake: a star too many or missing, a name forgotten,
a name where nothing acts, the parts of a merged axis in another order. What is not a mistake is left out:

- stars of compact groups: g and its dual are the same (signs, permutations, rotations, unit scales);
- a space that has one spec only: starring it is the same symmetry by another name, deleting it leaves none;
- the key bias where nothing turns with position: it adds the same number to all scores of a query, which the
  softmax does not see, so that whatever acts on it is a symmetry;
- the order of parts that are alone in having a length other than 1: the axis is cut the same way.

Each run of the tests makes every fifteenth mistake, the slow one all of them.
"""

import dataclasses
import itertools

import jax
import pytest

import symmetrax as sx

# Mistakes are made node by node.
from symmetrax.symmetry._specs import Both, Concatenated, Entry, Merged, Node, Plain, entries, parse

from ..cases import mostly_slow
from ..zoo import READY, Row

pytestmark = pytest.mark.usefixtures("quick_compilation")

#: Of every stride and row: array, wrong spec, axis, whether it is named, the number of axes named, right
#: spec.
MUTANTS: dict[int, dict[str, list[tuple[str, str, int, bool, int, str]]]] = {1: {}, 15: {}}
#: A row for every kind of entry in a spec.
QUICK = (
    "relu",
    "linear",
    "transported silu",
    "residual CNN, flattened",
    "scale before GroupNorm",
    "multi-query attention",
    "partly rotary, half",
    "normalized and rotary, gains, interleaved",
    "flax attention",
    "gated by relu",
    "transformer, RMSNorm",
    "low rank",
)

#: How many rows there are at each stride: `make test` makes every fifteenth mistake in a few rows.
ROWS = {15: len(QUICK), 1: len(READY)}
CASES = [(row, 15) for row in READY if row.name in QUICK] + [
    pytest.param(row, 1, marks=pytest.mark.slow) for row in READY
]


def size(node: Node, symmetry: sx.NetworkSymmetry) -> int | None:
    """The length of a part, None for a blank."""
    if isinstance(node, Plain):
        return node.size
    if isinstance(node, Entry):
        lengths = {name: n for group in symmetry.spaces.values() for name, n in group.per}
        return symmetry.spaces[node.name].size if node.name in symmetry.spaces else lengths[node.name]
    return 0


def single_mistakes(node: Node, length: int, symmetry: sx.NetworkSymmetry) -> list[Node]:
    """All ways in which one entry of an axis can be wrong, the sizes being right."""
    spaces = symmetry.spaces
    count = {
        name: sum(w.name == name for text in symmetry.specs.values() for n in parse(text) for w in entries(n))
        for name in spaces
    }
    match node:
        case Entry(name):
            if name not in spaces or count[name] == 1:
                return []
            starred = [] if spaces[name].compact else [dataclasses.replace(node, star=not node.star)]
            return [*starred, Plain(spaces[name].size)]
        case Plain():
            return [Entry(name) for name, group in spaces.items() if group.size == length and not group.per]
        case Both(parts):
            mistakes: list[Node] = []
            for k, part in enumerate(parts):
                rest = parts[:k] + parts[k + 1 :]
                for mistake in single_mistakes(part, length, symmetry):
                    if isinstance(mistake, Entry):
                        mistakes.append(Both((mistake, *rest)))
                    else:
                        mistakes.append(rest[0] if len(rest) == 1 else Both(rest))
            return mistakes
        case Merged(parts) | Concatenated(parts):
            mistakes = []
            for k, part in enumerate(parts):
                for mistake in single_mistakes(part, 0, symmetry):
                    mistakes.append(type(node)((*parts[:k], mistake, *parts[k + 1 :])))
            if isinstance(node, Merged) and any(
                w.name in spaces and count[w.name] > 1 for w in entries(node)
            ):
                for j, k in itertools.combinations(range(len(parts)), 2):
                    order = list(parts)
                    order[j], order[k] = parts[k], parts[j]
                    if 1 not in (size(parts[j], symmetry), size(parts[k], symmetry)):
                        mistakes.append(Merged(tuple(order)))
            return mistakes


def mutants(row: Row, params, symmetry: sx.NetworkSymmetry):
    """Specs with one mistake, with the array and the axis where it is."""
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if hasattr(leaf, "shape")
    }
    for path, text in symmetry.specs.items():
        if path in ("k_bias", "key.bias") and "turn" not in symmetry.spaces:
            continue
        nodes = parse(text)
        for axis, (node, length) in enumerate(zip(nodes, shapes[path], strict=True)):
            for mistake in single_mistakes(node, length, symmetry):
                yield path, axis, " ".join(map(str, (*nodes[:axis], mistake, *nodes[axis + 1 :])))


@pytest.mark.parametrize(("row", "stride"), CASES, ids=str)
def test_every_single_mistake_is_caught(row, stride, float64, unchecked):
    params = row.params()
    symmetry, batch = row.symmetry(params), row.batch(0)
    found = MUTANTS[stride].setdefault(row.name, [])
    for path, axis, text in itertools.islice(mutants(row, params, symmetry), 0, None, stride):
        wrong = symmetry.with_specs({**symmetry.specs, path: text})
        report = sx.verify(row.loss, params, wrong, jax.random.key(5), batch, trials=1)
        assert report.outcome in ("wrong", "approximate"), (path, text, str(report))
        axes = {(suspect.path, suspect.axis) for suspect in report.suspects}
        found.append((path, text, axis, (path, axis) in axes, len(axes), symmetry.specs[path]))


@pytest.mark.parametrize("stride", mostly_slow(ROWS, ["15"]))
def test_the_wrong_axis_is_named(stride):
    """At least 85 % of all alone, others with one more: of a space with two specs, starring either mends."""
    found = [(name, *mutant) for name, mutants in MUTANTS[stride].items() for mutant in mutants]
    if len(MUTANTS[stride]) < ROWS[stride]:
        pytest.skip("needs the mutants of all rows, from the tests above")
    alone = [mutant for mutant in found if mutant[4] and mutant[5] == 1]
    among = [mutant for mutant in found if mutant[4] and mutant[5] == 2]
    missed = [mutant for mutant in found if mutant not in alone and mutant not in among]
    print(f"{len(found)} mutants: {len(alone)} named, {len(among)} among several, {len(missed)} missed")
    for kind, some in (("among", among), ("missed", missed)):
        for name, path, text, axis, right, count, was in some:
            print(f"{kind}: {name}: {path} axis {axis}: {text!r} for {was!r}: {right}, {count} suspects")
    assert len(found) > (450 if stride == 1 else 15)
    assert not missed
    assert stride > 1 or len(alone) >= 0.85 * len(found)
