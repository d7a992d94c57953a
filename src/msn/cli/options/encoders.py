"""Options of the commands that evaluate a frozen encoder."""

import argparse
from typing import Any

from msn.cli.arguments import batch, count, divisor, few, path, share, side, strength, truth, whole
from msn.config.protocol import PROTOCOL

ENCODERS = ("target", "anchor")
SOLVERS = ("cyanure", "torch", "sklearn")
SPLITS = ("train", "val")
VOTES = ("weighted", "plain")
OFFICIAL_LAMBDA = 0.00025
_RESULT = "JSON file for the result; left out, one beside the weights"


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the options for the weights, the devices to compute on, and the images."""
    add = parser.add_argument
    add(
        "--weights",
        type=path,
        metavar="FILE",
        help="checkpoint of msn or of the official code, or whatever else msn import reads",
    )
    add(
        "--encoder",
        choices=ENCODERS,
        default="target",
        help="which of the two encoders of a checkpoint to take",
    )
    add(
        "--model-name",
        metavar="NAME",
        help="refuse weights of another model than this: deit_small or vit_small, deit_base, ...",
    )
    add(
        "--num-heads",
        type=count,
        metavar="N",
        help="number of attention heads, where the weights do not tell",
    )
    add(
        "--devices",
        "--device",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="where to compute: cpu, cuda:0 cuda:1, ...; several share each batch; auto takes the"
        " first GPU if there is one",
    )
    add(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        default="fp32",
        help="arithmetic of the encoder; auto is bf16 where the hardware is fast at it",
    )
    add(
        "--image-size",
        type=side,
        metavar="PX",
        help="side of the images that the encoder sees; left out, that of the training",
    )
    add("--batch-size", type=batch, default=256, metavar="N", help="images at a time")
    add("--cache", type=path, metavar="FOLDER", help="keep features here and find them again")
    add_data(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options for the images that an encoder sees."""
    add = parser.add_argument
    add(
        "--fname",
        type=path,
        metavar="CONFIG",
        help="config file whose data section names the images; left out, that of the training",
    )
    add("--skip-bad", action="store_true", help="continue without the images that cannot be read")
    add(
        "overrides",
        nargs="*",
        metavar="data.key=value",
        help="values that say which images to take: data.root_path=...",
    )


def add_knn(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate knn`."""
    add_bench(parser)
    _add_taps(parser)
    add = parser.add_argument
    add("--k", type=count, nargs="+", default=[10, 20], help="numbers of neighbors that vote")
    add("--vote", nargs="+", choices=VOTES, default=VOTES, help="how the neighbors vote")
    add(
        "--temperature",
        type=divisor,
        default=PROTOCOL.temperature,
        help="temperature of the weighted vote",
    )
    add("--out", type=path, metavar="FILE", help=_RESULT)


def add_logistic(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate logistic`."""
    add_bench(parser)
    _add_mask(parser)
    add = parser.add_argument
    add(
        "--pretrained",
        type=path,
        metavar="FOLDER",
        help="folder of the weights, of which --fname then is the file (as in the official code)",
    )
    add(
        "--root-path",
        type=path,
        metavar="FOLDER",
        help="short for data.source=folder data.root_path=FOLDER",
    )
    add("--image-folder", metavar="FOLDER", help="short for data.image_folder=FOLDER")
    add("--subset-path", type=path, nargs="+", metavar="FILE", help="lists of labeled images")
    add(
        "--images-per-class",
        type=count,
        nargs="+",
        metavar="N",
        help="draw so many labeled images of each class, instead of reading lists",
    )
    add(
        "--draws",
        type=count,
        default=PROTOCOL.draws,
        help="how often to draw each number of images",
    )
    add("--seed", type=whole, default=0, help="seed of the draws")
    add(
        "--lambd",
        type=strength,
        nargs="+",
        default=[OFFICIAL_LAMBDA],
        metavar="VALUE",
        help="strengths of the penalty, or auto: cross-validated on the labeled images; 0.075 was"
        " published for 1 %% of ImageNet",
    )
    add("--out", type=path, metavar="FILE", help=_RESULT)
    add("--penalty", default="l2", help="kind of the penalty: l2 or l1")
    add("--solver", choices=SOLVERS, default="cyanure", help="library that fits the regression")
    switch: dict[str, Any] = {"type": truth, "nargs": "?", "const": True, "metavar": "BOOL"}
    add("--normalize", **switch, default=True, help="scale each sample to unit length")
    add(
        "--preload",
        **switch,
        default=False,
        help="keep features beside the weights, and find them there (short for --cache)",
    )
    add(
        "--plot",
        type=path,
        metavar="FILE",
        help="draw accuracy against labels into this .png or .svg file",
    )


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate all`."""
    add_bench(parser)
    add = parser.add_argument
    add(
        "--images-per-class",
        type=count,
        nargs="+",
        default=list(PROTOCOL.images_per_class),
        metavar="N",
        help="numbers of labeled images of each class",
    )
    add(
        "--draws",
        type=count,
        default=PROTOCOL.draws,
        help="how often to draw each number of images",
    )
    add("--seed", type=whole, default=PROTOCOL.seed, help="seed of the draws")
    add("--k", type=count, default=PROTOCOL.k, help="number of neighbors that vote")
    add(
        "--max-images",
        type=count,
        metavar="N",
        help="take at most so many images of each split, evenly spaced; left out, all",
    )
    add(
        "--out",
        type=path,
        metavar="FILE",
        help="Markdown file for the table; left out, one beside the weights",
    )


def add_features(parser: argparse.ArgumentParser) -> None:
    """Add the options of `features`."""
    add_bench(parser)
    _add_taps(parser)
    add = parser.add_argument
    add("--split", choices=SPLITS, default="val", help="split of the images to take")
    add(
        "--out",
        type=path,
        required=True,
        metavar="FILE",
        help="the .safetensors or .npz file to write; the folder FILE.cache beside it keeps what"
        " is done until then, unless --cache names another",
    )


def _add_taps(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which features are taken."""
    add = parser.add_argument
    add(
        "--blocks",
        type=few,
        default=1,
        metavar="K",
        help="take the class tokens of the last K blocks, side by side",
    )
    add("--norm", action="store_true", help="take features after the final norm, not before it")
    add(
        "--patch-average",
        action="store_true",
        help="append the mean patch token of the last block to the class tokens",
    )
    _add_mask(parser)


def _add_mask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mask",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the patches of each training image to drop",
    )
