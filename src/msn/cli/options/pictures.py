"""Options of the commands that draw what an encoder sees."""

import argparse

from msn.cli.arguments import count, few, path, png
from msn.cli.options.encoders import SPLITS, add_bench


def add_prototypes(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize prototypes`."""
    _add_images(parser, "prototypes", split="train")
    add = parser.add_argument
    add("--top", type=few, default=8, metavar="N", help="images drawn of each prototype")
    add("--rows", type=few, default=32, metavar="N", help="prototypes drawn, the most used ones")


def _add_images(
    parser: argparse.ArgumentParser, drawn: str, *, split: str, number: int | None = None
) -> None:
    """Add the options for the encoder, the images and the picture."""
    parser.set_defaults(drawn=drawn)
    add_bench(parser)
    add = parser.add_argument
    add(
        "--images",
        type=path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="image files, or folders of them, in place of a data set",
    )
    add("--split", choices=SPLITS, default=split, help="split of the data set to take")
    add(
        "--count",
        type=count,
        default=number,
        metavar="N",
        help="take so many of the images, evenly spaced; left out, all",
    )
    add("--out", required=True, type=png, metavar="PNG", help="picture to write, and .json")
