"""Options of the commands that draw what an encoder sees."""

import argparse

from msn.cli.arguments import count, few, path, png, share, whole
from msn.cli.options.encoders import SPLITS, add_bench


def add_prototypes(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize prototypes`."""
    _add_images(parser, "prototypes", split="train")
    add = parser.add_argument
    add("--top", type=few, default=8, metavar="N", help="images drawn of each prototype")
    add("--rows", type=few, default=32, metavar="N", help="prototypes drawn, the most used ones")


def add_attention(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize attention`."""
    _add_images(parser, "attention", number=4)
    _add_proportions(parser)
    add = parser.add_argument
    add("--block", type=int, default=-1, metavar="N", help="block, from 0, or from the last, -1")
    add("--mask", type=share, default=0.0, metavar="SHARE", help="share of the patches to drop")
    add(
        "--mass",
        type=share,
        default=0.6,
        metavar="SHARE",
        help="share of the mean map that the patches kept in the last column hold",
    )


def add_neighbors(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize neighbors`."""
    _add_images(parser, "neighbors", number=8)
    add = parser.add_argument
    add(
        "--query",
        type=path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="image files, or folders of them, to find neighbors of; left out, --count images of"
        " --split, or of --images",
    )
    add("--gallery", choices=SPLITS, default="train", help="split to find neighbors in")
    add("--k", type=few, default=8, metavar="N", help="neighbors of each")


def add_pca(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize pca`."""
    _add_images(parser, "pca", number=8)
    _add_proportions(parser)
    add = parser.add_argument
    add("--foreground", action="store_true", help="darken what Otsu's threshold calls background")
    add("--basis", type=path, metavar="FILE", help="use a basis that --save-basis wrote")
    add("--save-basis", type=path, metavar="FILE", help="write the basis, as .safetensors")


def add_map(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize map`."""
    _add_images(parser, "map", number=2000)
    add = parser.add_argument
    add("--method", choices=("tsne", "pca", "umap"), default="tsne", help="how to draw the map")
    add("--seed", type=whole, default=0, help="seed of what is random in it")


def _add_proportions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-aspect",
        action="store_true",
        help="take whole images, their short side of the image size, in place of central squares",
    )


def _add_images(
    parser: argparse.ArgumentParser, drawn: str, *, split: str = "val", number: int | None = None
) -> None:
    """Add the options for the encoder, the images and the picture."""
    parser.set_defaults(drawn=drawn, number=number)
    add_bench(parser)
    _add_files(parser)
    add = parser.add_argument
    add("--split", choices=SPLITS, default=split, help="split of the data set to take")
    add(
        "--count",
        type=count,
        metavar="N",
        help="take so many of the images, evenly spaced; left out, all"
        + f" of --images, {number} of a data set" * bool(number),
    )
    add("--out", required=True, type=png, metavar="PNG", help="picture to write, and .json")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="image files, or folders of them, in place of a data set",
    )


PICTURES = {
    "attention": add_attention,
    "map": add_map,
    "neighbors": add_neighbors,
    "pca": add_pca,
    "prototypes": add_prototypes,
}
"""What adds the options of each picture."""


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize all`."""
    add_bench(parser)
    _add_files(parser)
    parser.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="FOLDER",
        help="folder to make: index.html, a picture of each kind, and .json",
    )
