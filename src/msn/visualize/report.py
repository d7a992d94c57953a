"""The report of a run: accuracy with few labels, as a table and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from msn.config.protocol import PROTOCOL, Protocol
from msn.evaluation.features import EvalSet
from msn.evaluation.knn import knn, neighbors
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.evaluation.lowshot import LAMBDA, LowShot, low_shot
from msn.runtime.files import replacing, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUERIES = 10
NEIGHBOURS = 5
CELL = 0.9  # side of a thumbnail, in units of the grid
RIGHT, WRONG = "#0072b2", "#d55e00"  # told apart by all eyes; what is wrong has a cross, too
INK, PALE, GREY = "#1d3557", "#a8bcd4", "#555555"


@dataclass(frozen=True)
class Representation:
    """Features of the two splits under one encoder: float (N, D) and (M, D), on the CPU."""

    name: str
    train: Tensor
    val: Tensor


@dataclass(frozen=True)
class Scores:
    """One row of the table. Accuracies in percent."""

    name: str
    knn: float
    low_shot: list[LowShot]
    logistic: float  # regression on all labels


def write_report(
    *,
    train: EvalSet,
    val: EvalSet,
    representations: Sequence[Representation],
    csv_path: Path,
    folder: Path,
    tag: str,
    protocol: Protocol = PROTOCOL,
    device: torch.device | str = "cpu",
    skipped: Mapping[str, str] | None = None,
) -> str:
    """Compare representations and write `TAG-report.json` and `TAG-report.png` to `folder`.

    Args:
        train: images and labels to learn from.
        val: held-out images and labels.
        representations: rows of the table; the last one, the trained encoder, is pictured.
        csv_path: log of the run, for the loss curve.
        folder: of the files written.
        tag: how their names begin.
        protocol: what is measured.
        device: that the regression on all labels computes on.
        skipped: reason by name of the images that were left out.

    Returns:
        The table as text, one line per representation.

    Raises:
        UserError: a file cannot be written, or the images are too few to evaluate with.
    """
    scores = [score(one, train.labels, val.labels, protocol, device) for one in representations]
    content = {**_as_json(scores, protocol), "skipped_images": dict(skipped or {})}
    write_json(folder / f"{tag}-report.json", content)
    results = dict(zip(*cells(scores[-1:], protocol.k), strict=True))
    figure = _picture(train, val, representations[-1], results, read_loss(csv_path), tag)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    with replacing(folder / f"{tag}-report.png") as path:
        path.write_bytes(picture.getvalue())
    return table(scores, protocol.k)


def cells(scores: Sequence[Scores], k: int) -> list[list[str]]:
    """Tabulate all scores under their headings: k-NN, few labels, all labels."""
    shots = [f"{result.images_per_class}-shot" for result in scores[0].low_shot]
    rows = [["accuracy in %", f"{k}-NN", *shots, "logistic regression, all labels"]]
    for row in scores:
        few = [f"{result.mean:.1f} ± {result.std:.1f}" for result in row.low_shot]
        rows.append([row.name, f"{row.knn:.1f}", *few, f"{row.logistic:.1f}"])
    return rows


def table(scores: Sequence[Scores], k: int) -> str:
    """Format the scores as aligned text: a heading and one line for each representation."""
    rows = cells(scores, k)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        padded = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("   ".join([name.ljust(widths[0]), *padded]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def markdown(scores: Sequence[Scores], k: int) -> str:
    """Format the scores as a Markdown table."""
    head, *rows = cells(scores, k)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def read_loss(csv_path: Path) -> tuple[list[int], list[float]]:
    """Read steps and losses from a run log; both are empty if there is none."""
    if not csv_path.exists():
        return [], []
    with csv_path.open(encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return [step for step, _ in rows], [loss for _, loss in rows]


def available(labels: Tensor, images_per_class: Sequence[int]) -> list[int]:
    """Keep the numbers of images per class that every class has."""
    smallest = int(torch.unique(labels, return_counts=True)[1].min())
    return [count for count in images_per_class if count <= smallest]


def score(
    one: Representation,
    train_labels: Tensor,
    val_labels: Tensor,
    protocol: Protocol = PROTOCOL,
    device: torch.device | str = "cpu",
) -> Scores:
    """Evaluate one representation, from its train to its val features.

    Arguments as for `write_report`.

    Raises:
        UserError: a class has too few images, or there are fewer than k.
    """
    data = one.train, train_labels, one.val, val_labels
    few = [
        low_shot(*data, images_per_class=count, draws=protocol.draws, seed=protocol.seed)
        for count in available(train_labels, protocol.images_per_class)
    ]
    votes = knn(*data, k=protocol.k, temperature=protocol.temperature)
    # On all labels as in the paper's linear transfer (appendix A).
    train, val = (prepare(features.double().to(device)) for features in (one.train, one.val))
    logistic = accuracy(fit(train, train_labels, lambd=LAMBDA), val, val_labels)
    return Scores(one.name, votes.top1, few, logistic.top1)


def _as_json(scores: Sequence[Scores], protocol: Protocol) -> dict[str, object]:
    rows = [
        {
            "name": row.name,
            "low_shot": [result._asdict() for result in row.low_shot],
            "knn": row.knn,
            "logistic": row.logistic,
        }
        for row in scores
    ]
    settings = {"draws": protocol.draws, "k": protocol.k}
    return {"unit": "percent", **settings, "representations": rows}


def _picture(
    train: EvalSet,
    val: EvalSet,
    trained: Representation,
    results: Mapping[str, str],
    loss: tuple[list[int], list[float]],
    tag: str,
) -> "Figure":
    # Without pyplot: nothing global changes, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.4, 7.6), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.055, 0.925, tag, fontsize=19, weight="bold", color=INK)
    (what, name), *numbers = results.items()
    line = "    ".join(f"{column}  {number}" for column, number in numbers)
    figure.text(0.055, 0.885, f"{name}, {what}:   {line}", fontsize=10.5, color=GREY)
    _draw_loss(figure.add_axes((0.055, 0.09, 0.5, 0.7)), *loss)
    _draw_neighbors(figure.add_axes((0.605, 0.035, 0.375, 0.755)), train, val, trained)
    return figure


def _draw_loss(axes: "Axes", steps: Sequence[int], losses: Sequence[float]) -> None:
    axes.set_title("Training loss", loc="left", fontsize=13, color=INK, pad=10)
    axes.set_xlabel("step", fontsize=11, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e8e8e8")
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=10)
    if not steps:
        axes.text(0.5, 0.5, "no log found", transform=axes.transAxes, ha="center", color=GREY)
        return
    window = max(1, len(losses) // 20)
    axes.plot(steps, losses, color=PALE if window > 1 else INK, linewidth=1, label="logged")
    axes.margins(x=0.01)
    if window == 1:
        return  # a mean of one is what is drawn already
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    start = window // 2
    middles = steps[start : start + len(smooth)]
    axes.plot(middles, smooth, color=INK, linewidth=2, label=f"mean of {window} logged")
    axes.legend(frameon=False, labelcolor=GREY)


def _draw_neighbors(axes: "Axes", train: EvalSet, val: EvalSet, trained: Representation) -> None:
    """Draw a row for each query: the held-out image, then its nearest training images."""
    from matplotlib.patches import Rectangle

    queries = _one_per_class(val.labels, QUERIES)
    k = min(NEIGHBOURS, len(train.labels))
    _, nearest = neighbors(trained.train, trained.val[queries], k=k)
    axes.set_title(
        "Held-out images and their nearest neighbors", loc="left", fontsize=13, color=INK, pad=10
    )
    for row, (query, found) in enumerate(zip(queries.tolist(), nearest.tolist(), strict=True)):
        _draw_image(axes, val.images[query], 0, row)
        for column, index in enumerate(found):
            same = bool(train.labels[index] == val.labels[query])
            x = column + 1.35  # a gap sets the query apart
            _draw_image(axes, train.images[index], x, row)
            frame = Rectangle((x, row), CELL, CELL, fill=False, linewidth=2.2)
            frame.set_edgecolor(RIGHT if same else WRONG)
            axes.add_patch(frame)
            if not same:
                _cross(axes, x + 0.78 * CELL, row + 0.22 * CELL)
    rows = len(queries)
    axes.text(0, rows + 0.12, "query", fontsize=10.5, color=GREY, va="top")
    for x, color, text in ((1.35, RIGHT, "■ same class"), (3.65, WRONG, "another class")):
        axes.text(x, rows + 0.12, text, fontsize=10.5, color=color, va="top")
    _cross(axes, 3.47, rows + 0.25)
    axes.set_xlim(-0.03, NEIGHBOURS + 1.35)
    axes.set_ylim(rows + 0.5, -0.03)
    axes.set_aspect("equal", anchor="NW")
    axes.axis("off")


def _cross(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], marker="X", markersize=9, color=WRONG, markeredgecolor="white")


def _draw_image(axes: "Axes", image: Tensor, x: float, y: float) -> None:
    # Gray images have a single channel, which matplotlib wants to be no axis.
    pixels = image.squeeze(-1).numpy()
    axes.imshow(pixels, extent=(x, x + CELL, y + CELL, y), cmap="gray", vmin=0, vmax=255)


def _one_per_class(labels: Tensor, limit: int) -> Tensor:
    """Choose the first image of each class, of at most `limit` classes spread evenly."""
    classes = torch.unique(labels)
    if len(classes) > limit:
        classes = classes[torch.arange(limit) * len(classes) // limit]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in classes])
