"""The search for the elements that bring one network nearest to another."""

from collections.abc import Collection, Iterator

import numpy as np

from symmetrax.groups._diagonal import PositiveDiagonal
from symmetrax.symmetry._align._balance import least_norm, regular
from symmetrax.symmetry._align._chain import Chain, Found, Values
from symmetrax.symmetry._align._gains import Gains
from symmetrax.symmetry._align._orders import assign, mixed_order
from symmetrax.symmetry._align._slots import Arrays, Slot
from symmetrax.symmetry._align._steps import fit, gentler_turns, turn


class Search(Chain):
    """Finds values for all slots that move `had` close to `wanted`, both arrays by path.

    Distances say little between networks of different scales, so the search has two stages. The first moves
    both networks to the points of least norm on the orbits of their scales and general linear groups. All
    that is left of these groups there is orthogonal: every remaining problem is one of inner products, solved
    space by space, from several starts. The second stage takes the result back to the given networks, and
    descends their distance, space by space, until it settles.

    >>> import symmetrax as sx
    >>> slot = Slot(0, "h", sx.groups.PositiveDiagonal(1), {"w": "h", "v": "h*"})
    >>> one, other = [{"w": np.array([s]), "v": np.array([1 / s])} for s in (1.0, 2.0)]
    >>> print(Search([slot], one, other, sweeps=9, restarts=0).run().values[0])
    [2.]
    """

    def __init__(self, slots: list[Slot], had: Arrays, wanted: Arrays, *, sweeps: int, restarts: int):
        super().__init__(slots)
        self.had, self.wanted = had, wanted
        self.sweeps, self.restarts = sweeps, restarts
        self.gains = Gains(slots, had)
        self.size = _square(wanted)

    def run(self) -> Found:
        """The nearest of the results from all starts."""
        identity = self.identity()
        start = Found(identity, self.distance(identity), 0, True)
        (had, ours), (wanted, _) = least_norm(self.slots, self.had), least_norm(self.slots, self.wanted)
        random = np.random.default_rng(0)  # a fixed seed, so that the result is reproducible
        # Without permutations and rotations there is a single optimum.
        free = [slot for slot in self.slots if not isinstance(slot.group, PositiveDiagonal)]
        best, highest, sweeps = identity, -np.inf, 0
        for k in range(self.restarts + 3 if free else 1):
            if k < 2:
                values = self.guess(had, wanted, blind=k == 1)
            else:
                values = identity if k == 2 else self.drawn(random)
            values, score, more = self.climb(values, had, wanted)
            sweeps += more
            if score > highest:
                best, highest = values, score
            if self.equal(score, had, wanted):  # nothing is nearer than a copy
                break
        ends = [self.descend(self.returned(best, had, ours), sweeps, 5)]
        if ends[0].square > 1e-20 * self.size:  # no copy: without a change of scales it may be nearer
            plain = [v if slot.compact else slot.identity() for slot, v in zip(self.slots, best, strict=True)]
            ends += [self.descend(values, sweeps, 5) for values in (plain, identity)]
        nearest = min(ends, key=lambda end: end.square)
        if not nearest.settled:
            nearest = self.descend(nearest.values, nearest.sweeps, self.sweeps)
        return nearest if nearest.square < start.square else start

    @staticmethod
    def equal(score: float, had: Arrays, wanted: Arrays) -> bool:
        """Whether this is the inner product of two equal networks."""
        return score >= (1 - 1e-12) * (_square(had) + _square(wanted)) / 2

    def distance(self, values: Values) -> float:
        moved = self.moved(values, self.had)
        return sum(_norm(moved[path] - self.wanted[path]) for path in moved)

    def score(self, values: Values, had: Arrays, wanted: Arrays) -> float:
        moved = self.moved(values, had)
        return float(sum(np.real(np.vdot(wanted[path], moved[path])) for path in wanted))

    # The first stage: between the points of least norm

    def guess(self, had: Arrays, wanted: Arrays, *, blind: bool = False) -> Values:
        """Space by space, first those that act on arrays where nothing else is unknown.

        With `blind`, permutations come first and are told from invariants alone: arrays of low rank say
        little about a rotation, on which permutations would otherwise rely.
        """
        values = self.identity()
        # Of positive scales nothing is left to find.
        scales = {slot for slot in self.slots if isinstance(slot.group, PositiveDiagonal)}
        known = set(scales)
        while len(known) < len(self.slots):
            left = [k for k, slot in enumerate(self.slots) if slot not in known]
            informed = {k: self.gains.informed(self.slots[k], known) for k in left}

            def weight(k: int, informed=informed) -> tuple[float, float]:
                slot = self.slots[k]
                whole = sum(_norm(wanted[path]) for path in slot.specs)
                share = sum(_norm(wanted[path]) for path in informed[k]) / (whole or 1.0)
                return (slot.permutes, share) if blind else (share, slot.permutes)

            k = max(left, key=weight)
            slot = self.slots[k]
            after, before = self.states(values, had, wanted)
            if slot.permutes:
                told = self.gains(slot, after[k], before[k], scales if blind else known)
                step = assign(told)
            else:
                # On two axes of one array an element meets itself, which is not known yet.
                alone = [path for path in informed[k] if not self.gains.tags[slot, path].twice]
                step = turn(slot, after[k], before[k], alone or informed[k])
            values[k] = slot.compose(step, values[k])
            known.add(slot)
        return values

    def climb(self, values: Values, had: Arrays, wanted: Arrays) -> tuple[Values, float, int]:
        """Coordinate ascent of the inner product over all slots, until none improves."""
        score = self.score(values, had, wanted)
        for sweep in range(1, self.sweeps + 1):
            trial = self.ascend(values, had, wanted, range(len(self.slots)))
            higher = self.score(trial, had, wanted)
            if higher > score:
                values = trial
            if higher <= score + 1e-10 * abs(score):
                return values, max(score, higher), sweep
            score = higher
        return values, score, self.sweeps

    def ascend(self, values: Values, had: Arrays, wanted: Arrays, turning: Collection[int]) -> Values:
        """One sweep of better elements for these slots, all of which preserve norms from the first on."""
        # What the slots before have moved, and the target with those after undone: both change by one action
        # from slot to slot, and only the arrays of a slot decide.
        _, before = self.states(values, had, wanted)
        x = had
        for k, slot in enumerate(self.slots):
            x = slot.act(values[k], x)
            if k not in turning:
                continue
            if len(turning) == len(self.slots) and self.gains.inside.get(slot):
                values = self.joint(k, values, had, wanted)
                x = self.moved(values, had, k + 1)
            for step in self.turns(slot, x, before[k]):
                there = slot.act(step, x)
                gain = sum(_inner(before[k][path], there[path] - x[path]) for path in slot.specs)
                if gain > 1e-13 * abs(sum(_inner(before[k][path], x[path]) for path in slot.specs)):
                    values, x = self.added(values, k, step), there
                    break
        return values

    def turns(self, slot: Slot, had: Arrays, wanted: Arrays) -> Iterator[np.ndarray]:
        """Elements that preserve norms and may raise the inner product, the most promising first."""
        if not slot.permutes:
            yield turn(slot, had, wanted)
            if slot.repeated:
                yield from gentler_turns(slot, had, wanted)
            return
        n = slot.group.size
        plain = slot.total((n, n), ((p.taken, p.inner()) for p in slot.pairs(had, wanted)))
        yield assign(plain)
        if slot.repeated:
            yield mixed_order(slot, had, wanted, plain)

    def joint(self, k: int, values: Values, had: Arrays, wanted: Arrays) -> Values:
        """Values with a better order in slot `k` and elements inside of its units that fit this order."""
        slot = self.slots[k]
        after, before = self.states(values, had, wanted)
        trial = self.added(values, k, assign(self.gains(slot, after[k], before[k], set(self.slots))))
        for j, other in enumerate(self.slots):
            if other in self.gains.inside[slot]:
                after, before = self.states(trial, had, wanted)
                trial = self.added(trial, j, next(self.turns(other, after[j], before[j])))
        score = self.score(values, had, wanted)
        return trial if self.score(trial, had, wanted) > score + 1e-13 * abs(score) else values

    # The second stage: between the given networks

    def returned(self, values: Values, had: Arrays, ours: Values) -> Values:
        """The values between the given networks, from those between their points of least norm.

        `had` is the point of least norm of the moved network, and `ours` the way there.
        """
        # With all else undone, the target has its own point of least norm, from which the way leads back.
        low, theirs = least_norm(self.slots, self.undone(values, self.wanted))
        turns = [
            v if k in self.loose else slot.identity()
            for k, (slot, v) in enumerate(zip(self.slots, values, strict=True))
        ]
        # The two points of least norm agree up to rotations, which depend on the way.
        for _ in range(3):
            for k in self.loose:
                turns[k] = self.slots[k].compose(turn(self.slots[k], self.moved(turns, had), low), turns[k])
        found = list(values)
        for k in self.loose:
            slot = self.slots[k]
            found[k] = slot.compose(slot.inverse(theirs[k]), slot.compose(turns[k], ours[k]))
        return found

    def descend(self, values: Values, sweeps: int, most: int) -> Found:
        """Coordinate descent of the distance over all slots, until it settles."""
        square = self.distance(values)
        compact = [k for k, slot in enumerate(self.slots) if slot.compact]
        for sweep in range(1, most + 1):
            trial = self.ascend(self.fitted(values), self.had, self.wanted, compact)
            nearer = self.distance(trial)
            began = square
            if nearer < square:
                values, square = trial, nearer
            if square >= began * (1 - 1e-6) or square <= 1e-30 * self.size:
                return Found(values, square, sweeps + sweep, True)
        return Found(values, square, sweeps + most, False)

    def fitted(self, values: Values) -> Values:
        """One sweep of better elements for the slots that do not preserve norms."""
        wanted = self.undone(values, self.wanted)
        x = self.moved(
            [values[k] if k in self.loose else s.identity() for k, s in enumerate(self.slots)], self.had
        )
        for k in self.loose:
            # These groups commute, so each may act after all others of them; `descend` checks the outcome.
            slot = self.slots[k]
            square = sum(_norm(x[path] - wanted[path]) for path in slot.specs)
            for step in fit(slot, x, wanted):
                trial, there = self.added(values, k, step), slot.act(step, x)
                if regular(slot, trial[k]) and sum(_norm(there[p] - wanted[p]) for p in slot.specs) < square:
                    values, x = trial, there
                    break
        return values


def _inner(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.real(np.vdot(x, y)))


def _norm(x: np.ndarray) -> float:
    return float(np.sum(np.abs(x) ** 2))


def _square(x: Arrays) -> float:
    return sum(_norm(part) for part in x.values())
