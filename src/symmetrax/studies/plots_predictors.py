"""Figures of `predictors` and `emergent`, drawn from the files of a run alone."""

import pathlib
from typing import Any

import numpy as np

from symmetrax.studies.core._means import binned
from symmetrax.studies.core._panels import mean_and_interval, panels
from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write

#: At most so many points are drawn in a cloud.
DRAWN = 3000


def gains(folder: pathlib.Path, predictors: dict[str, Any], words: dict[str, str]) -> pathlib.Path:
    """The gain of every task against its strongest predictor, and the running median: families by arms."""
    arms = list(next(iter(predictors.values())))
    looks = styles(arms)
    figure, axes = panels(len(predictors), len(arms), 3.8, 3.3)
    for row, (family, found) in zip(axes, predictors.items(), strict=True):
        with np.load(folder / f"{family}-tasks.npz", allow_pickle=False) as arrays:
            known = {name: x.ravel() for name, x in arrays.items()}
        for ax, arm in zip(row, arms, strict=True):
            x, y, label = known[found[arm]["strongest"]], known[f"gain-{arm}"], words[found[arm]["strongest"]]
            some = np.random.default_rng(0).permutation(len(x))[:DRAWN]
            ax.plot(x[some], y[some], ".", markersize=2, alpha=0.35, color=looks[arm]["color"])
            ax.plot(*binned(x, y), color="black", linewidth=1.5, label="median")
            ax.axhline(0.0, color="black", linewidth=0.7)
            ax.set_xlim(*np.quantile(x, [0.002, 0.998]) + np.array([-0.05, 0.05]) * max(np.ptp(x) * 0.2, 0.1))
            label = label if label.startswith(("det", "angle")) else f"ln({label})"
            ax.set(title=f"{family}, {arm}", xlabel=label, ylabel="gain: ln(loss without / with)")
            ax.grid(alpha=0.2)
            ax.legend(fontsize=7)
    return _write(figure, folder / "gains.png")


def behaviour(path: pathlib.Path, groups: dict[str, dict[str, Any]], lags: int) -> pathlib.Path:
    """Measures of trained optimizers, a row for each family.

    From left to right: the learned step by step number, its length against the gradient norm, and the share
    of it that gradients explain, by how many past ones are known.
    """
    looks = styles(name for arms in groups.values() for name in arms)
    figure, axes = panels(len(groups), 3, 4.2, 3.3)
    for row, (family, arms) in zip(axes, groups.items(), strict=True):
        for arm, found in arms.items():
            style = {"color": looks[arm]["color"], "label": arm}
            schedule = np.array(found["schedule"], float)
            steps = np.arange(len(schedule))
            row[0].plot(steps, np.median(schedule, axis=1), marker=".", **style)
            low, high = np.min(schedule, axis=1), np.max(schedule, axis=1)
            row[0].fill_between(steps, low, high, color=style["color"], alpha=0.15)
            curve = np.exp(np.array(found["saturation"]["curve"], float))
            row[1].plot(curve[:, 0], curve[:, 1], marker=".", **style)
            mean, low, high = np.array([mean_and_interval(entry) for entry in found["lags"]["r2"]]).T
            error = np.minimum(np.stack([mean - low, high - mean]), 1.0)
            row[2].errorbar(range(lags + 1), mean, error, capsize=2, **style)
        row[0].axhline(1.0, color="black", linewidth=0.7)
        row[0].set(title=f"{family}: learned schedule", xlabel="step", ylabel="r, in Polyak's steps")
        row[1].set(title="saturation", xscale="log", yscale="log")
        row[1].set(xlabel="gradient norm / that of the first step", ylabel="step length / first step")
        limits = np.array(row[1].get_xlim())
        row[1].plot(limits, limits, color="black", linewidth=0.7, linestyle=":", label="proportional")
        row[2].set(title="R² by lags", xlabel="past gradients known", ylabel="share explained")
        row[2].set(ylim=(-0.02, 1.02), xticks=range(lags + 1))
        for ax in row:
            ax.grid(alpha=0.2)
        row[0].legend(fontsize=7)
        row[1].legend(fontsize=7)
    return _write(figure, path)
