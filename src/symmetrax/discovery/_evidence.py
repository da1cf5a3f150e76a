"""What a search knows: gradients at generic points, the spaces that hold, and what it had to leave out."""

from collections.abc import Hashable

import numpy as np

from symmetrax.discovery._found import Found, Look
from symmetrax.discovery._loss import Loss
from symmetrax.discovery._moments import Products
from symmetrax.discovery._points import measure, more_points
from symmetrax.discovery._relations import threshold
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._spaces import Candidate, Refinement, Space
from symmetrax.groups._diagonal import AbstractGroup


class Evidence:
    """The record that questions read, and that grows with every answer.

    Measured: gradients at `points` generic points, the first `kept` of them in full (`measured`), their
    `products` with the parameters, and the `live` axes, those of arrays with a gradient. Certified: spaces
    that hold, those that hold approximately, refinements of the first, and rejected ones. Left out:
    `unasked` questions, `unfinished` groups, and `inexpressible` candidates.

    >>> import jax, jax.numpy as jnp
    >>> params, key, rng = {"w": jnp.ones(3)}, jax.random.key(0), np.random.default_rng(0)
    >>> with jax.enable_x64(True):
    ...     loss = Loss(lambda p: jnp.sum(p["w"] ** 2), params, key, None, budget=9, x64=False)
    ...     evidence = Evidence(loss, Scope.of(params), rng, points=2, kept=0)
    >>> [place.path for place in evidence.live], evidence.spaces
    (['w'], [])
    >>> evidence.lacks(50, "a guess"), evidence.unasked
    (True, ['a guess (50 evaluations)'])
    """

    def __init__(self, loss: Loss, scope: Scope, rng: np.random.Generator, *, points: int, kept: int):
        self.loss, self.scope, self.rng = loss, scope, rng
        #: Largest singular value or difference that counts as zero.
        self.threshold = threshold(loss.precision)
        self.measured = measure(loss, scope.places, rng, count=points, whole=kept)
        self.products = Products(self.measured, scope.share)
        # Without a gradient, every relation holds for an array, and none of them means anything.
        dark = {*self.measured.idle, *self.measured.steep}
        self.live = [place for place in scope.places if place.path not in dark]
        self.holding: list[tuple[Space, Found]] = []
        self.approximate: list[tuple[Space, Found]] = []
        # Apart from the spaces, because refinements imply nothing: what they split has done so already.
        self.refined: list[tuple[Refinement, Found]] = []
        self.rejected: list[Found] = []
        self.looked: list[Look] = []
        self.unasked: list[str] = []
        self.unfinished: set[str] = set()
        self.inexpressible: list[str] = []
        #: Operations of the program without a rule, or why it could not be read.
        self.unread = ""
        # What repeated questions have covered; they hold no state of their own.
        self._asked: set[Hashable] = set()

    @property
    def spaces(self) -> list[Space]:
        """The spaces that hold so far. They may imply others, which then need not be found."""
        return [space for space, _ in self.holding]

    @property
    def nearly(self) -> list[Space]:
        """The spaces that hold approximately. They imply no exact ones, because they may contain these."""
        return [space for space, _ in self.approximate]

    def holds(self, candidate: Candidate) -> bool:
        """Whether this candidate was certified and holds."""
        return any(candidate is one for one, _ in (*self.holding, *self.refined))

    def lacks(
        self, evaluations: int, what: str, *groups: type[AbstractGroup], spare: int | None = None
    ) -> bool:
        """Whether the budget does not allow this many more evaluations; if so, records what is left out.

        `spare` evaluations must remain afterwards: by default those of one certificate, without which
        candidates would be of no use.
        """
        spare = self.scope.trials if spare is None else spare
        if self.loss.affords(evaluations + spare):
            return False
        self.leave_out(f"{what} ({evaluations} evaluations)", *groups)
        return True

    def leave_out(self, what: str, *groups: type[AbstractGroup]) -> None:
        """Records a question that is not asked, and the groups that the report must not call absent."""
        self.unasked.append(what)
        self.unfinished |= {group.__name__ for group in groups}

    def first_time(self, what: Hashable) -> bool:
        """Whether this is the first call with `what`: for questions that are asked more than once."""
        new = what not in self._asked
        self._asked.add(what)
        return new

    def keep_more(self, points: int) -> None:
        """Computes and keeps gradients at more generic points."""
        self.measured.points.extend(more_points(self.loss, self.rng, points))
