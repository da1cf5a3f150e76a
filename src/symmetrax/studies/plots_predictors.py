"""Pictures of what predicts a gain and of what trained optimizers do, from what a run found alone."""

import pathlib
from typing import Any

import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: One color for each arm.
COLORS = {
    name: style["color"] for name, style in styles(("vanilla", "teleport", "crest", "crest-near")).items()
}
#: At most so many points are drawn in a cloud.
DRAWN = 3000


def gains(path: pathlib.Path, panels: dict[str, dict[str, Any]]) -> pathlib.Path:
    """The gain of every task against the strongest predictor "x", and its running median, in panels."""
    rows, columns = _grid(len(panels))
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.8 * columns, 3.3 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        x, y = np.asarray(panel["x"]), np.asarray(panel["y"])
        some = np.random.default_rng(0).permutation(len(x))[:DRAWN]
        color = COLORS.get(title.split(", ")[-1], "#000000")
        ax.plot(x[some], y[some], ".", markersize=2, alpha=0.35, color=color)
        middle, value = binned(x, y)
        ax.plot(middle, value, color="black", linewidth=1.5, label="median")
        ax.axhline(0.0, color="black", linewidth=0.7)
        ax.set_xlim(*np.quantile(x, [0.002, 0.998]) + np.array([-0.05, 0.05]) * max(np.ptp(x) * 0.2, 0.1))
        ax.set(title=title, xlabel=_as_log(panel["label"]), ylabel="gain: ln(loss without / with)")
        ax.grid(alpha=0.2)
        ax.legend(fontsize=7)
    return _write(figure, path)


def correlations(
    path: pathlib.Path, predictors: dict[str, dict[str, Any]], words: dict[str, str]
) -> pathlib.Path:
    """Rank correlations of the gain with every feature: a panel for each family, a bar for each arm."""
    tall = max(len(next(iter(arms.values()))["spearman"]) for arms in predictors.values())
    count = max(len(arms) for arms in predictors.values())
    figure, axes = plt.subplots(
        1,
        len(predictors),
        figsize=(5.2 * len(predictors), (0.16 * count + 0.2) * tall + 1.3),
        layout="constrained",
        squeeze=False,
    )
    for ax, (family, arms) in zip(axes[0], predictors.items(), strict=True):
        names = list(next(iter(arms.values()))["spearman"])
        for i, (arm, found) in enumerate(arms.items()):
            shift = (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
            for row, name in enumerate(names):
                mean, low, high = _three(found["spearman"][name])
                color, label = COLORS.get(arm, "#999999"), arm if row == 0 else None
                ax.barh(row + shift, mean, 0.75 / len(arms), color=color, label=label)
                ax.plot([low, high], [row + shift] * 2, color="black", linewidth=1)
        ax.axvline(0.0, color="black", linewidth=0.7)
        ax.set_yticks(range(len(names)), [words[name] for name in names], fontsize=8)
        ax.invert_yaxis()
        ax.set(title=family, xlabel="rank correlation with the gain, 95 %", xlim=(-1.02, 1.02))
        ax.grid(alpha=0.2, axis="x")
        ax.legend(fontsize=7)
    return _write(figure, path)


def decisions(path: pathlib.Path, probes: dict[str, dict[str, Any]], words: dict[str, str]) -> pathlib.Path:
    """The mean gain of teleporting always, by each probe, and where it wins; a panel for each family."""
    figure, axes = plt.subplots(
        1, len(probes), figsize=(5.2 * len(probes), 3.6), layout="constrained", squeeze=False
    )
    for ax, (family, arms) in zip(axes[0], probes.items(), strict=True):
        rows = ["always", *next(iter(arms.values()))["probes"], "where it wins"]
        for i, (arm, found) in enumerate(arms.items()):
            entries = [found["always"]]
            entries += [probe["mean_gain"] for probe in found["probes"].values()]
            entries.append(found["where_it_wins"])
            shift = (i - (len(arms) - 1) / 2) * 0.2
            for row, entry in enumerate(entries):
                mean, low, high = _three(entry)
                color, label = COLORS.get(arm, "#999999"), arm if row == 0 else None
                ax.plot([low, high], [row + shift] * 2, color=color)
                ax.plot(mean, row + shift, "o", color=color, markersize=5, label=label)
        ax.axvline(0.0, color="black", linewidth=0.7)
        ax.set_yticks(range(len(rows)), [words.get(row, row) for row in rows], fontsize=8)
        ax.invert_yaxis()
        ax.set(title=family, xlabel="mean gain in ln loss, 95 %; never: 0")
        ax.grid(alpha=0.2, axis="x")
        ax.legend(fontsize=7)
    return _write(figure, path)


def behaviour(path: pathlib.Path, groups: dict[str, dict[str, Any]], lags: int) -> pathlib.Path:
    """What trained optimizers do, a row for each family: learned step by step number, its length against the
    gradient norm, and the share of it that gradients explain, by how many past ones are known."""
    figure, axes = plt.subplots(
        len(groups), 3, figsize=(12.5, 3.3 * len(groups)), layout="constrained", squeeze=False
    )
    for row, (family, arms) in zip(axes, groups.items(), strict=True):
        for arm, recorded in arms.items():
            style = {"color": COLORS.get(arm, "#999999"), "label": arm}
            schedule = np.array(recorded["schedule"], float)
            row[0].plot(np.arange(len(schedule)), np.median(schedule, axis=1), marker=".", **style)
            low, high = np.min(schedule, axis=1), np.max(schedule, axis=1)
            row[0].fill_between(np.arange(len(schedule)), low, high, color=style["color"], alpha=0.15)
            curve = np.array(recorded["saturation"]["curve"], float)
            row[1].plot(np.exp(curve[:, 0]), np.exp(curve[:, 1]), marker=".", **style)
            r2 = [_three(entry) for entry in recorded["lags"]["r2"]]
            middle = np.array([x[0] for x in r2])
            error = np.abs(np.array([[x[0] - x[1], x[2] - x[0]] for x in r2])).T
            row[2].errorbar(range(lags + 1), middle, np.minimum(error, 1.0), capsize=2, **style)
        row[0].axhline(1.0, color="black", linewidth=0.7)
        row[0].set(title=f"{family}: learned schedule", xlabel="step", ylabel="r, in Polyak's steps")
        row[1].set(
            title="saturation",
            xscale="log",
            yscale="log",
            xlabel="gradient norm / that of the first step",
            ylabel="step length / first step",
        )
        limits = np.array(row[1].get_xlim())
        row[1].plot(limits, limits, color="black", linewidth=0.7, linestyle=":", label="proportional")
        row[2].set(
            title="R² by lags", xlabel="past gradients known", ylabel="share explained", ylim=(-0.02, 1.02)
        )
        row[2].set_xticks(range(lags + 1))
        for ax in row:
            ax.grid(alpha=0.2)
        row[0].legend(fontsize=7)
        row[1].legend(fontsize=7)
    return _write(figure, path)


def binned(x: np.ndarray, y: np.ndarray, bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Medians of `x` and `y` in bins of equally many points, in the order of `x`.

    >>> binned(np.array([2.0, 1.0, 4.0, 3.0]), np.array([20.0, 10.0, 40.0, 30.0]), bins=2)
    (array([1.5, 3.5]), array([15., 35.]))
    """
    parts = np.array_split(np.argsort(x, kind="stable"), min(bins, len(x)))
    middle, value = (np.array([np.median(values[part]) for part in parts]) for values in (x, y))
    return middle, value


def _three(entry: dict[str, Any]) -> tuple[float, float, float]:
    """Mean and interval; an interval of no width where there is none."""
    mean, low, high = (float(entry[key]) for key in ("mean", "low", "high"))
    return mean, low if np.isfinite(low) else mean, high if np.isfinite(high) else mean


def _grid(count: int) -> tuple[int, int]:
    columns = 3 if count > 4 else min(count, 2)
    return -(-count // columns), columns


def _as_log(label: str) -> str:
    return label if label.startswith(("det", "angle")) else f"ln({label})"
