"""What a person sees while an experiment runs: a progress bar with numbers, then tables."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table

from symmetrax.metatrain._loop import Progress


class Reporter:
    """Progress to standard error, tables to standard output.

    >>> Reporter(quiet=True).note("nothing is shown")
    """

    def __init__(self, *, quiet: bool = False):
        # A file or pipe has no width of its own: wide enough for the tables.
        # Names are people's own: what looks like markup or an emoji in them is neither.
        plain: Any = {"quiet": quiet, "markup": False, "emoji": False}
        self.console = rich.console.Console(**plain, width=None if sys.stdout.isatty() else 120)
        self.errors = rich.console.Console(**plain, stderr=True)

    def note(self, text: str) -> None:
        """One line of what is going on."""
        self.errors.print(text, style="dim", highlight=False)

    def print(self, thing: Any) -> None:
        """A table, or a line, of results."""
        self.console.print(thing, highlight=False)

    @contextlib.contextmanager
    def training(self, name: str, runs: int) -> Iterator[Callable[[Progress], None]]:
        """A progress bar, as the callback that `meta_train` wants."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self.errors) as bar:
            task = bar.add_task(f"meta-train {name}", total=runs, numbers="compiling")
            done = runs

            def show(progress: Progress) -> None:
                nonlocal done
                done = progress.done
                numbers = f"loss {progress.loss:.3g}, {progress.tasks_per_second:,.0f} tasks/s"
                bar.update(task, completed=done, numbers=numbers)

            yield show
            bar.update(task, completed=done, total=done, numbers="done")


def titled_table(
    title: str | None,
    first: str | None = None,
    columns: Iterable[str] = (),
    rows: Iterable[Iterable[str]] = (),
) -> rich.table.Table:
    """A table in the one style of all; `first` is a column of names, `columns` are of numbers.

    >>> titled_table("losses", "arm", ["median", "mean"]).title
    'losses'
    """
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    if first is not None:
        table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def arms_table(title: str, arms: dict[str, dict[str, Any]], against: str) -> rich.table.Table:
    """Final losses of all arms, best median first, with the paired comparison against one of them.

    Columns in which no arm has anything to tell are left out.
    """
    rows = [
        {
            "arm": name,
            "median": f"{number(arm['loss_median'][-1]):.2g}",
            "mean": f"{number(arm['loss_mean'][-1]):.2g}",
            "diverged": f"{arm['diverged'] / arm['runs']:.1%}",
            f"loss / {against} (95 %)": ratio_text(arm["versus"][against])
            if against in arm["versus"]
            else "",
            "grads": f"{arm['gradient_evaluations']:.0f}" if "gradient_evaluations" in arm else "",
            "us/step": _per_step(arm),
            "rejected": "" if arm.get("rejected") is None else f"{arm['rejected']:.0%}",
        }
        for name, arm in sorted(arms.items(), key=lambda item: number(item[1]["loss_median"][-1]))
    ]
    table = titled_table(title)
    recorded = [column for column in rows[0] if any(row[column] for row in rows)]
    for column in recorded:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in recorded))
    return table


def _per_step(arm: dict[str, Any]) -> str:
    """Microseconds per optimizer step and task, everything included, when many tasks run together."""
    if "seconds" not in arm:
        return ""
    steps = arm["points"][-1] if "points" in arm else len(arm["loss_median"]) - 1
    return f"{1e6 * arm['seconds'] / arm['runs'] / steps:.2g}"


def verdict_table(verdicts: list[dict[str, str]]) -> rich.table.Table:
    """Claims, and what became of them."""
    table = titled_table(None)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim, where it is made, and why")
    for row in verdicts:
        table.add_row(row["outcome"], f"{row['claim']} ({row['source']}): {row['why']}")
    return table


def claims_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """Claims as numbers: the measured one speaks against the claim, and the bound says how much it may be,
    or, where the claim does not hold, must be."""
    table = titled_table(None)
    for name in ("outcome", "measured", "bound"):
        table.add_column(name, no_wrap=True)
    table.add_column("claim, and where it is made")
    for row in rows:
        bound = f"{'>=' if row['outcome'] == 'does not hold' else '<='} {row['bound']:.1e}"
        text = f"{row['claim']} ({row['source']})"
        if row["condition"]:
            text += f"; only if {row['condition']}, else {row['without']:.1e}"
        table.add_row(row["outcome"], f"{row['measured']:.1e}", bound, text)
    return table


def number(value: float | str) -> float:
    """A number of `results.json`, where infinities are strings.

    >>> number("inf")
    inf
    """
    return float(value)


def mean_text(entry: dict[str, Any], form: str = ".2f") -> str:
    """A mean and its interval.

    >>> mean_text({"mean": 0.5, "low": 0.25, "high": "inf"})
    '0.50 (0.25 to inf)'
    """
    mean, low, high = (number(entry[key]) for key in ("mean", "low", "high"))
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def ratio_text(versus: dict[str, Any]) -> str:
    """A log ratio and its interval, as factors; without the interval if it is the whole line.

    >>> ratio_text({"log_ratio": 0.0, "low": -0.6931, "high": "inf"})
    '1 (0.5 to inf)'
    """
    factors = [math.exp(min(number(versus[key]), 700.0)) for key in ("log_ratio", "low", "high")]
    factor, low, high = ("inf" if f > 1e300 else f"{f:.2g}" for f in factors)
    return factor if (low, high) == ("0", "inf") else f"{factor} ({low} to {high})"
