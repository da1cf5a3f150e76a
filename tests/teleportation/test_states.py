"""The state of every optimizer of optax is that of its history in the new coordinates, or rejected."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import symmetrax as sx

# `carry` is what `transport="carry"` does to a state, here with elements that no search finds.
from symmetrax.teleportation._transport import carry

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

SHAPES = {"w1": (3, 2), "w2": (2, 3)}
STEPS = 4
SCALES = np.array([2.0, 0.3, -1.7])

#: Those that need more of a problem than a history of gradients: Hessians, matrices of a shape, a loss.
ELSEWHERE = ("sophia", "galore", "polyak_sgd")

#: Arguments that optimizers need besides a learning rate.
ARGUMENTS = {
    "adagrad": {"eps": 1e-30},
    "fromage": {},
    "lbfgs": {"linesearch": None},
    "polyak_sgd": {"max_learning_rate": 0.1},
    "sgd": {"momentum": 0.9},
    "rprop": {},
}
WITHOUT_RATE = ("momo", "momo_adam", "polyak_sgd", "cocob", "prodigy", "dadapt_adamw", "dog", "dowg")
WRAPPED = {
    "rmsprop, centered": optax.rmsprop(0.1, centered=True),
    "rmsprop, momentum": optax.rmsprop(0.1, momentum=0.9),
    "injected adamax": optax.inject_hyperparams(optax.adamax)(0.1),
    "injected adopt": optax.inject_hyperparams(optax.contrib.adopt, static_args="clip_value_fn")(0.1),
    "masked adopt": optax.masked(optax.contrib.adopt(0.1), {"w1": True, "w2": False}),
    "chained adopt": optax.chain(optax.zero_nans(), optax.contrib.adopt(0.1)),
    "MultiSteps of adamax": optax.MultiSteps(optax.adamax(0.1), 2).gradient_transformation(),
    "schedule-free": optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "sharpness-aware": optax.contrib.sam(optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)),
    "sharpness-aware of adopt": optax.contrib.sam(optax.contrib.adopt(0.1), optax.sgd(0.1)),
    "mechanized": optax.contrib.mechanize(optax.sgd(0.1)),
    "split": optax.contrib.split_real_and_imaginary(optax.adam(0.1)),
    "momentum of L-BFGS": optax.chain(optax.scale_by_lbfgs(2), optax.trace(0.9)),
}
#: Those that can be carried, by name; all others must be rejected.
CARRIED = {
    *(
        "adabelief",
        "adagrad",
        "adam",
        "adamax",
        "adamaxw",
        "adamw",
        "adan",
        "amsgrad",
        "fromage",
        "lamb",
        "lbfgs",
    ),
    *("lion", "nadam", "nadamw", "radam"),
    *("optimistic_gradient_descent", "rmsprop", "sgd", "sign_sgd", "yogi", "signum", "fromage"),
    *("scale_by_madgrad", "acprop", "ademamix", "adopt", "madgrad", "muon", "simplified_ademamix"),
    *(
        "rmsprop, centered",
        "injected adamax",
        "injected adopt",
        "masked adopt",
        "chained adopt",
    ),
    *(
        "MultiSteps of adamax",
        "sharpness-aware",
        "sharpness-aware of adopt",
        "split",
        "scale_by_learning_rate",
    ),
}


FUNCTIONS = types.FunctionType, functools.partial


def optimizers():
    """Every function of optax and optax.contrib that takes a learning rate and makes an optimizer."""
    found = dict(WRAPPED)
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, lambda x: isinstance(x, FUNCTIONS)):
            takes = inspect.signature(function).parameters
            if "learning_rate" not in takes and name not in WITHOUT_RATE:
                continue
            rate = {"learning_rate": 0.1} if "learning_rate" in takes else {}
            try:
                made = function(**rate, **ARGUMENTS.get(name, {}))
            except (TypeError, Warning):  # no optimizer, or one whose successor is here too
                continue
            if isinstance(made, optax.GradientTransformation) and name not in ELSEWHERE:
                found[name] = made
    return found


OPTIMIZERS = optimizers()


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def moved(tree, scales):
    return {"w1": tree["w1"] * scales[:, None], "w2": tree["w2"] / scales}


def replayed(optimizer, points, gradients):
    stepper = optax.with_extra_args_support(optimizer)
    state = stepper.init(points[0])
    for point, gradient in zip(points, gradients, strict=True):
        extra = {"value": jnp.asarray(1.0), "grad": gradient, "value_fn": lambda w: jnp.asarray(1.0)}
        try:
            _, state = stepper.update(gradient, state, point, **extra)
        except TypeError:
            _, state = stepper.update(gradient, state, point)
    return state


def test_the_table_has_every_optimizer():
    assert len(OPTIMIZERS) > 50
    assert sorted(CARRIED - set(OPTIMIZERS)) == []


#: One of each kind; the others take longer.
QUICK = {
    "adopt",
    "adamax",
    "adagrad",
    "lbfgs",
    "lars",
    "adadelta",
    "schedule-free",
    "injected adopt",
    "dog",
    "madgrad",
}
NAMES = mostly_slow(sorted(OPTIMIZERS), QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_that_of_the_moved_history_or_rejected(name):
    optimizer = OPTIMIZERS[name]
    symmetry = sx.NetworkSymmetry(
        {"h": sx.groups.NonzeroDiagonal(3)}, {"w1": "h _", "w2": "_ h*"}, like=SHAPES_LIKE
    )
    element = {"h": jnp.asarray(SCALES)}
    points, gradients = [draw(i) for i in range(STEPS)], [draw(10 + i) for i in range(STEPS)]
    if name not in CARRIED:
        with pytest.raises(ValueError, match="transport='carry'"):
            sx.teleported(optimizer, symmetry, search=sx.search.ClosedForm(), transport="carry").init(
                points[0]
            )
        return
    state = replayed(optimizer, points, gradients)
    found = carry(state, symmetry, element, points[-1], inner=optimizer)
    there = [moved(point, SCALES) for point in points]
    expected = replayed(optimizer, there, [moved(g, 1 / SCALES) for g in gradients])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            # The average of Yogi starts at 1e-6, which decays.
            np.testing.assert_allclose(x, y, rtol=1e-7, atol=5e-6 if name == "yogi" else 1e-9)


SHAPES_LIKE = {name: np.zeros(shape) for name, shape in SHAPES.items()}
