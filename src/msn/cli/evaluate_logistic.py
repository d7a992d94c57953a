"""`msn evaluate logistic`, also `logistic_eval.py`: logistic regression on a few labels.

The official command line works as it stands; there `--fname` is the file of weights in the folder
`--pretrained`. With `--weights` it is a config file, as for all other commands.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from msn.cli.weights import Bench, add_mask, add_options, beside, open_bench
from msn.data.sources import Source
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
from msn.evaluation.frozen import Taps
from msn.evaluation.logistic import SOLVERS, check_settings, prepare
from msn.evaluation.lowshot import draw_subset
from msn.runtime.errors import UserError
from msn.runtime.files import write_json

OFFICIAL_LAMBDA = 0.00025


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser)
    add_mask(parser)
    add = parser.add_argument
    add("--pretrained", type=Path, metavar="FOLDER", help="of the weights, --fname is their file")
    add("--root-path", metavar="FOLDER", help="short for data.source=folder data.root_path=FOLDER")
    add("--image-folder", metavar="FOLDER", help="short for data.image_folder=FOLDER")
    add("--subset-path", type=Path, nargs="+", metavar="FILE", help="lists of labelled images")
    add("--images-per-class", type=int, nargs="+", metavar="N", help="draw labelled images instead")
    add("--draws", type=int, default=20, help="how often, of each number (default 20)")
    add("--seed", type=int, default=0, help="of the draws (default 0)")
    add(
        "--lambd",
        type=_strength,
        nargs="+",
        default=[OFFICIAL_LAMBDA],
        metavar="VALUE",
        help="strengths of the penalty, or auto: cross-validated on the labelled images"
        " (default 0.00025 as official; 0.075 was published for 1 %% of ImageNet)",
    )
    add("--penalty", default="l2", help="l2 or l1 (default l2)")
    add("--solver", choices=SOLVERS, default="cyanure", help="(default cyanure)")
    add(
        "--normalize",
        type=_truth,
        nargs="?",
        const=True,
        default=True,
        metavar="BOOL",
        help="scale each sample to unit length (default true)",
    )
    add(
        "--preload",
        type=_truth,
        nargs="?",
        const=True,
        default=False,
        metavar="BOOL",
        help="keep features beside the weights, and find them there (short for --cache)",
    )
    add("--plot", type=Path, metavar="FILE", help="draw accuracy against labels, .png or .svg")


def run(options: argparse.Namespace) -> None:
    """Print the outcomes and a table; write them as JSON beside the weights."""
    _official_words(options)
    for lambd in options.lambd:
        check_settings(
            lambd=1.0 if lambd is None else lambd, solver=options.solver, penalty=options.penalty
        )
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {options.plot}: must end in .png or .svg")
    bench = open_bench(options)
    train, val = bench.labelled()
    chosen = _label_sets(options, train)
    used = np.unique(np.concatenate([indices for _, indices in chosen]))
    known = bench.features(train, indices=used, taps=Taps(mask=options.mask))
    asked = bench.features(val)  # with a mask too, the held-out images are seen whole
    assert known.labels is not None
    assert asked.labels is not None
    outcomes = label_curve(
        _prepared(known.features, bench, options),
        known.labels,
        _prepared(asked.features, bench, options),
        asked.labels,
        sets=[LabelSet(name, positions(indices, used)) for name, indices in chosen],
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
    path = beside(options.weights, "logistic.json")
    write_json(path, {**settings, **as_json(outcomes, found)})
    print(f"written: {path}")


def _official_words(options: argparse.Namespace) -> None:
    """Bring the official options to the form of all other commands."""
    if options.pretrained:
        if options.weights or not options.fname:
            raise UserError(
                "--pretrained FOLDER needs --fname FILE, the weights in it, and no --weights"
            )
        options.weights, options.fname = options.pretrained / options.fname, None
    if options.root_path is not None:
        options.overrides += ["data.source=folder", f"data.root_path={_quoted(options.root_path)}"]
    if options.image_folder is not None:
        # Official paths may begin with a slash; they are below the root all the same.
        options.overrides.append(f"data.image_folder={_quoted(options.image_folder.strip('/'))}")
    if options.preload and not options.cache and options.weights:
        options.cache = beside(options.weights, "features")


def _label_sets(options: argparse.Namespace, train: Source) -> list[tuple[str, np.ndarray]]:
    if options.subset_path and options.images_per_class:
        raise UserError("--subset-path and --images-per-class are both given; drop either")
    if options.subset_path:
        return [
            ("/".join(path.parts[-2:]), read_subset(path, train)) for path in options.subset_path
        ]
    labels = torch.from_numpy(np.asarray(train.labels(), dtype=np.int64))
    if not options.images_per_class:
        return [("all labels", np.arange(len(train)))]
    if options.draws < 1 or min(options.images_per_class) < 1 or options.seed < 0:
        raise UserError("--draws and --images-per-class must be at least 1, --seed at least 0")
    return [
        (
            f"{count} per class, draw {draw}",
            draw_subset(labels, count, seed=options.seed, draw=draw).numpy(),
        )
        for count in options.images_per_class
        for draw in range(options.draws)
    ]


def _prepared(features: torch.Tensor, bench: Bench, options: argparse.Namespace) -> torch.Tensor:
    """In float32 for cyanure as in the official code; else float64, on the device for torch."""
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


def _strength(word: str) -> float | None:
    return None if word == "auto" else float(word)


def _truth(word: str) -> bool:
    """`--normalize False` means false; to `bool` any text is true."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if word.lower() not in known:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return known[word.lower()]


def _quoted(text: str) -> str:
    """As a YAML text, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"
