"""Pictures of figure 7 and of the frequency of teleports, drawn from the results of a run alone."""

import pathlib
from typing import Any

import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: Shown beside learned updates, if there are any.
ALWAYS = ("lr-tele", "gd-3e-4")
LEARNED = ("update", "update-tele", "coordinates", "coordinates-neurons", *ALWAYS)
PANELS = {
    "The figure's arms": ("gd-3e-4", "lr-tele", "lr-tele-momentum", "as-printed"),
    "Without teleports, and by hand": (
        "lr",
        "lr-tele",
        "lr-momentum",
        "lr-tele-momentum",
        "momentum",
        "warm-momentum",
    ),
    "Learned updates": LEARNED,
}
#: Factors beyond this are drawn at it.
FARTHEST = 100.0


def draw(folder: pathlib.Path, results: dict[str, Any]) -> list[pathlib.Path]:
    """Loss curves and learning curves of every study, and the gains of teleports.

    >>> draw(pathlib.Path("nowhere"), {"groups": {}, "gains": {}})
    []
    """
    drawn = []
    for study, group in results["groups"].items():
        if "epochs" not in next(iter(group["arms"].values())):
            continue
        drawn.append(_curves(folder / f"curves-{study}.png", group["arms"], f"regression, {study}"))
        drawn.append(_learning(folder / f"learning-{study}.png", group["arms"], f"regression, {study}"))
    if results["gains"]:
        title = "Final loss with teleports over that without"
        drawn.append(ratios(folder / "gains.png", results["gains"], title))
    return drawn


def _curves(path: pathlib.Path, arms: dict[str, Any], title: str) -> pathlib.Path:
    panels = {text: [name for name in names if name in arms] for text, names in PANELS.items()}
    if panels["Learned updates"] == list(ALWAYS):
        del panels["Learned updates"]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.8 * len(panels), 4.2), sharey=True, layout="constrained"
    )
    lowest, style = np.inf, styles(name for names in panels.values() for name in names)
    for ax, (text, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            middle = np.array(arms[name]["loss_median"], float)
            lowest = min(lowest, np.min(middle))
            ax.plot(middle, label=name, **style[name])
            if len(names) < 5:
                quartiles = [np.array(arms[name][f"loss_{q}"], float) for q in ("q25", "q75")]
                color = style[name]["color"]
                ax.fill_between(range(len(middle)), *quartiles, color=color, alpha=0.12, linewidth=0)
        ax.set(xlabel="epoch", title=text, yscale="log")
        ax.grid(alpha=0.2)
        ax.legend(fontsize=8)
    start = float(next(iter(arms.values()))["loss_median"][0])
    axes[0].set_ylim(0.7 * lowest, 3 * start)
    axes[0].set_ylabel("loss: median over all runs, quartiles")
    runs = next(iter(arms.values()))["runs"]
    figure.suptitle(f"{title}: {runs:,} unseen trajectories for each arm")
    return _write(figure, path)


def _learning(path: pathlib.Path, arms: dict[str, Any], title: str) -> pathlib.Path:
    """Validation against trajectories, one thin line for each meta-seed: training stops when it rises."""
    trained = {name: arm["learning_curve"] for name, arm in arms.items() if "learning_curve" in arm}
    figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    look = styles(trained)
    for name, curve in trained.items():
        style = {**look[name], "linewidth": 0.8}
        seeds = np.array(curve["validation"], float)
        for seed, values in enumerate(np.atleast_2d(seeds)):
            label = name if seed == 0 else None
            ax.plot(curve["trajectories"], values, label=label, marker=".", **style)
    ax.set(
        xlabel="training trajectories",
        ylabel="validation: median over tasks of the mean ln loss",
        title=f"{title}: do more trajectories help?",
    )
    ax.grid(alpha=0.2)
    ax.legend(fontsize=7, ncols=2)
    return _write(figure, path)


def ratios(path: pathlib.Path, rows: dict[str, dict[str, Any]], title: str) -> pathlib.Path:
    """One ratio with its interval in each row; green below 1, orange above."""
    figure, ax = plt.subplots(figsize=(8.5, 0.3 * len(rows) + 1.3), layout="constrained")
    far = np.log(FARTHEST)
    for row, entry in enumerate(rows.values()):
        middle, low, high = (float(entry[key]) for key in ("log_ratio", "low", "high"))
        color = "#009E73" if high < 0 else "#D55E00" if low > 0 else "#666666"
        ends = np.exp(np.clip([low, high], -far, far))
        ax.plot(ends, [row, row], color=color)
        ax.plot(np.exp(np.clip(middle, -far, far)), row, "o", color=color, markersize=4)
    ax.axvline(1.0, color="black", linewidth=0.7)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=8)
    ax.invert_yaxis()
    ax.set(xscale="log", title=title)
    _plain_ticks(ax.xaxis, ax.get_xlim())
    ax.set_xlabel("ratio of median losses, 95 % interval; green: better, orange: worse", fontsize=9)
    ax.grid(alpha=0.2, axis="x")
    return _write(figure, path)


def frequencies(path: pathlib.Path, groups: dict[str, Any], never: str) -> pathlib.Path:
    """The final loss of every schedule over that without teleports, one panel for each family."""
    figure, axes = plt.subplots(
        1, len(groups), figsize=(3.6 * len(groups), 3.6), layout="constrained", squeeze=False
    )
    for ax, (family, group) in zip(axes[0], groups.items(), strict=True):
        names = [name for name in group["arms"] if name != never and not name.endswith("-off")]
        for shift, end, color, label in ((-0.1, "", "#D55E00", "teleports"), (0.1, "-off", "#999999", "off")):
            for column, name in enumerate(names):
                versus = group["arms"][name + end]["versus"][never]
                middle, low, high = (float(versus[key]) for key in ("log_ratio", "low", "high"))
                far = np.log(FARTHEST)
                ax.plot([column + shift] * 2, np.exp(np.clip([low, high], -far, far)), color=color)
                text = label if column == 0 else None
                point = np.exp(np.clip(middle, -far, far))
                ax.plot(column + shift, point, "o", color=color, markersize=5, label=text)
        ax.axhline(1.0, color="black", linewidth=0.7)
        ax.set_xticks(range(len(names)), names)
        ax.set(yscale="log", title=family)
        _plain_ticks(ax.yaxis, ax.get_ylim())
        ax.grid(alpha=0.2, axis="y")
    axes[0][0].set_ylabel(f"final loss / {never}, 95 % interval")
    axes[0][0].legend(fontsize=8)
    runs = next(iter(next(iter(groups.values()))["arms"].values()))["runs"]
    figure.suptitle(f"How often to teleport: {runs:,} unseen runs for each schedule")
    return _write(figure, path)


def _plain_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Plain numbers on a logarithmic axis, as many as there is room for."""
    span = np.log10(limits[1] / limits[0])
    parts = (1, 1.1, 1.2, 1.5, 2, 5, 8, 9) if span < 0.7 else (1, 2, 5) if span < 2 else (1,)
    ticks = [part * 10.0**k for k in range(-3, 3) for part in parts]
    axis.set_ticks([tick for tick in ticks if limits[0] <= tick <= limits[1]])
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
