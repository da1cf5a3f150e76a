"""A learned optimizer on something real: the coordinate-wise LSTM trains classifiers of handwritten digits.

Meta-trained on networks of several widths with fresh initializations and minibatch orders, evaluated on
unseen ones against Adam and gradient descent tuned on the training stream.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Array, PyTree

from symmetrax.learned._coordinatewise import CoordinatewiseLSTM
from symmetrax.studies._registry import EXPERIMENTS
from symmetrax.studies.core._arm import Build, Learned, Tuned
from symmetrax.studies.core._hand_made import adam, descent
from symmetrax.studies.core._meta_training import Budget
from symmetrax.studies.core._panels import Panel, curve_panels, losses
from symmetrax.studies.core._study import Claim, Study
from symmetrax.tasks._base import AbstractTask
from symmetrax.tasks._supervised import Classification

ARMS = (
    Learned("learned", Build.of(CoordinatewiseLSTM, width=20)),
    Tuned("gd", descent, momenta=(0.0,)),
    Tuned("adam", adam, momenta=(0.9,)),
)

CLAIM = Claim(
    "learned",
    "adam",
    "a learned optimizer beats tuned Adam on networks like those it was trained on",
    "Andrychowicz et al. 2016, section 3",
)


def accuracy(task: AbstractTask, params: PyTree) -> dict[str, Array]:
    """The accuracy on unseen images.

    >>> import jax
    >>> from symmetrax.tasks._families import make_family
    >>> task = make_family("digits").task(())
    >>> bool(accuracy(task, task.init(jax.random.key(0)))["accuracy"] < 0.5)  # not trained
    True
    """
    assert isinstance(task, Classification)
    return {"accuracy": task.held_out(params)[1]}


def tables(study: Study, results: dict[str, Any]) -> Iterator[str]:
    """One line with the accuracies of all arms."""
    arms = results["groups"]["digits"]["arms"]
    right = ", ".join(f"{name} {arm['test_accuracy']:.1%}" for name, arm in arms.items())
    yield f"accuracy on unseen images: {right}"


def draw(folder: Path, results: dict[str, Any]) -> None:
    """Loss curves."""
    title = "Classifiers of digits: loss on the next minibatch"
    curves = losses(results["groups"]["digits"]["arms"])
    curve_panels(folder / "digits.png", [Panel(title, curves)])


STUDIES = {
    "digits": Study(
        name="digits",
        title=EXPERIMENTS["digits"].title,
        families=("digits",),
        arms=ARMS,
        references=("adam", "learned"),
        claims=(CLAIM,),
        budget=Budget(runs=1000, steps=100, unroll=20, chunk=10, remat=True),
        seeds=6,
        tasks=50,
        tuning_tasks=8,
        parts=None,
        measure=accuracy,
        figures=(draw,),
        tables=tables,
        quick={
            "seeds": 2,
            "tasks": 10,
            "tuning_tasks": 4,
            "budget": Budget(runs=90, steps=60, unroll=20, chunk=10, remat=True),
        },
    )
}
