"""Extra arguments of an optimizer's `update`: each optimizer receives those that it accepts."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from symmetrax._programs import once, opened

#: Arguments that describe a loss to an optimizer; none of them is an argument of the loss.
ABOUT_THE_LOSS = ("value", "grad", "value_fn")


def bound(value_fn: Callable, given: Mapping[str, Any]) -> Callable:
    """Returns `value_fn` as a function of the parameters alone; its other arguments come from `given`.

    This is how optax's line searches call it. They raise for arguments that their `value_fn` does not
    accept; this one takes all of `given` and ignores the rest. Raises TypeError if an argument is missing.

    >>> distance = bound(lambda x, target: (x - target) ** 2, {"target": 3.0, "key": None})
    >>> distance(1.0), distance(1.0, key=None)
    (4.0, 4.0)
    """
    names = [name for name in given if name not in ABOUT_THE_LOSS]
    taken = {name: given[name] for name in names if name in _parameters(value_fn)}
    missing = [name for name, needed in _parameters(value_fn).items() if needed and name not in taken]
    if missing:
        raise TypeError(
            f"`value_fn` needs {', '.join(missing)} besides the parameters, which `update` was not given: "
            f"call update(grads, state, params, value_fn=..., {missing[0]}=...), or pass a function of the "
            "parameters alone, value_fn=lambda params: loss(params, data)."
        )

    def value(params: PyTree, **ignored: Any) -> Any:
        return explained(value_fn, params, **taken)

    # optax reads the signature to find out which of its extra arguments `value_fn` accepts.
    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    value.__signature__ = inspect.Signature([first, *others])  # pyright: ignore[reportFunctionMemberAccess]
    return value


def explained(loss: Callable, params: PyTree, *args: Any, **extra: Any) -> Any:
    """Returns loss(params, ...), with a clear error if it calls a part that was filtered out of the model.

    A batch of None is not passed to a loss that takes parameters alone.

    >>> explained(lambda w: w["act"](1.0), {"act": None})
    Traceback (most recent call last):
    TypeError: The loss uses a part of the model that is None in `params`, since they were filtered. ...
    """
    if args == (None,) and not extra and not takes_batch(loss):
        args = ()
    try:
        return loss(params, *args, **extra)
    except (TypeError, AttributeError) as error:  # None was called, or an attribute of None was read
        filtered = any(leaf is None for leaf in jax.tree.leaves(params, is_leaf=lambda x: x is None))
        if not filtered or "NoneType" not in str(error):
            raise
        raise TypeError(
            "The loss uses a part of the model that is None in `params`, since they were filtered. Put the "
            "model together again before it is called: lambda w: loss(eqx.combine(w, model))."
        ) from error


def takes_batch(loss: Callable) -> bool:
    """Whether a loss can be called with a batch after the parameters, as far as its signature tells.

    >>> takes_batch(lambda params: 0.0), takes_batch(lambda params, batch: 0.0)
    (False, True)
    """
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # not every callable has a signature
        return True
    return True


def _parameters(value_fn: Callable) -> dict[str, bool]:
    """Returns the parameters of a loss after the first, by name, and whether each is required."""
    try:
        found = [*inspect.signature(value_fn).parameters.values()][1:]
    except (TypeError, ValueError):  # not every callable has a signature
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: one.default is one.empty for one in found if one.kind in by_name}


def updated(
    optimizer: optax.GradientTransformation,
    updates: PyTree,
    state: optax.OptState,
    params: PyTree,
    offered: Mapping[str, Any],
    value: Callable[[], Any] | None = None,
) -> tuple[PyTree, optax.OptState]:
    """Makes one update of an optimizer, passing those of `offered` that it accepts.

    `value()` is the loss here, for optimizers that need it if `offered` lacks it.

    >>> import optax
    >>> step = optax.sgd(0.1)
    >>> float(updated(step, 1.0, step.init(0.0), 0.0, {"batch": None})[0])
    -0.1
    """
    stepper, given = optax.with_extra_args_support(optimizer), dict(offered)
    while True:
        try:
            return stepper.update(updates, state, params, **given)
        except TypeError as error:
            # optax optimizers do not declare what they accept: those in a chain are hidden in closures.
            unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unexpected is not None and unexpected[1] in given:
                del given[unexpected[1]]
            elif value is not None and "value" not in given and re.search(r"missing .*'value'", str(error)):
                given["value"] = value()
            else:
                raise


def one_program(update: Callable) -> Callable:
    """Makes an optax `update` run as one program when called outside of compiled code.

    It compiles only once, no matter how often its closures and its `value_fn` are recreated.

    >>> import jax.numpy as jnp, optax
    >>> sgd = optax.sgd(0.5)
    >>> updates, state = one_program(sgd.update)(jnp.ones(2), sgd.init(jnp.ones(2)), jnp.ones(2))
    >>> print(updates)
    [-0.5 -0.5]
    """

    @functools.wraps(update)
    def call(updates: PyTree, state: optax.OptState, params: PyTree = None, **extra: Any) -> Any:
        value_fn = extra.pop("value_fn", None)
        if value_fn is None or params is None:
            rest = {"value_fn": value_fn} if value_fn is not None else {}
            return once(lambda *given: update(*given[:3], **given[3], **rest), updates, state, params, extra)
        value_fn = bound(value_fn, extra)
        # What the loss closes over becomes an argument, so that fresh data do not mean a fresh program.
        apply, constants = opened(value_fn, params)

        def whole(constants, updates, state, params, extra):
            return update(updates, state, params, value_fn=lambda w: apply(constants, w), **extra)

        return once(whole, constants, updates, state, params, extra)

    return call
