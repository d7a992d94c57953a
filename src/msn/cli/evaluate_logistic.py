"""`msn evaluate logistic`, also `logistic_eval.py`: logistic regression on a few labels.

The official command line works as it stands; there `--fname` is the file of weights in the folder
`--pretrained`. With `--weights` it is a config file, as for all other commands.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from msn.cli.terminal import say_written
from msn.cli.weights import Bench, beside, open_bench, result_path
from msn.data.classes import Splits
from msn.data.labeled import LabeledSet
from msn.data.subsets import read_subset
from msn.evaluation.curve import (
    LabelSet,
    Outcome,
    as_json,
    label_curve,
    plot,
    points,
    positions,
    table,
)
from msn.evaluation.logistic import check_settings, prepare
from msn.evaluation.lowshot import draw_subset
from msn.models.encoder import Taps
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place, write_json


def run(options: argparse.Namespace) -> None:
    """Print the accuracies of all fits and a table; write them as JSON beside the weights."""
    _official_words(options)
    for lambd in options.lambd:
        check_settings(
            lambd=1.0 if lambd is None else lambd, solver=options.solver, penalty=options.penalty
        )
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {options.plot}: must end in .png or .svg")
    bench = open_bench(options)
    path = result_path(options, "logistic.json")
    if options.plot:
        prepare_place(options.plot)
    splits = bench.labeled()
    sets, train, train_labels = _labeled_features(options, bench, splits)
    val, val_labels = bench.features(splits.val)  # with a mask too, these are seen whole
    bench.settle()
    outcomes = label_curve(
        _prepared(train, bench, options),
        train_labels,
        _prepared(val, bench, options),
        val_labels,
        sets=sets,
        lambdas=options.lambd,
        solver=options.solver,
        penalty=options.penalty,
        say=_say,
    )
    found = points(outcomes)
    print(f"\n{table(found)}\n")
    if options.plot:
        plot(options.plot, found)
    settings = {name: getattr(options, name) for name in ("solver", "penalty", "mask", "normalize")}
    skipped = {"skipped_images": bench.unreadable.found}
    write_json(path, {**settings, **as_json(outcomes, found, splits.names), **skipped})
    say_written(path, *filter(None, [options.plot]))


def _official_words(options: argparse.Namespace) -> None:
    """Translate the options of the official command line into those of all other commands."""
    if options.pretrained:
        if options.weights or not options.fname:
            raise UserError(
                "--pretrained FOLDER needs --fname FILE, the weights in it, and no --weights"
            )
        options.weights, options.fname = options.pretrained / options.fname, None
    if options.root_path is not None:
        options.overrides += [
            "data.source=folder",
            f"data.root_path={_quoted(str(options.root_path))}",
        ]
    if options.image_folder is not None:
        # Official paths may begin with a slash; they are below the root all the same.
        options.overrides.append(f"data.image_folder={_quoted(options.image_folder.strip('/'))}")
    if options.preload and not options.cache and options.weights:
        options.cache = beside(options.weights, "features")


def _labeled_features(
    options: argparse.Namespace, bench: Bench, splits: Splits
) -> tuple[list[LabelSet], Tensor, Tensor]:
    """Give the sets of labeled images, and features and labels of all images in any of them."""
    labels = splits.train.labels.copy()
    while True:
        chosen = _label_sets(options, replace(splits.train, labels=labels), splits.names)
        used = np.unique(np.concatenate([indices for _, indices in chosen]))
        found = bench.extract(splits.train.source, indices=used, taps=Taps(mask=options.mask))
        if len(found.indices) == len(used) or bench.unreadable.given_up:
            break
        labels[np.setdiff1d(used, found.indices)] = -1  # others are drawn in place of bad images
    sets = [LabelSet(name, positions(indices, used)) for name, indices in chosen]
    return sets, found.features, torch.from_numpy(labels[found.indices])


def _label_sets(
    options: argparse.Namespace, train: LabeledSet, names: Sequence[str]
) -> list[tuple[str, np.ndarray]]:
    """Give name and images of each set; images with a label of -1 are in none."""
    if options.subset_path and options.images_per_class:
        raise UserError("--subset-path and --images-per-class are both given; drop either")
    if options.subset_path:
        lists = [(path, read_subset(path, train.source)) for path in options.subset_path]
        return [
            ("/".join(path.parts[-2:]), indices[train.labels[indices] >= 0])
            for path, indices in lists
        ]
    if not options.images_per_class:
        return [("all labels", np.flatnonzero(train.labels >= 0))]
    labels = torch.from_numpy(train.labels)
    return [
        (
            f"{count} per class, draw {draw}",
            draw_subset(labels, count, seed=options.seed, draw=draw, names=names).numpy(),
        )
        for count in options.images_per_class
        for draw in range(options.draws)
    ]


def _prepared(features: torch.Tensor, bench: Bench, options: argparse.Namespace) -> torch.Tensor:
    """Prepare features for the solver: float32 for cyanure, as officially, else float64."""
    if options.solver != "cyanure":
        features = features.double()
    if options.solver == "torch":
        features = features.to(bench.encoder.devices[0])
    return prepare(features, normalize=options.normalize)


def _say(outcome: Outcome) -> None:
    top5 = "" if outcome.accuracy.top5 is None else f", top-5 {outcome.accuracy.top5:.2f} %"
    print(
        f"{outcome.name}: {outcome.labels} labels, lambda {outcome.lambd:g}:"
        f" top-1 {outcome.accuracy.top1:.2f} %{top5}",
        flush=True,
    )


def _quoted(text: str) -> str:
    """Quote any text for YAML."""
    return "'" + text.replace("'", "''") + "'"
