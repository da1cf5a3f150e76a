"""All questions of a search, in the order in which they are asked."""

from symmetrax.discovery._centred import CentredRotations
from symmetrax.discovery._chains import StackedScales
from symmetrax.discovery._matrix_groups import MatrixGroups
from symmetrax.discovery._offsets import OffsetScales
from symmetrax.discovery._permutations import Permutations
from symmetrax.discovery._question import Question
from symmetrax.discovery._scales import Scales
from symmetrax.discovery._segments import Segments
from symmetrax.discovery._signs import Signs

#: Large groups first, so that what they imply need not be found again. Each question may use what the
#: earlier ones found, and all of them draw from one random stream: a new order gives new points.
QUESTIONS: tuple[Question, ...] = (
    MatrixGroups(),
    CentredRotations(),
    Permutations(),  # of units, and of as many heads as matrix groups reveal
    Segments(),  # only of axes on which nothing acts as a whole
    Scales(),
    OffsetScales(),  # only on vectors without scales
    Permutations(),  # of as many groups as scales of normalized axes reveal
    Signs(),  # on the axes of permutations and scales
    StackedScales(),
)
