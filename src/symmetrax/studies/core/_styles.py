"""How arms look: one place that decides for all plots."""

import itertools
from collections.abc import Iterable
from typing import Any

#: Okabe and Ito's colors, which color-blind readers can tell apart, without their yellow, which is hard to
#: see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK, GRAY = COLORS
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2, 2, 6, 2)))

#: Arms of several experiments, with the place of their dash: colors for kinds of arms, dashes for variants.
KNOWN: dict[str, tuple[str, int]] = {
    "gd": (GRAY, 0),
    "gd-3e-4": (GRAY, 1),
    "gd-tuned": (GRAY, 1),
    "gd-budget": (GRAY, 2),
    "gd-tuned-budget": (GRAY, 3),
    "sgd": (GRAY, 0),
    "sgd-there": (GRAY, 2),
    "momentum": (BLACK, 1),
    "warm-momentum": (BLACK, 3),
    "adam": (BLACK, 0),
    "adam-there": (BLACK, 2),
    "adam-0.5": (BLACK, 2),
    "newton": (AMBER, 1),
    "lbfgs": (AMBER, 2),
    "oracle": (PINK, 1),
    "vanilla": (BLUE, 0),
    "vanilla-2nd": (BLUE, 1),
    "vanilla-orbit": (BLUE, 2),
    "paper-vanilla": (SKY, 0),
    "learned": (BLUE, 0),
    "lstm": (BLUE, 0),
    "lstm-tricks": (BLUE, 1),
    "rnnprop": (ORANGE, 0),
    "rnnprop-tricks": (ORANGE, 1),
    "teleport": (ORANGE, 0),
    "teleport-2nd": (ORANGE, 1),
    "teleport-off": (ORANGE, 2),
    "random": (ORANGE, 3),
    "paper-teleport": (AMBER, 0),
    "teleport-guarded": (GREEN, 0),
    "teleport-schedule": (AMBER, 0),
    "teleport-schedule-2nd": (AMBER, 1),
    "teleport-schedule-off": (AMBER, 2),
    "teleport-schedule-orbit": (AMBER, 3),
    "teleport-schedule-guarded": (SKY, 0),
    "peak": (GREEN, 0),
    "peak-off": (GREEN, 2),
    "peak-near": (PINK, 0),
    "peak-polyak": (GREEN, 1),
    "lr": (SKY, 0),
    "lr-tele": (BLUE, 0),
    "lr-momentum": (AMBER, 0),
    "lr-tele-momentum": (ORANGE, 0),
    "as-printed": (ORANGE, 2),
    "update": (PINK, 0),
    "update-tele": (PINK, 1),
    "coordinates": (GREEN, 0),
    "coordinates-neurons": (GREEN, 1),
    "none": (BLACK, 0),
    "reset": (BLACK, 2),
    "action-reset": (ORANGE, 0),
    "action-keep": (ORANGE, 2),
    "exact-carry": (BLUE, 0),
    "none-tuned": (GRAY, 0),
    "exact-tuned": (SKY, 1),
}


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color, dashes and height of every arm of a figure, no two alike.

    What is known looks as in all figures, the rest as nothing else there. Dashed lines lie above those that
    are solid, and thinner, so that of two that coincide both are seen.

    >>> found = styles(["adam", "mine", "vanilla"])
    >>> found["vanilla"]["color"], found["mine"]["color"]
    ('#0072B2', '#D55E00')
    >>> found["adam"]["zorder"] == found["mine"]["zorder"]
    True
    """
    names = list(dict.fromkeys(names))
    taken = {name: KNOWN[name] for name in names if name in KNOWN}
    for name in reversed(names):  # of two known arms of one look the second gives way
        if name in taken and taken[name] in [look for other, look in taken.items() if other != name]:
            del taken[name]
    colors = [color for color in COLORS if color not in {color for color, _ in taken.values()}]
    looks = [(color, dash) for dash in range(len(DASHES)) for color in [*colors, *COLORS]]
    unused = [look for look in dict.fromkeys(looks) if look not in taken.values()]
    free = itertools.chain(unused, itertools.cycle(looks))
    taken |= {name: next(free) for name in names if name not in taken}
    return {name: _style(*taken[name]) for name in names}


def _style(color: str, dash: int) -> dict[str, Any]:
    return {
        "color": color,
        "linestyle": DASHES[dash],
        "linewidth": (2.0, 1.5, 1.5, 1.3, 1.3)[dash],
        "zorder": 2 + 0.1 * dash,
    }


def dash_array(style: dict[str, Any]) -> str:
    """The dashes of a style as SVG and plotly write them, in pixels; empty for a solid line.

    >>> dash_array(styles(["momentum"])["momentum"])
    '6px,2.25px'
    """
    if style["linestyle"] == "-":
        return ""
    # Matplotlib measures dashes in widths of the line.
    return ",".join(f"{style['linewidth'] * length:.3g}px" for length in style["linestyle"][1])
