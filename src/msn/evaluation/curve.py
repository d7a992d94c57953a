"""Accuracy against the number of labels, a classifier for each set of labeled images."""

import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msn.evaluation.logistic import Accuracy, accuracy, choose_lambda, fit
from msn.runtime.errors import printable
from msn.runtime.files import replacing


class LabelSet(NamedTuple):
    """Training images whose labels are used: their positions among the features."""

    name: str
    positions: Tensor  # int64 (N,)


class Outcome(NamedTuple):
    """What one classifier reached."""

    name: str  # of the label set
    labels: int
    images_per_class: float
    lambd: float
    auto: bool  # lambd was cross-validated
    accuracy: Accuracy


class Point(NamedTuple):
    """Outcomes with as many images per class and the same lambda, in percent."""

    images_per_class: float
    lambd: float | None  # None: chosen for each set of labels
    mean: float
    std: float  # sample standard deviation; 0 for a single one
    top5: float | None
    per_class: dict[int, float]
    sets: int  # of labeled images


def label_curve(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    sets: Sequence[LabelSet],
    lambdas: Sequence[float | None],
    solver: str = "torch",
    penalty: str = "l2",
    say: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Fit and score a classifier for each set of labels and each strength of the penalty.

    Args:
        train: (N, D) prepared features; the solver computes in their type, on their device.
        train_labels: (N,) int64.
        test: (M, D), likewise.
        test_labels: (M,) int64.
        sets: which training images are labeled.
        lambdas: strengths; None cross-validates on the labeled images alone.
        solver, penalty: as for `msn.evaluation.logistic.fit`.
        say: is told each outcome.

    Raises:
        UserError: as raised by `fit` and `choose_lambda`.
    """
    outcomes = []
    for labeled in sets:
        features, labels = train[labeled.positions], train_labels[labeled.positions]
        for wanted in lambdas:
            lambd = wanted or choose_lambda(features, labels, solver=solver, penalty=penalty)
            model = fit(features, labels, lambd=lambd, solver=solver, penalty=penalty)
            result = accuracy(model, test, test_labels)
            per_class = len(labels) / len(model.classes)
            outcomes.append(
                Outcome(labeled.name, len(labels), per_class, lambd, wanted is None, result)
            )
            say(outcomes[-1])
    return outcomes


def points(outcomes: Sequence[Outcome]) -> list[Point]:
    """Average over the label sets of each size, with their spread, in order of size."""
    groups: dict[tuple[float, float | None], list[Accuracy]] = {}
    for one in outcomes:
        key = round(one.images_per_class, 2), None if one.auto else one.lambd
        groups.setdefault(key, []).append(one.accuracy)
    found = []
    for (images, lambd), scores in sorted(groups.items(), key=lambda item: item[0][0]):
        top1 = [score.top1 for score in scores]
        top5 = [score.top5 for score in scores if score.top5 is not None]
        per_class = {
            label: statistics.fmean(score.per_class[label] for score in scores)
            for label in scores[0].per_class
        }
        found.append(
            Point(
                images_per_class=images,
                lambd=lambd,
                mean=statistics.fmean(top1),
                std=statistics.stdev(top1) if len(top1) > 1 else 0.0,
                top5=statistics.fmean(top5) if top5 else None,
                per_class=per_class,
                sets=len(scores),
            )
        )
    return found


def table(found: Sequence[Point]) -> str:
    """Format the points as a Markdown table, one line each."""
    lines = [
        "| images per class | lambda | sets | top-1 % | top-5 % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in found:
        lambd = "auto" if point.lambd is None else f"{point.lambd:g}"
        spread = f" ± {point.std:.1f}" if point.sets > 1 else ""
        top5 = "" if point.top5 is None else f"{point.top5:.1f}"
        images = f"{point.images_per_class:g}"
        lines.append(f"| {images} | {lambd} | {point.sets} | {point.mean:.1f}{spread} | {top5} |")
    return "\n".join(lines)


def as_json(
    outcomes: Sequence[Outcome], found: Sequence[Point], names: Sequence[str]
) -> dict[str, Any]:
    """Collect all results for JSON: accuracies in percent, classes by their name."""

    def named(one: Point | Accuracy) -> dict[str, Any]:
        per_class = {printable(names[label]): score for label, score in one.per_class.items()}
        return {**one._asdict(), "per_class": per_class}

    return {
        "unit": "percent",
        "points": [named(point) for point in found],
        "outcomes": [{**one._asdict(), "accuracy": named(one.accuracy)} for one in outcomes],
    }


def plot(path: Path, found: Sequence[Point]) -> None:
    """Draw top-1 accuracy against labels per class, a line for each lambda, as PNG or SVG.

    Raises:
        UserError: the file cannot be written.
    """
    # Without pyplot: nothing global changes, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for lambd in dict.fromkeys(point.lambd for point in found):
        line = [point for point in found if point.lambd == lambd]
        axes.errorbar(
            [point.images_per_class for point in line],
            [point.mean for point in line],
            yerr=[point.std for point in line],
            marker="o",
            capsize=3,
            label="lambda auto" if lambd is None else f"lambda {lambd:g}",
        )
    axes.set_xscale("log")
    ticks = sorted({point.images_per_class for point in found})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labeled images per class")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="svg" if path.suffix == ".svg" else "png", dpi=150)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def positions(indices: np.ndarray, among: np.ndarray) -> Tensor:
    """Find the position of each of `indices` in the sorted `among`, which holds them all."""
    return torch.from_numpy(np.searchsorted(among, indices))
