"""The cost of a search, in evaluations of the loss."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cost:
    """Evaluations of the loss, counting both gradients and values, by purpose.

    `points` and `checks` are exact; the other fields are upper bounds or, if `usual`, what is usually needed.
    `others` is what questions need that are none of the named kinds. The costs of two questions of one search
    add up, except `points` and `checks`, which all questions share.

    >>> Cost(points=20, segments=0, permutations=10, signs=4, certificates=12).total
    49
    >>> (Cost(points=20, signs=4) + Cost(points=15, permutations=10)).total
    37
    """

    points: int = 0
    segments: int = 0
    permutations: int = 0
    signs: int = 0
    certificates: int = 0
    idle: int = 0
    checks: int = 3
    others: int = 0
    usual: bool = False

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(dataclasses.replace(self, usual=False)))

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.asdict(self).items(), dataclasses.astuple(other), strict=True)
        shared = ("points", "checks", "usual")
        return Cost(**{name: max(a, b) if name in shared else a + b for (name, a), b in pairs})

    def to_json(self) -> dict[str, int]:
        """Returns all fields and the total; `others` only if there are any."""
        fields = dataclasses.asdict(self)
        del fields["usual"]
        if not self.others:  # most searches have none, and readers of older files do not expect the field
            del fields["others"]
        return fields | {"total": self.total}

    def __str__(self) -> str:
        if self.usual:
            return f"about {self.total}, of which {self.certificates} for certificates"
        others = f"{self.others} for other questions, " if self.others else ""
        return (
            f"{self.checks} checks, {self.points} gradients at generic points; at most "
            f"{self.idle} for arrays without a gradient, {self.segments} more for fused axes, "
            f"{self.permutations} for permutations, {self.signs} for signs, {others}{self.certificates} for "
            "certificates"
        )
