"""Pictures of the league of optimizers on the plane, drawn from the results of a run alone."""

import pathlib
from typing import Any

import numpy as np

from symmetrax.studies.core._styles import styles
from symmetrax.studies.plots import _write, plt

#: Arms of the loss curves: learned, hand-made, bounds.
DRAWN = (
    "vanilla",
    "teleport",
    "crest",
    "crest-near",
    "paper-vanilla",
    "paper-teleport",
    "adam",
    "lbfgs",
    "crest-polyak",
    "oracle-polyak",
)
#: Losses below this share of the first are drawn at it.
LOWEST = 1e-12


def league(folder: pathlib.Path, results: dict[str, Any], horizons: tuple[int, ...]) -> list[pathlib.Path]:
    """Loss curves of every family, and the ratio of all arms to vanilla."""
    return [
        _curves(folder / "curves.png", results, max(horizons[:2])),
        _ratios(folder / "ratios.png", results, horizons[0]),
    ]


def _curves(path: pathlib.Path, results: dict[str, Any], horizon: int) -> pathlib.Path:
    families = list(results["chosen"])
    figure, axes = plt.subplots(
        1, len(families), figsize=(4.2 * len(families), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for ax, family in zip(axes[0], families, strict=True):
        arms = results["groups"][f"{family}-{horizon}"]["arms"]
        for name, style in styles(DRAWN).items():
            if name in arms:
                middle = np.array(arms[name]["loss_median"], float)
                ax.plot(arms[name]["points"], np.maximum(middle, LOWEST), label=name, **style)
        runs = next(iter(arms.values()))["runs"]
        ax.set(title=f"{family}\n{runs:,} runs per arm", xlabel="step", yscale="log")
        ax.grid(alpha=0.2)
    axes[0][0].set_ylabel(f"loss, median over all runs (drawn down to {LOWEST:g})")
    handles = {h.get_label(): h for ax in axes[0] for h in ax.get_lines()}
    beside: Any = "outside right"
    figure.legend(handles.values(), handles, loc=beside, fontsize=8)
    return _write(figure, path)


def _ratios(path: pathlib.Path, results: dict[str, Any], horizon: int) -> pathlib.Path:
    """Final losses over vanilla's with their intervals, one panel for each family, all arms."""
    families = list(results["chosen"])
    names = list(
        dict.fromkeys(
            n for f in families for n, a in results["groups"][f"{f}-{horizon}"]["arms"].items() if a["versus"]
        )
    )
    names = [name for name in names if name != "vanilla"]
    figure, axes = plt.subplots(
        1,
        len(families),
        figsize=(3.4 * len(families) + 1.2, 0.2 * len(names) + 1.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, family in zip(axes[0], families, strict=True):
        arms = results["groups"][f"{family}-{horizon}"]["arms"]
        for row, name in enumerate(names):
            versus = arms.get(name, {}).get("versus", {}).get("vanilla")
            if versus is None:
                continue
            middle, low, high = (float(versus[key]) / np.log(10) for key in ("log_ratio", "low", "high"))
            low, high = np.clip([low, high], -14, 14)
            color = "#009E73" if high < 0 else "#D55E00" if low > 0 else "#666666"
            ax.plot([low, high], [row, row], color=color)
            ax.plot(np.clip(middle, -14, 14), row, "o", color=color, markersize=3.5)
        ax.axvline(0.0, color="black", linewidth=0.7)
        ax.set_title(family, fontsize=9)
        ax.grid(alpha=0.2, axis="x")
    axes[0][0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0][0].invert_yaxis()
    figure.supxlabel(
        f"log10 of the final loss over vanilla's after {horizon} steps, 95 % interval", fontsize=9
    )
    return _write(figure, path)


def matrices(path: pathlib.Path, tables: dict[str, Any]) -> pathlib.Path:
    """For each arm, what training on one family costs on another: ratios to training on that other."""
    families = list(next(iter(tables.values())))
    width = 1.1 * len(families) + 1.6
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(0.85 * width * len(tables) + 1.5, width),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    image: Any = None
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        logs = np.array([[float(table[s][f]["own"]["log_ratio"]) for f in families] for s in families])
        logs = np.clip(logs / np.log(10), -6, 6)
        image = ax.imshow(logs, cmap="RdBu_r", vmin=-6, vmax=6)
        for row, source in enumerate(families):
            for column, family in enumerate(families):
                found = table[source][family]["own"]
                sure = float(found["low"]) > 0 or float(found["high"]) < 0
                text = f"{logs[row, column]:+.1f}" if source != family else "0"
                weight = "bold" if sure else "normal"
                dark = abs(logs[row, column]) > 3.5
                ax.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    weight=weight,
                    fontsize=9,
                    color="w" if dark else "k",
                )
        ax.set_xticks(range(len(families)), families, rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(families)), families, fontsize=8)
        ax.set_title(name, fontsize=10)
    axes[0][0].set_ylabel("trained on")
    figure.supxlabel("tested on", fontsize=10)
    label = "log10 of the loss over that of training on the tested family"
    figure.colorbar(image, ax=axes[0], shrink=0.8).set_label(label, fontsize=8)
    return _write(figure, path)
