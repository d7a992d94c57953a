"""`msn evaluate all`: what the representation is worth, in one table."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from msn.cli.terminal import say_written
from msn.cli.weights import Bench, open_bench, result_path
from msn.data.labelled import LabelledSet
from msn.data.unreadable import Unreadable
from msn.evaluation.features import PIXELS, EvalSet, evaluation_images, raw_pixels
from msn.evaluation.frozen import frozen
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.evaluation.lowshot import LAMBDA
from msn.runtime.files import replacing
from msn.runtime.keyed import Stream, seed64
from msn.visualize.report import Representation, Scores, available, score


def run(options: argparse.Namespace) -> None:
    """Print the table and write it as Markdown."""
    bench = open_bench(options)
    path = result_path(options, "evaluation.md")
    splits = bench.labelled(options.max_images)
    pixels = [_pixels(bench, images) for images in (splits.train, splits.val)]
    bench.settle()
    # The same images for all: one that went bad only since is an error.
    skipped, bench = list(bench.unreadable.found), bench._replace(unreadable=Unreadable())
    train_labels, val_labels = (images.labels for images in pixels)
    sets = [
        replace(images, chosen=good.indices)
        for images, good in zip((splits.train, splits.val), pixels, strict=True)
    ]
    counts = available(train_labels, options.images_per_class)
    rows, linear = [], []
    for name, (train, val) in (
        ("raw pixels", [raw_pixels(split.images) for split in pixels]),
        ("untrained encoder", _features(_untrained(bench, options.seed), sets)),
        ("trained encoder", _features(bench, sets)),
    ):
        row = Representation(name, train, val)
        settings = {"draws": options.draws, "seed": options.seed, "k": options.k}
        rows.append(score(row, train_labels, val_labels, counts, **settings))
        linear.append(_linear(row, train_labels, val_labels, bench.encoder.devices[0]))
    text = markdown(rows, linear, options.k)
    if skipped:
        text += f"\n\nLeft out, as they could not be read: {', '.join(skipped)}"
    print(text)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    say_written(path)


def markdown(rows: Sequence[Scores], linear: Sequence[float], k: int) -> str:
    """A line for each representation: k-NN, each number of images per class, all labels."""
    shots = [f"{result.images_per_class}-shot" for result in rows[0].low_shot]
    heads = ["accuracy in %", f"{k}-NN", *shots, "linear, all labels"]
    lines = [heads, ["---"] * len(heads)]
    for row, top1 in zip(rows, linear, strict=True):
        cells = [f"{result.mean:.1f} ± {result.std:.1f}" for result in row.low_shot]
        lines.append([row.name, f"{row.knn:.1f}", *cells, f"{top1:.1f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _linear(
    row: Representation, train_labels: Tensor, val_labels: Tensor, device: torch.device
) -> float:
    """Logistic regression on all labels, as in the paper's linear transfer (appendix A)."""
    train, val = (prepare(features.double().to(device)) for features in (row.train, row.val))
    return accuracy(fit(train, train_labels, lambd=LAMBDA), val, val_labels).top1


def _untrained(bench: Bench, seed: int) -> Bench:
    """The same with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(seed, Stream.INIT))
        vit = bench.pretrained.architecture.build()
    encoder = frozen(
        bench.pretrained,
        devices=bench.encoder.devices,
        bf16=bench.encoder.bf16,
        image_size=bench.encoder.image_size,
        mean=bench.encoder.mean,
        std=bench.encoder.std,
        vit=vit,
    )
    return bench._replace(encoder=encoder)


def _features(bench: Bench, sets: Sequence[LabelledSet]) -> list[Tensor]:
    """Of the train and the val split."""
    found = [bench.features(images)[0] for images in sets]
    bench.settle()
    return found


def _pixels(bench: Bench, images: LabelledSet) -> EvalSet:
    return evaluation_images(
        images,
        image_size=min(PIXELS, bench.encoder.image_size),
        num_workers=bench.workers,
        unreadable=bench.unreadable,
    )
