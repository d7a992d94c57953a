"""Table and plot of a study, made from the JSON files of its runs and from nothing else."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msn.runtime.errors import UserError
from msn.runtime.files import replacing

Table = dict[str, dict[str, list[float]]]
"""Of each run its scores by name, one for each seed."""
PARTS = {"validation": "Validation part of the training images", "test": "Test images"}


def write_report(folder: Path, about: str, papers: Mapping[str, str]) -> str:
    """Write `report.md` and `report.png` to the folder of the JSON files; give the text.

    Args:
        about: head of the text.
        papers: of the runs in their order what stands in the paper; without a file there is no row.

    Raises:
        UserError: there is no file.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise UserError(f"{folder}: holds no results; first --run some")
    tables = {part: collect(found, papers, part) for part in PARTS}
    parts = [
        f"{PARTS[part]}:\n\n{markdown(table, papers)}" for part, table in tables.items() if table
    ]
    text = "\n\n".join([f"{about} Accuracy in %, ± over the seeds.", *parts])
    with replacing(folder / "report.md") as path:
        path.write_text(text + "\n", encoding="utf-8")
    _draw(tables["test"] or tables["validation"], folder / "report.png")
    return text


def collect(found: Sequence[dict[str, Any]], order: Iterable[str], part: str) -> Table:
    """Gather the scores on a part of the images, runs in the order given."""
    table: Table = {}
    for name in order:
        for result in found:
            if result["run"] == name and part in result:
                for column, value in result[part].items():
                    table.setdefault(name, {}).setdefault(column, []).append(value)
    return table


def markdown(table: Table, papers: Mapping[str, str]) -> str:
    """Write a table with mean and spread over the seeds (sample standard deviation)."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    ends = ["seeds", "paper"] if any(papers.values()) else ["seeds"]
    rows = [["", *columns, *ends], ["---"] * (1 + len(columns) + len(ends))]
    for name, row in table.items():
        cells = [_cell(row[column]) if column in row else "" for column in columns]
        last = [str(max(map(len, row.values()))), papers[name]]
        rows.append([name, *cells, *last[: len(ends)]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _draw(table: Table, path: Path) -> None:
    """Draw a panel for each column, a point for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    height = 0.6 + 0.28 * len(table)
    figure = Figure(figsize=(1.5 + 1.6 * len(columns), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for place, row in enumerate(table.values()):
            values = row.get(column, [])
            axes.plot(values, [place] * len(values), "o", color="#1d3557", alpha=0.6, markersize=5)
        axes.set_title(column, fontsize=9)
        axes.grid(axis="y", color="#e8e8e8")
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(table)), list(table))
    panels[0].invert_yaxis()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
