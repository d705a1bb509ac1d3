"""A sweep's results: one row per experiment, the table, and a page with the plot."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from flows.experiments.dvc_experiments import Recorded
from flows.experiments.parallel_coordinates import draw_lines, shown
from flows.experiments.product import Combination
from stages.contracts.metrics import BETTER

EXPERIMENT: Final = "experiment"
_ARROWS: Final = {"higher": "↑", "lower": "↓"}
_MEASURED: Final = ", measured"
_PAGE: Final = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body{{font:15px/1.5 sans-serif;margin:2em;color:#222}}div{{overflow-x:auto}}
table{{border-collapse:collapse}}td,th{{padding:.25em .8em;border-bottom:1px solid #ddd}}
td,th{{text-align:right}}td:first-child,th:first-child{{text-align:left}}</style></head><body>
<h1>{title}</h1>
<p>{experiments} experiments of commit {commit}. Orange is high in <b>{coloured_by}</b>; an arrow
says which way a metric is better. <code>dvc exp apply NAME</code> brings one into the working
tree.</p>
<div>{plot}</div>
<div>{table}</div>
</body></html>
"""


def sweep_rows(
    cells: Sequence[Combination], recorded: Mapping[str, Recorded], stages: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of each finished experiment: what it changes, then its metrics.

    Metrics are named STAGE.KEY; only those of `stages` are the experiment's own. Where there are
    several experiments, metrics that are the same in all of them are left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if cell.name in recorded:
            files = recorded[cell.name][1]
            rows[cell.name] = dict(cell.changes) | {
                _metric(f"{stage}.{key}", cell.changes): value
                for stage in stages
                for key, value in sorted(files.get(f"data/{stage}/metrics.json", {}).items())
            }
    params = set(cells[0].changes)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    kept = [
        name
        for name in names
        if name in params
        or len(rows) == 1
        or len({shown(row.get(name)) for row in rows.values()}) > 1
    ]
    return {key: {name: row.get(name) for name in kept} for key, row in rows.items()}


def plotted_names(rows: Mapping[str, Mapping[str, Any]], params: Sequence[str]) -> list[str]:
    """Return the plot's axes: the params, then the metrics that have a better and a worse."""
    names = next(iter(rows.values()))
    return [*params, *(name for name in names if _direction(name) and name not in params)]


def draw_plot(rows: Mapping[str, Mapping[str, Any]], params: Sequence[str]) -> str:
    """Return the parallel-coordinates plot of a sweep as SVG."""
    names = plotted_names(rows, params)
    marked = {name: _marked(name, params) for name in names}
    relabelled = {key: {marked[name]: row[name] for name in names} for key, row in rows.items()}
    return draw_lines([*marked.values()], relabelled, marked[coloured_by(names, params)])


def coloured_by(names: Sequence[str], params: Sequence[str]) -> str:
    """Return the axis that colours the lines: the first metric, else the first param."""
    return next((name for name in names if name not in params), names[0])


def write_page(
    path: Path, rows: Mapping[str, Mapping[str, Any]], params: Sequence[str], commit: str
) -> None:
    """Write the page of a sweep: plot and table in one file that needs nothing else."""
    names = plotted_names(rows, params)
    title = f"Sweep over {', '.join(params)}"
    text = _PAGE.format(
        title=escape(title),
        experiments=len(rows),
        commit=commit,
        coloured_by=escape(coloured_by(names, params)),
        plot=draw_plot(rows, params),
        table=_table(rows, params),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _table(rows: Mapping[str, Mapping[str, Any]], params: Sequence[str]) -> str:
    names = [*next(iter(rows.values()))]
    marked = (_marked(name, params) for name in names)
    head = "".join(f"<th>{escape(word)}</th>" for word in (EXPERIMENT, *marked))
    lines = [
        "".join(f"<td>{escape(word)}</td>" for word in (key, *(shown(row[n]) for n in names)))
        for key, row in rows.items()
    ]
    return "<table><tr>" + "</tr>\n<tr>".join([head, *lines]) + "</tr></table>"


def _metric(name: str, params: Collection[str]) -> str:
    """Return a metric's name; slim.recovery is what is asked for and what is measured, too."""
    return name + _MEASURED if name in params else name


def _direction(name: str) -> str | None:
    return BETTER.get(name.removesuffix(_MEASURED))


def _marked(name: str, params: Collection[str]) -> str:
    direction = None if name in params else _direction(name)
    return f"{name} {_ARROWS[direction]}" if direction else name
