"""`find_symmetries`: from a loss and its parameters to certified symmetries."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax._keys import check_key
from symmetrax.discovery._certify import HOLDS, Certifier, symmetry_of
from symmetrax.discovery._chains import Chain, chains
from symmetrax.discovery._discrete import (
    permutation_shapes,
    permutations,
    sign_bases,
    signs,
)
from symmetrax.discovery._double import DOUBLE
from symmetrax.discovery._found import Discovery, Found
from symmetrax.discovery._lie import Look, centred_rotations, matrix_groups, scales, shifted_scales
from symmetrax.discovery._moments import Products, points_needed, rows
from symmetrax.discovery._places import Place
from symmetrax.discovery._plan import GROUPS, MATRICES, MOST_BLOCKS, Plan
from symmetrax.discovery._points import Loss, measure, more_points
from symmetrax.discovery._relations import threshold
from symmetrax.discovery._segments import segment_questions
from symmetrax.discovery._sites import Shape, Site
from symmetrax.discovery._spaces import Space, follows
from symmetrax.groups._diagonal import AbstractGroup, Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation
from symmetrax.symmetry._network import NetworkSymmetry


def find_symmetries(
    loss: Callable[..., Array],
    params: PyTree,
    key: Key[Array, ""],
    *,
    batch: Any = None,
    groups: Sequence[type[AbstractGroup]] = GROUPS,
    heads: int | Sequence[int] | None = None,
    budget: int | None = None,
    trials: int = 3,
) -> Discovery:
    """Discovers the symmetries of a loss from its gradients alone, and certifies each one.

    If a group acts on some axes of the parameters, the loss is constant along its orbits, so moments of
    gradient and parameter sum to zero over these axes. With G the gradient with respect to W, of shape (n,
    rest), and M = G W^T, the sum over axes of M vanishes for general matrices, of M - M^T for rotations, and
    of charge * diag(M) for scalings. Every axis, in every layout of merged and concatenated axes, is a column
    of one matrix whose rows are gradients at generic points; its null space is the list of specs.
    Permutations show up as equal slices of the gradient when two units are made equal, signs as equal losses
    when units are flipped. Every candidate is then certified with random elements, at `params` and at generic
    points around them, by the loss and by the gradient law of every array. All computations are in double
    precision, regardless of the precision of the loss and of `params`.

    **Arguments:** `loss(params)`, or `loss(params, batch)` if you pass `batch` or the loss requires one,
    returns a scalar that JAX can differentiate. `params` is any pytree; only its floating-point arrays are
    searched. `batch` is a batch, or a function that draws one from a key: then the certificates also use
    fresh batches. `groups` restricts the search, and `heads` the numbers of heads that a merged axis is split
    into (default: all divisors). `budget` limits the number of evaluations of the loss, counting both
    gradients and values; questions skipped for lack of budget are listed in the report. `trials` is the
    number of random elements per certificate.

    **Returns** a `Discovery`; print it for a table, `discovery.text` is code that constructs the symmetries
    found. Raises ValueError if the loss is not a finite scalar, is random, or does not depend on `params`, if
    there are no floating-point arrays, and if the budget is too small.

    >>> import jax, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(4), "out": jnp.ones((2, 4))}
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> def loss(p):
    ...     return jnp.mean((jax.nn.relu(x @ p["w"].T + p["b"]) @ p["out"].T - x[:, :2]) ** 2)
    >>> found = find_symmetries(loss, params, jax.random.key(1))
    >>> for one in found:
    ...     print(one.group, one.certificate.outcome, dict(one.symmetry.specs))
    PositiveDiagonal(4) exact {'b': 's0', 'out': '_ s0*', 'w': 's0 _'}
    Permutation(4) exact {'b': 'p1', 'out': '_ p1', 'w': 'p1 _'}
    """
    check_key(key)
    start = time.perf_counter()
    plan = Plan.of(params, groups, heads, trials)
    plan.afford(budget)
    draw, certify = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with jax.enable_x64(True):
        problem = Loss(loss, params, draw, batch, budget, x64=x64)
        search = _Search(problem, plan, certify, rng)
        search.run()
    return Discovery(
        found=search.told(),
        rejected=tuple(one for _, one in search.rejected),
        asked=tuple(group.__name__ for group in plan.groups),
        unfinished=tuple(sorted(search.unfinished)),
        looked=tuple(search.looked),
        idle=search.measured.idle,
        steep=search.measured.steep,
        notes=tuple(search.notes()),
        cost=plan.cost,
        evaluations=problem.evaluations,
        seconds=time.perf_counter() - start,
    )


class _Search:
    """Asks one kind of question after another; later questions take into account the candidates that hold.

    Candidates that hold only approximately are not used that way, because they may contain exact symmetries.
    """

    def __init__(self, loss: Loss, plan: Plan, key: Key[Array, ""], rng: np.random.Generator):
        self.loss, self.plan, self.rng = loss, plan, rng
        self.threshold = threshold(loss.precision)
        self.measured = measure(loss, plan.at, rng, count=plan.cost.points, whole=plan.whole)
        self.products = Products(self.measured)
        self.dark = {*self.measured.idle, *self.measured.steep}
        self.live = [place for place in plan.at if place.path not in self.dark]
        self.certify = Certifier(loss, key, rng, plan.trials)
        self.spaces: list[Space] = []
        self.found: list[Found] = []
        self.nearly: list[Space] = []
        self.found_nearly: list[Found] = []
        self.rejected: list[tuple[Space, Found]] = []
        self.looked: list[Look] = []
        self.unasked: list[str] = []
        self.unfinished: set[str] = set()
        self.unsaid: list[str] = []
        self.links: list[tuple[Chain, Found]] = []
        self.certificates = 0

    def run(self) -> None:
        """Searches large groups first, so that what they imply need not be found again."""
        wanted = set(self.plan.groups)
        lie = bool(wanted & set(MATRICES))
        if lie:
            self.take(self.matrices([(shape, self.with_gradient(s)) for shape, s in self.plan.matrices]))
        if Orthogonal in wanted:
            known = self.spaces, self.nearly
            self.take(centred_rotations(self.measured, self.live, self.threshold, *known))
        blocks: list[int] = []
        if Permutation in wanted:
            blocks = self.blocks()
            self.permutations(permutation_shapes(self.live, blocks))
        if lie:
            self.take(self.matrices(self.segments()))
        if PositiveDiagonal in wanted:
            known = self.spaces, self.nearly
            self.take(scales(self.measured, self.live, self.threshold, self.rng, *known))
            self.take(shifted_scales(self.measured, self.live, self.threshold, self.rng, self.spaces))
        if Permutation in wanted:
            asked = set(permutation_shapes(self.live, blocks))
            shapes = permutation_shapes(self.live, self.blocks())
            self.permutations([shape for shape in shapes if shape not in asked])
        if SignDiagonal in wanted:
            bases = sign_bases([*self.spaces, *self.nearly])
            self.take(signs(self.loss, bases, self.spaces, self.rng, self.skip))
        self.unchain()

    def unchain(self) -> None:
        """Splits scales shared by the layers of a stack into independent scales per layer, if these hold."""
        for space in [*self.spaces]:
            for chain in chains(space):
                if not self.loss.affords(3 * self.plan.trials):
                    self.unasked.append(
                        f"scales of every layer of a stack ({3 * self.plan.trials} evaluations)"
                    )
                    return
                if not (one := self.certified(chain)).certificate.holds:
                    continue
                self.links.append((chain, one))
                for kind in {SignDiagonal, Permutation} & set(self.plan.groups):
                    alike = chain.of(kind)
                    if (other := self.certified(alike)).certificate.holds:
                        self.links.append((alike, other))
                break

    def certified(self, candidate: Space | Chain) -> Found:
        symmetry = self.made(candidate, len(self.found))
        return Found(symmetry, self.certify(symmetry), candidate.gap)

    def matrices(self, questions: Iterable[tuple[Shape, list[Site]]]) -> Iterator:
        asked = []
        for shape, sites in questions:
            if sites and rows(shape, len(self.measured.points)) < len(sites) + 4:
                self.unasked.append(
                    f"matrices {shape} on {len(sites)} words (they need {points_needed(shape, len(sites))} "
                    f"gradients, kept are {len(self.measured.points)})"
                )
                self.unfinished |= {group.__name__ for group in MATRICES}
            elif sites:
                asked.append((shape, sites))
        known = self.spaces, self.nearly
        return matrix_groups(self.products, asked, self.plan.groups, self.threshold, self.rng, *known)

    def permutations(self, shapes: Sequence[Shape]) -> None:
        self.take(permutations(self.loss, self.live, shapes, self.rng, self.spaces, self.skip))

    def with_gradient(self, sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if site.path not in self.dark]

    def segments(self) -> list[tuple[Shape, list[Site]]]:
        """Questions about segments of axes on which no group found so far acts as a whole."""
        bare = [place for place in self.live if not self.explains(place)]
        questions = [*segment_questions(bare, [p.length for p in self.live], self.plan.heads)]
        needed = max([0, *(points_needed(shape, len(sites)) for shape, sites in questions)])
        extra = min(needed - self.plan.whole, self.plan.cost.segments)
        if extra > 0 and not self.skip(extra, "pieces of fused axes", *MATRICES):
            self.measured.points.extend(more_points(self.loss, self.rng, extra))
        return questions

    def explains(self, place: Place) -> bool:
        """Whether a known space acts on the whole axis and rules out further matrix groups there."""
        return any(
            spec.site.path == place.path and spec.site.axis == place.axis and spec.site.whole and fills(space)
            for space in self.spaces
            for spec in space.specs
        )

    def blocks(self) -> list[int]:
        """Numbers of blocks (heads, normalization groups) given by `heads` or by the spaces found so far."""
        counts: dict[int, int] = dict.fromkeys(self.plan.heads or (), len(self.spaces) + 1)
        for space in self.spaces:
            group = space.group
            if isinstance(group, PositiveDiagonal) and all(spec.site.tail > 1 for spec in space.specs):
                counts[group.size] = counts.get(group.size, 0) + 1
            elif group.per and not isinstance(group, Permutation):
                counts[group.lengths[0]] = counts.get(group.lengths[0], 0) + 1
        often = sorted((count for count in counts if count > 1), key=lambda count: -counts[count])
        return often[:MOST_BLOCKS]

    def skip(self, evaluations: int, what: str, *groups: type) -> bool:
        """Whether `evaluations` more would exceed the budget; if so, records what was skipped."""
        if self.loss.affords(evaluations + self.plan.trials):
            return False
        self.unasked.append(f"{what} ({evaluations} evaluations)")
        self.unfinished |= {group.__name__ for group in groups}
        return True

    def take(self, answers: Iterable[tuple[Look, list[list[Space]]]]) -> None:
        for look, candidates in answers:
            self.looked.append(look)
            if look.only:
                self.unfinished.add(SignDiagonal.__name__)
            for options in candidates:
                self.offer([space for space in options if isinstance(space.group, self.plan.groups)])

    def offer(self, options: Sequence[Space]) -> None:
        """Keeps the first option that holds, or else the first that holds approximately."""
        tried: list[tuple[Space, Found]] = []
        for space in options:
            if follows(space, self.known(space)):
                continue
            try:
                symmetry = self.made(space, len(self.found))
            except ValueError as error:
                self.unsaid.append(f"{space.group} ({error})")
                continue
            if not self.certifiable():
                self.unasked.append(f"the certificate of {space.group} ({self.plan.trials} evaluations)")
                self.unfinished.add(type(space.group).__name__)
                continue
            tried.append((space, Found(symmetry, self.certify(symmetry), space.gap)))
            if tried[-1][1].certificate.holds:
                break
        if not tried:
            return
        order = [*HOLDS, "approximate", "wrong"]
        space, best = min(tried, key=lambda pair: order.index(pair[1].certificate.outcome))
        if best.certificate.holds:
            self.spaces.append(space)
            self.found.append(best)
        elif best.certificate.outcome == "wrong":
            self.rejected.append((space, best))
        elif not follows(space, self.nearly):
            self.nearly.append(space)
            self.found_nearly.append(best)

    def known(self, space: Space) -> list[Space]:
        """The spaces in which this one would be redundant; approximate ones count unless it is exact."""
        return [*self.spaces, *(self.nearly if space.gap[0] > self.threshold else ())]

    def certifiable(self) -> bool:
        """Whether another certificate is within the budget and within the plan's limit."""
        self.certificates += 1
        return self.loss.affords(self.plan.trials) and self.certificates <= self.plan.candidates

    def made(self, space: Space | Chain, number: int) -> NetworkSymmetry:
        return symmetry_of(*space.named(number), self.loss.given)

    def told(self) -> tuple[Found, ...]:
        """Returns the symmetries found, except those implied by others, ordered by group and renumbered."""
        linked = {(type(chain.group), chain.axes) for chain, _ in self.links}
        pairs: list[tuple[Space | Chain, Found]] = [
            (space, one)
            for space, one in zip(self.spaces, self.found, strict=True)
            if (type(space.group), space.axes) not in linked
            and not follows(space, [other for other in self.spaces if other is not space])
        ]
        pairs += self.links
        for k, (space, one) in enumerate(zip(self.nearly, self.found_nearly, strict=True)):
            if not follows(space, [*self.spaces, *self.nearly[k + 1 :]]):
                pairs.append((space, one))
        pairs.sort(key=lambda pair: GROUPS.index(type(pair[0].group)))
        return tuple(
            dataclasses.replace(one, symmetry=self.made(space, number))
            for number, (space, one) in enumerate(pairs)
        )

    def notes(self) -> Iterator[str]:
        special = [path for path, leaf in self.loss.leaves.items() if leaf.size > 1 and np.ptp(leaf) == 0]
        if special:
            yield (
                f"At special values, where relations hold that hold nowhere else: {_listed(special)}. The "
                "search is at perturbed values of all arrays, certificates are there and at `params`."
            )
        if self.certify.rough:
            yield "The gradient at `params` itself is not finite: certificates are at points near them only."
        if self.loss.skipped:
            yield f"Not arrays of floats, and left as they are: {_listed(self.loss.skipped)}."
        if self.loss.narrow:
            yield f"The loss does not run in double precision ({self.loss.narrow}), and tolerances follow."
        elif self.loss.precision > DOUBLE:
            yield (
                f"Parts of the loss are computed outside of JAX, to {self.loss.precision:.0e} only, and "
                "tolerances follow."
            )
        if self.unsaid:
            yield f"Relations that no spec can say: {_listed(self.unsaid)}."
        if partly := [look.only for look in self.looked if look.only]:
            yield f"Too many for all combinations, so that only some were tried: {_listed(partly)}."
        if self.unasked:
            yield f"Not asked, beyond the budget or the memory: {_listed(self.unasked)}."


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fills(space: Space) -> bool:
    """Whether a space rules out other matrix groups on the axes on which it acts as a whole.

    Scaled rotations do not: a head that rotates only partially shows pairs along all of it. Neither do groups
    that act identically on copies: fused queries, keys and values may rotate together, but also
    independently.
    """
    if isinstance(space.group, GeneralLinear):
        return True
    return not isinstance(space.group, ScaledRotation) and all(spec.site.copies == 1 for spec in space.specs)
