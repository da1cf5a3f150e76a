"""What the page shows that compares several runs."""

from typing import Any

from symmetrax.studies.core._arm_tables import arms_of, by_loss, last
from symmetrax.studies.core._charts import loss_chart, loss_span
from symmetrax.studies.core._readable import Cell, Table
from symmetrax.studies.core._run_files import RunFiles


def content(runs: list[RunFiles]) -> dict[str, Any]:
    """The variables of the template: verdicts by claim, charts by group, and final losses by run.

    >>> import pathlib
    >>> pair = [RunFiles(pathlib.Path(name), {"experiment": "fig3"}) for name in ("first", "second")]
    >>> content(pair)["labels"]
    ['first', 'second']
    """
    labels = _labels(runs)
    groups = [_groups(run) for run in runs]
    names = list(dict.fromkeys(name for found in groups for name in found))
    pages = [_group(name, labels, [found.get(name, {}) for found in groups]) for name in names]
    verdicts = _verdicts(runs)
    return {
        "heading": f"{len(runs)} runs compared",
        "labels": labels,
        "runs": _table(labels, runs),
        "problems": [
            f"{label}: {problem}" for label, run in zip(labels, runs, strict=True) for problem in run.problems
        ],
        "verdicts": verdicts,
        "groups": pages,
        "sections": [
            ("runs", "Runs"),
            *([("verdicts", "Verdicts")] if verdicts else []),
            *((f"group-{place + 1}", name) for place, name in enumerate(names)),
        ],
    }


def _labels(runs: list[RunFiles]) -> list[str]:
    """The names of the folders, longer where two have the same."""
    paths = [run.folder.absolute().parts for run in runs]
    for count in range(1, max(map(len, paths)) + 1):
        labels = ["/".join(parts[-count:]) for parts in paths]
        if len({*labels}) == len(labels):
            return labels
    return [f"{'/'.join(parts[-1:])} ({place + 1})" for place, parts in enumerate(paths)]  # one folder twice


def _groups(run: RunFiles) -> dict[str, Any]:
    groups = (run.results or {}).get("groups")
    if not isinstance(groups, dict):
        return {}
    return {str(name): arms for name, group in groups.items() if (arms := arms_of(group))}


def _table(labels: list[str], runs: list[RunFiles]) -> Table:
    rows = [
        [
            Cell(label, label),
            Cell(run.name, run.name),
            Cell(run.preset, run.preset),
            Cell.of(run.seed),
            Cell.of((run.results or {}).get("seconds")),
            Cell(run.command(), run.command()),
        ]
        for label, run in zip(labels, runs, strict=True)
    ]
    return Table("The runs", ["run", "experiment", "preset", "seed", "seconds", "command"], rows)


def _verdicts(runs: list[RunFiles]) -> dict[str, list[dict[str, str] | None]]:
    """For every claim the verdict of each run, None where it makes none."""
    found: list[dict[str, dict[str, str]]] = []
    for run in runs:
        rows = (run.results or {}).get("verdicts")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        texts = [{key: str(row.get(key, "")) for key in ("claim", "outcome", "why")} for row in rows]
        found.append({row["claim"]: row for row in texts})
    claims = dict.fromkeys(claim for rows in found for claim in rows)
    return {claim: [rows.get(claim) for rows in found] for claim in claims}


def _group(name: str, labels: list[str], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Charts of one scale, and the final losses of all arms by run."""
    spans = [span for arms in groups if (span := loss_span(arms))]
    span = (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None
    charts = [(label, loss_chart(arms, span)) for label, arms in zip(labels, groups, strict=True) if arms]
    order = dict.fromkeys(arm for arms in groups for arm in by_loss(arms))
    rows = [
        [Cell(arm, arm), *(Cell.of(last(arms[arm])) if arm in arms else Cell("") for arms in groups)]
        for arm in order
    ]
    table = Table(f"{name}: final median loss", ["arm", *labels], rows)
    return {"name": name, "charts": [pair for pair in charts if pair[1]], "table": table}
