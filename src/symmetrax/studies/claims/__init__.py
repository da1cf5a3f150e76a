"""Every claim of the papers that a number can settle: what is said, what is measured, the bound, the outcome.

`symmetrax claims` checks all of them; `docs/theory.md` tells what they mean. Each module holds the measures
and, at its end, the claims of one subject.
"""

from symmetrax.studies.claims._algorithm import ALGORITHM
from symmetrax.studies.claims._claim import Claim, Split, check
from symmetrax.studies.claims._descent import DESCENT
from symmetrax.studies.claims._functions import FUNCTIONS
from symmetrax.studies.claims._networks import NETWORKS
from symmetrax.studies.claims._newton import NEWTON
from symmetrax.studies.claims._teleports import TELEPORTS

CLAIMS: tuple[Claim, ...] = (*FUNCTIONS, *NETWORKS, *NEWTON, *ALGORITHM, *DESCENT, *TELEPORTS)

__all__ = ["CLAIMS", "Claim", "Split", "check"]
