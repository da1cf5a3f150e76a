"""All questions of a search, in the order in which they are asked."""

from symmetrax._text import near_match
from symmetrax.discovery._centred import CentredRotations
from symmetrax.discovery._chains import StackedScales
from symmetrax.discovery._matrix_groups import MatrixGroups
from symmetrax.discovery._offsets import OffsetScales
from symmetrax.discovery._permutations import Permutations
from symmetrax.discovery._program import Program
from symmetrax.discovery._question import Question
from symmetrax.discovery._scales import Scales
from symmetrax.discovery._scope import Scope
from symmetrax.discovery._segments import Segments
from symmetrax.discovery._signs import Signs

#: How candidates are found: read off the program of the loss, searched with gradients, or both if there are
#: not too many parameters.
METHODS = ("auto", "program", "gradients")

#: The largest number of parameters for which "auto" also searches with gradients.
MOST_SEARCHED = 300_000

#: Large groups first, so that what they imply need not be found again. Each question may use what the
#: earlier ones found, and all of them draw from one random stream: a new order gives new points.
QUESTIONS: tuple[Question, ...] = (
    Program(),  # states most spaces, so that few are left to be found from gradients
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


def questions_of(method: str, scope: Scope) -> tuple[Question, ...]:
    """The questions of a method, for arrays of this size. Raises ValueError for other methods.

    >>> import jax.numpy as jnp
    >>> large = Scope.of({"w": jnp.ones((1000, 1000))})
    >>> [type(question).__name__ for question in questions_of("auto", large)]
    ['Program']
    """
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}."
            f"{near_match(str(method), METHODS)}"
        )
    small = scope.size <= 8 * MOST_SEARCHED
    if method == "program" or (method == "auto" and not small):
        return QUESTIONS[:1]
    return QUESTIONS[method == "gradients" :]
