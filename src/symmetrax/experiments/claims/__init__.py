"""Every claim of the papers that a number can settle: what is said, what is measured, the bound, the outcome.

`symmetrax claims` checks all of them; `docs/theory.md` tells what they mean. Each module holds the measures
and, at its end, the claims of one subject.
"""

from symmetrax.experiments.claims._algorithm import ALGORITHM
from symmetrax.experiments.claims._claim import Claim, Split, check
from symmetrax.experiments.claims._descent import DESCENT
from symmetrax.experiments.claims._functions import FUNCTIONS
from symmetrax.experiments.claims._networks import NETWORKS
from symmetrax.experiments.claims._newton import NEWTON
from symmetrax.experiments.claims._teleports import TELEPORTS

CLAIMS: tuple[Claim, ...] = (*FUNCTIONS, *NETWORKS, *NEWTON, *ALGORITHM, *DESCENT, *TELEPORTS)

__all__ = ["CLAIMS", "Claim", "Split", "check"]
