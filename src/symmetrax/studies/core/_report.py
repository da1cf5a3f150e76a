"""The report of a run, and the comparison of several: one HTML file each, which opens without a network."""

import base64
import collections
import functools
import importlib.resources
import os
import pathlib
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
import plotly.offline

from symmetrax._files import write_atomic
from symmetrax.studies.core import _comparison
from symmetrax.studies.core._arm_tables import (
    arms_of,
    arms_table,
    costs_table,
    other_facts,
    references,
    versus_table,
)
from symmetrax.studies.core._charts import loss_chart
from symmetrax.studies.core._plane_charts import plane_panels
from symmetrax.studies.core._readable import readable, text_of
from symmetrax.studies.core._run_files import REPORT, RunFiles, read_run

#: Results that have a place of their own on the page.
_PLACED = ("experiment", "preset", "seconds", "groups", "verdicts", "answers")
_GOOD, _BAD = ("reproduced", "yes", "holds"), ("reversed", "no", "does not hold", "failed")


def write_report(folder: str | pathlib.Path, out: str | pathlib.Path | None = None) -> pathlib.Path:
    """Write the report of a run folder, by default `report.html` in it, from the folder's files alone.

    Raises ValueError for a folder that holds no run.

    >>> write_report("no-such-run")
    Traceback (most recent call last):
    ValueError: no-such-run is not a run folder: expected config.json there, as `symmetrax run` writes it.
    """
    run = read_run(folder)
    path = run.folder / REPORT if out is None else pathlib.Path(out)
    write_atomic(path, _page("run.html", _run_content(run, path)))
    return path


def write_comparison(folders: Sequence[str | pathlib.Path], out: str | pathlib.Path) -> pathlib.Path:
    """Write one page that shows several runs side by side.

    Raises ValueError for a folder that holds no run.

    >>> write_comparison(["no-such-run", "nor-this"], "comparison.html")
    Traceback (most recent call last):
    ValueError: no-such-run is not a run folder: expected config.json there, as `symmetrax run` writes it.
    """
    runs, path = [read_run(folder) for folder in folders], pathlib.Path(out)
    content = _comparison.content(runs)
    content["links"] = [
        {"label": label, **_link(run.folder / name, path)}
        for label, run in zip(content["labels"], runs, strict=True)
        for name in (REPORT, "results.json", "config.json")
        if (run.folder / name).is_file()
    ]
    write_atomic(path, _page("comparison.html", content))
    return path


def _page(template: str, content: dict[str, Any]) -> str:
    parts = importlib.resources.files("symmetrax.studies.core") / "page"
    return (
        _environment()
        .get_template(template)
        .render(
            **content,
            css=(parts / "report.css").read_text(encoding="utf-8"),
            js=(parts / "report.js").read_text(encoding="utf-8"),
            plotly=plotly.offline.get_plotlyjs(),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    # Autoescape: names of arms and files are anybody's, and must not become markup.
    loader = jinja2.PackageLoader("symmetrax.studies.core", "page")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"kind": _kind, "cited": _cited}
    return environment


def _run_content(run: RunFiles, path: pathlib.Path) -> dict[str, Any]:
    """The variables of the template of a run."""
    results = run.results or {}
    groups = results["groups"] if isinstance(results.get("groups"), dict) else {}
    named = {str(name): arms for name, group in groups.items() if (arms := arms_of(group))}
    verdicts = rows_of(results.get("verdicts"), ("outcome", "claim", "source", "why"))
    answers = rows_of(results.get("answers"), ("question", "answer", "why"))
    unplaced = {key: item for key, item in results.items() if key not in _PLACED}
    for key, rows in (("verdicts", verdicts), ("answers", answers), ("groups", groups)):
        if results.get(key) and not rows:  # of another form than usual: better shown plainly than not at all
            unplaced[key] = results[key]
    unplaced |= {str(name): group for name, group in groups.items() if not arms_of(group)}
    content = {
        "run": run,
        "heading": f"{run.name}" + ("" if run.results else " (not complete)"),
        "facts": _facts(run, named),
        "verdicts": verdicts,
        "summary": summary(verdicts),
        "answers": answers,
        "groups": [_group(name, arms, groups[name]) for name, arms in named.items()],
        "panels": [
            panel for stem, arrays in run.trajectories.items() if (panel := _panel(stem, arrays, named))
        ],
        "more": {str(key): readable(item, str(key)) for key, item in unplaced.items()},
        "pictures": [
            {"name": picture.name, "data": base64.b64encode(picture.read_bytes()).decode()}
            for picture in run.pictures
        ],
        "made": [
            readable(run.config.get("machine", {}), "Machine"),
            readable(run.config.get("versions", {}), "Versions"),
        ],
        "costs": costs_table(named, "Costs of every arm"),
        "settings": readable(run.config.get("settings", {}), "Settings"),
        "files": [_link(file, path, run.folder) for file in run.files],
        "checkpoints": [_link(file, path, run.folder) for file in run.checkpoints],
    }
    return content | {"sections": _sections(content)}


def _group(name: str, arms: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    rest = {key: item for key, item in group.items() if key != "arms"}
    return {
        "name": name,
        "chart": loss_chart(arms),
        "table": arms_table(arms, f"{name}: final losses, lowest median first"),
        "versus": versus_table(arms, "Final loss over that of another arm, with 95 % intervals"),
        "others": other_facts(arms, "Of every arm"),
        "rest": readable(rest, name) if rest else None,
    }


def _panel(stem: str, arrays: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any] | None:
    found = plane_panels(arrays)
    if found is None:
        return None
    data, arms, tasks, steps = found
    # At first, one that teleports beside what it is compared with.
    compared = [name for group in groups.values() for name in references(group) if name in arms]
    teleports = [arm for arm in arms if f"{arm}.arcs" in arrays]
    first = list(dict.fromkeys([*teleports[:1], *compared, *arms]))[:2]
    return {"name": stem, "data": data, "arms": arms, "tasks": tasks, "steps": steps, "first": first}


def _facts(run: RunFiles, groups: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    arms = sum(map(len, groups.values()))
    runs = sum(
        arm.get("runs", 0)
        for named in groups.values()
        for arm in named.values()
        if isinstance(arm.get("runs", 0), int)
    )
    seconds = (run.results or {}).get("seconds")
    return [
        ("preset", run.preset),
        ("seed", str(run.seed)),
        *([("time", duration(seconds))] if isinstance(seconds, int | float) else []),
        *([("arms", text_of(arms)), ("runs", text_of(runs))] if arms else []),
    ]


def _sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles for the bar at the top."""
    return [
        *([("verdicts", "Verdicts")] if content["verdicts"] else []),
        *([("answers", "Answers")] if content["answers"] else []),
        *((f"group-{place + 1}", group["name"]) for place, group in enumerate(content["groups"])),
        *((panel["name"], "Trajectories") for panel in content["panels"]),
        *([("figures", "Figures")] if content["pictures"] else []),
        *([("more", "More")] if content["more"] else []),
        ("run", "How it was made"),
    ]


def rows_of(rows: Any, names: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a list of `results.json` with the entries of these names, "" where one is missing.

    >>> rows_of([{"claim": "it helps"}, 3], ("claim", "why"))
    [{'claim': 'it helps', 'why': ''}]
    """
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [{name: str(row.get(name, "")) for name in names} for row in found]


def summary(verdicts: list[dict[str, str]]) -> str:
    """How many claims have which outcome.

    >>> summary([{"outcome": "reproduced"}, {"outcome": "reversed"}, {"outcome": "reproduced"}])
    '3 claims. Reproduced: 2. Reversed: 1.'
    """
    order = ("reproduced", "reversed", "inconclusive")
    counts = collections.Counter(row["outcome"] for row in verdicts)
    names = [*(name for name in order if name in counts), *(name for name in counts if name not in order)]
    total = f"{len(verdicts)} claim{'' if len(verdicts) == 1 else 's'}"
    return ". ".join([total, *(f"{name[:1].upper()}{name[1:]}: {counts[name]}" for name in names)]) + "."


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(12.3), duration(150.0), duration(7300.0)
    ('12 s', '2.5 min', '2 h 1 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _kind(outcome: str) -> str:
    return "good" if outcome in _GOOD else "bad" if outcome in _BAD else "open"


def _cited(text: str) -> markupsafe.Markup:
    """A text in which arXiv's identifiers are links."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return markupsafe.Markup(re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, str(markupsafe.escape(text))))


def _link(file: pathlib.Path, page: pathlib.Path, folder: pathlib.Path | None = None) -> dict[str, str]:
    """A link from the page to a file, relative, so that both can be moved together."""
    relative = pathlib.Path(os.path.relpath(file, page.parent)).as_posix()
    name = file.name if folder is None else file.relative_to(folder).as_posix()
    size = file.stat().st_size
    text = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size} B"
    return {"href": urllib.parse.quote(relative), "name": name, "size": text}
