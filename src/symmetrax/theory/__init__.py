"""Every proposition about teleportation and Newton's step, as numbers: both sides of it.

A statement is a function. It returns `Sides(left, right, applies)`: what is measured, what the statement says
of it, and whether its conditions are met at the given point. `docs/theory.md` goes through the claims of
the papers, and `symmetrax claims` checks all of them.

>>> import jax.numpy as jnp
>>> from symmetrax import theory
>>> sides = theory.norm_growth(jnp.array([1.0, 3.0]), jnp.diag(jnp.array([1.0, 2.0])))
>>> bool(sides.applies), bool(sides.left >= 0)
(True, True)
"""

from symmetrax.theory._descent import (
    damped_newton,
    decrease_after_teleport,
    descent_lemma,
    isotropic_contraction,
    teleported_sgd,
)
from symmetrax.theory._newton import (
    NewtonParts,
    alignment_change,
    collinearity,
    damped_norm_growth,
    newton_cosine,
    newton_cosine_on_ellipse,
    newton_parts,
    norm_growth,
    norm_slope,
    power_inequality,
    saddle_free,
)
from symmetrax.theory._orbits import (
    flow_acceleration,
    leaves_critical,
    norm_at_scale,
    norm_kept,
    persistence,
    steepest_point,
    teleport_once,
)
from symmetrax.theory._rotation import (
    angle_slope,
    printed_angle_slope,
    step_after_turn,
    turn_to_short_axis,
    turning_threshold,
)
from symmetrax.theory._sides import Sides

__all__ = [
    "NewtonParts",
    "Sides",
    "alignment_change",
    "angle_slope",
    "collinearity",
    "damped_newton",
    "damped_norm_growth",
    "decrease_after_teleport",
    "descent_lemma",
    "flow_acceleration",
    "isotropic_contraction",
    "leaves_critical",
    "newton_cosine",
    "newton_cosine_on_ellipse",
    "newton_parts",
    "norm_at_scale",
    "norm_growth",
    "norm_kept",
    "norm_slope",
    "persistence",
    "power_inequality",
    "printed_angle_slope",
    "saddle_free",
    "steepest_point",
    "step_after_turn",
    "teleport_once",
    "teleported_sgd",
    "turn_to_short_axis",
    "turning_threshold",
]
