"""Any results in the simplest form that a page can show: a text, a table, or a tree of both.

`results.json` is read with suspicion: a number may be a string, and any entry may be missing.
"""

import math
from typing import Any, NamedTuple

from symmetrax.studies.core._console import mean_text, ratio_text

#: A mean or a ratio with the ends of its interval: one cell.
_INTERVAL = ("mean", "log_ratio", "low", "high")
#: Lists of at most this many entries are written out; longer ones show their ends.
_SHORT = 8


class Whisker(NamedTuple):
    """A ratio and its interval on the common axis of a column, in percent of its width.

    >>> Whisker(low=10.0, middle=20.0, high=30.0, one=50.0).one
    50.0
    """

    low: float
    middle: float
    high: float
    one: float


class Cell(NamedTuple):
    """A cell of a table: its text, what it is sorted by ("" stays last), and how it is decorated.

    >>> Cell.of(0.25)
    Cell(text='0.25', key='0.25', tip='', swatch=None, whisker=None)
    """

    text: str
    key: str = ""
    tip: str = ""
    swatch: dict[str, Any] | None = None
    whisker: Whisker | None = None

    @classmethod
    def of(cls, value: Any) -> "Cell":
        """A cell with any value of `results.json`."""
        if isinstance(value, dict):
            others = {key: item for key, item in value.items() if key not in _INTERVAL}
            tip = "; ".join(f"{key}: {text_of(item)}" for key, item in others.items())
            return cls(text_of(value), sort_key(value.get("mean", value.get("log_ratio"))), tip)
        return cls(text_of(value), sort_key(value))


class Table(NamedTuple):
    """A table with a caption; the first cell of every row is its header.

    >>> Table("losses", ["arm", "median"], [[Cell("adam"), Cell.of(0.5)]]).columns
    ['arm', 'median']
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]


class Tree(NamedTuple):
    """Results of no simpler form: parts by name, each a Table, a text or another Tree.

    >>> Tree({"rates": "0.1, 0.2"}).parts["rates"]
    '0.1, 0.2'
    """

    parts: dict[str, Any]


def real(value: Any) -> float | None:
    """A number of `results.json`, or None for what isn't one.

    >>> real("inf"), real("Adam"), real(None)
    (inf, None, None)
    """
    if isinstance(value, bool | None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def sort_key(value: Any) -> str:
    """The text by which a cell is sorted: a number as JavaScript reads it, or the text itself.

    >>> sort_key("inf"), sort_key(0.5), sort_key(float("nan"))
    ('Infinity', '0.5', '')
    """
    number = real(value)
    if number is None:
        return "" if value is None else str(value)
    if math.isnan(number):
        return ""
    return repr(number) if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"


def text_of(value: Any) -> str:
    """Any value that fits into a cell, for people.

    >>> text_of(0.123456), text_of(12345.0), text_of([1, 2]), text_of(None)
    ('0.123', '12,345', '1, 2', '')
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        whole = math.isfinite(value) and value == int(value) and abs(value) < 1e9
        return f"{int(value):,}" if whole else f"{value:.3g}"
    if isinstance(value, dict):
        if not value:
            return ""
        return ratio_text(value) if "log_ratio" in value else mean_text(value, ".2g")
    if len(value) <= _SHORT:
        return ", ".join(text_of(item) for item in value)
    return f"{text_of(value[0])}, {text_of(value[1])}, ..., {text_of(value[-1])} ({len(value)} entries)"


def readable(value: Any, caption: str = "") -> Table | Tree | str:
    """Any results in the simplest form that they have: a text, a table, or a tree of both.

    >>> readable({"adam": {"rate": 0.1}, "gd": {"rate": 1}}, "tuned").columns
    ['', 'rate']
    >>> readable({"sides": {"below": {"rate": [{"a": 1}]}}}).parts.keys()
    dict_keys(['sides'])
    """
    if _fits(value):
        return text_of(value)
    if isinstance(value, list):
        if all(isinstance(item, dict) and _is_flat(item) for item in value):
            return _grid({str(place + 1): item for place, item in enumerate(value)}, caption)
        value = {str(place + 1): item for place, item in enumerate(value)}
    if _is_flat(value):
        rows = [[Cell(str(key), str(key)), Cell.of(item)] for key, item in value.items()]
        return Table(caption, ["", "value"], rows)
    if all(isinstance(item, dict) and item and not _is_interval(item) for item in value.values()):
        if all(map(_is_flat, value.values())):
            return _grid(value, caption)
    elif flat := {key: item for key, item in value.items() if _fits(item)}:
        deep = {str(key): readable(item, str(key)) for key, item in value.items() if key not in flat}
        return Tree({"": readable(flat, caption), **deep})
    return Tree({str(key): readable(item, str(key)) for key, item in value.items()})


def _is_interval(value: dict[str, Any]) -> bool:
    ends = all(real(value.get(key)) is not None for key in ("low", "high"))
    middle = any(real(value.get(key)) is not None for key in ("mean", "log_ratio"))
    return ends and middle and all(not isinstance(item, dict) for item in value.values())


def _fits(value: Any) -> bool:
    """Whether a value fits into a cell."""
    if isinstance(value, dict):
        return not value or _is_interval(value)
    if isinstance(value, list):
        return all(item is None or isinstance(item, str | int | float) for item in value)
    return True


def _is_flat(value: dict[str, Any]) -> bool:
    return all(map(_fits, value.values()))


def _grid(rows: dict[str, dict[str, Any]], caption: str) -> Table:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [
        [Cell(str(name), str(name)), *(Cell.of(row.get(key)) for key in columns)]
        for name, row in rows.items()
    ]
    return Table(caption, ["", *map(str, columns)], cells)
