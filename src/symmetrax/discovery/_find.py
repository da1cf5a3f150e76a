"""`find_symmetries`: from a loss and its parameters to certified symmetries."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from symmetrax._keys import check_key
from symmetrax.discovery._ask import ask
from symmetrax.discovery._certify import Certifier
from symmetrax.discovery._evidence import Evidence
from symmetrax.discovery._loss import Loss
from symmetrax.discovery._plan import Plan
from symmetrax.discovery._report import Discovery, notes_of, symmetries_of
from symmetrax.discovery._scope import GROUPS
from symmetrax.groups._diagonal import AbstractGroup


def find_symmetries(
    loss: Callable[..., Array],
    params: PyTree,
    key: Key[Array, ""],
    *,
    batch: Any = None,
    groups: Sequence[type[AbstractGroup]] = GROUPS,
    heads: int | Sequence[int] | None = None,
    budget: int | None = None,
    trials: int = 3,
    method: str = "auto",
    seconds: float | int | None = None,
    memory: float | int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Discovery:
    """Discovers the symmetries of a loss from its program and its gradients, and certifies each one.

    The traced program of the loss shows which axes of which arrays meet in one hidden space, how it is split
    into heads or concatenated with others, and what is done to it: a ReLU keeps positive scales, an odd
    function signs, a product of matrices any matrix. Gradients find what no rule says, and symmetries of
    losses that the trace cannot see into.

    If a group acts on some axes of the parameters, the loss is constant along its orbits, so moments of
    gradient and parameter sum to zero over these axes. With G the gradient with respect to W, of shape (n,
    rest), and M = G W^T, the sum over axes of M vanishes for general matrices, of M - M^T for rotations, and
    of charge * diag(M) for scalings. Every axis, in every layout of merged and concatenated axes, is a column
    of one matrix whose rows are gradients at generic points; its null space is the list of specs.
    Permutations show up as equal slices of the gradient when two units are made equal, signs as equal losses
    when units are flipped.

    Every candidate is certified with random elements, at `params` and at generic points around them, by the
    loss and by the gradient law of every array. All computations are in double precision, regardless of the
    precision of the loss and of `params`.

    **Arguments:** `loss(params)`, or `loss(params, batch)` if you pass `batch` or the loss requires one,
    returns a scalar that JAX can differentiate. `params` is any pytree; only its floating-point arrays are
    searched. `batch` is a batch, or a function that draws one from a key: then the certificates also use
    fresh batches. `groups` restricts the search, and `heads` the numbers of heads that a merged axis is split
    into (default: all divisors). `budget` limits the number of evaluations of the loss, counting both
    gradients and values; questions skipped for lack of budget are listed in the report. `trials` is the
    number of random elements per certificate. `method` is "program" (about 20 evaluations, for models of any
    size), "gradients", or "auto": both, unless there are more than 300,000 parameters, for which the search
    with gradients is long. After so many `seconds` no further evaluation is started, but that in progress
    ends. `memory` is the number of bytes that the arrays of the search may take at once, among them the
    temporary ones of the compiled loss, but not Python, the compiler (together about 0.5 GB) and what you
    pass. `progress` is called with a line for every question and certificate, for instance `print`. If you
    interrupt the search (Ctrl-C), it returns what is certified so far.

    **Returns** a `Discovery`; print it for a table, `discovery.text` is code that constructs the symmetries
    found. Raises ValueError if the loss is not a finite scalar, is random, or does not depend on `params`, if
    there are no floating-point arrays, and if the budget or the memory is too small.

    >>> import jax, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(4), "out": jnp.ones((2, 4))}
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> def loss(p):
    ...     return jnp.mean((jax.nn.relu(x @ p["w"].T + p["b"]) @ p["out"].T - x[:, :2]) ** 2)
    >>> found = find_symmetries(loss, params, jax.random.key(1))
    >>> for one in found:
    ...     print(one.group, one.certificate.outcome, dict(one.symmetry.specs))
    PositiveDiagonal(4) exact {'b': 's0', 'out': '_ s0*', 'w': 's0 _'}
    Permutation(4) exact {'b': 'p1', 'out': '_ p1', 'w': 'p1 _'}
    """
    check_key(key)
    plan = Plan.of(params, groups, heads, trials, method=method, memory=memory)
    return carry_out(plan, loss, params, key, batch=batch, budget=budget, seconds=seconds, progress=progress)


def carry_out(
    plan: Plan,
    loss: Callable[..., Array],
    params: PyTree,
    key: Key[Array, ""],
    *,
    batch: Any = None,
    budget: int | None = None,
    seconds: float | int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Discovery:
    """Carries out a search with the questions of a plan, which may be your own.

    The order is fixed: gradients at generic points, the points of certificates, then the questions. All of
    them draw from one random stream.

    >>> import jax.numpy as jnp, symmetrax as sx
    >>> from symmetrax.discovery._matrix_groups import MatrixGroups
    >>> params = {"w": jnp.ones(3)}
    >>> plan = Plan.of(params, [sx.groups.Orthogonal], None, trials=1, questions=[MatrixGroups()])
    >>> found = carry_out(plan, lambda p: jnp.sum(p["w"] ** 2), params, jax.random.key(0))
    >>> [str(one.group) for one in found], found.evaluations <= plan.cost.total
    (['Orthogonal(3)'], True)
    """
    start = time.perf_counter()
    plan.afford(budget)
    plan.memory.check(plan.scope.size)  # one copy at least; known exactly once the loss is compiled
    if seconds is not None and not seconds > 0:
        raise ValueError(f"`seconds` must be a positive number, or None for no limit; got {seconds}.")
    draw, certify = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    # The mode of the caller, in which the loss has to be traced: it may create arrays of its own.
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with jax.enable_x64(True):
        until = None if seconds is None else start + seconds
        problem = Loss(loss, params, draw, batch, budget, x64=x64, until=until, memory=plan.memory)
        evidence = Evidence(problem, plan.scope, rng, points=plan.cost.points, kept=plan.whole)
        # Before any question, so that all candidates are certified at the same points.
        certifier = Certifier(problem, certify, rng, trials=plan.scope.trials, most=plan.candidates)
        try:
            ask(plan.questions, evidence, certifier, progress, plan.cost)
        except KeyboardInterrupt:
            evidence.leave_out("what was left when you interrupted the search", *plan.scope.groups)
        searched = any(question.exhaustive for question in plan.questions)
        if not searched:
            evidence.unfinished |= {group.__name__ for group in plan.scope.groups}
    return Discovery(
        found=symmetries_of(evidence),
        rejected=tuple(evidence.rejected),
        asked=tuple(group.__name__ for group in plan.scope.groups),
        unfinished=tuple(sorted(evidence.unfinished)),
        looked=tuple(evidence.looked),
        idle=evidence.measured.idle,
        steep=evidence.measured.steep,
        notes=tuple(notes_of(evidence, rough=certifier.rough, searched=searched)),
        cost=plan.cost,
        evaluations=problem.evaluations,
        seconds=time.perf_counter() - start,
    )
