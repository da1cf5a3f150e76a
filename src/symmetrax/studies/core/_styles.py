"""How arms look: one place that decides for all plots."""

import itertools
from collections.abc import Iterable
from typing import Any

#: Okabe and Ito's colors, which color-blind readers can tell apart, without their yellow, which is hard to
#: see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK, GRAY = COLORS
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2, 2, 6, 2)))

#: Arms of several experiments by color, which shows their kind; a bar stands before the next of `DASHES`.
_KNOWN = {
    BLUE: "vanilla learned lstm lr-tele exact-carry | vanilla-2nd lstm-tricks | vanilla-orbit",
    ORANGE: "rnnprop teleport lr-tele-momentum action-reset | rnnprop-tricks teleport-2nd "
    "| teleport-off as-printed action-keep | random",
    GREEN: "teleport-guarded peak coordinates | peak-polyak coordinates-neurons | peak-off",
    PINK: "peak-near update | oracle update-tele",
    AMBER: "paper-teleport teleport-schedule lr-momentum | newton teleport-schedule-2nd "
    "| lbfgs teleport-schedule-off | teleport-schedule-orbit",
    SKY: "paper-vanilla teleport-schedule-guarded lr | exact-tuned",
    BLACK: "adam none median | momentum | adam-there adam-0.5 reset proportional unchanged | warm-momentum",
    GRAY: "gd sgd none-tuned | gd-3e-4 gd-tuned | gd-budget sgd-there | gd-tuned-budget",
}
#: Their colors, and the places of their dashes.
KNOWN = {
    name: (color, dash)
    for color, looks in _KNOWN.items()
    for dash, names in enumerate(looks.split("|"))
    for name in names.split()
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
