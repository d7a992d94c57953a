"""Options of the commands that read and write weights, pictures and lists."""

import argparse

from msn.cli.arguments import count, few, path, png, side, whole
from msn.cli.options.encoders import add_data
from msn.config.protocol import PROTOCOL

FORMATS = ("official", "huggingface", "timm", "onnx", "torch", "release")
IMPORTED_AS = ("official", "huggingface", "timm", "run")
RELEASED = ("vits16_800ep", "vitb16_600ep", "vitl16_600ep", "vitb4_300ep", "vitl7_200ep")
TAPS = ("cls", "cls_prenorm", "patches", "patch_mean", "projection", "logits")
OPSETS = range(18, 24)
HEADS = "number of attention heads, where the file does not tell it"


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    add = parser.add_argument
    add(
        "weights",
        type=path,
        metavar="WEIGHTS",
        help="checkpoint, released file, or folder for transformers or timm",
    )
    add("out", type=path, metavar="OUT", help="file or folder to write")
    add(
        "--to",
        required=True,
        choices=FORMATS,
        help="official: a file like the released ones; huggingface, timm: a folder; onnx, torch: a"
        " graph (torch.export); release: a folder with all that it takes to resume training",
    )
    add(
        "--encoder",
        choices=("target", "anchor"),
        default="target",
        help="which of the two encoders of a checkpoint to take",
    )
    add("--num-heads", type=count, metavar="N", help=HEADS)
    add(
        "--head",
        type=path,
        metavar="FILE",
        help="checkpoint of a linear evaluation of these weights: its best classifier goes along",
    )
    add = parser.add_argument_group("options for onnx and torch").add_argument
    add("--tap", choices=TAPS, help="output of the graph: cls, of a ResNet patch_mean")
    add(
        "--normalize",
        "--normalise",
        action="store_true",
        help="let the graph take images in the scale 0 to 1, and normalize them itself",
    )
    add(
        "--image-size",
        type=side,
        nargs="+",
        metavar="PX",
        help="side of the images, or height and width; left out, that of the training",
    )
    known = f"{OPSETS.start} to {OPSETS.stop - 1}"
    add("--opset", type=int, default=18, metavar="N", help=f"version of ONNX's operators, {known}")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the options of `import`."""
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="checkpoint file; folder for transformers or timm; release; file of a timm ViT;"
        f" or official:NAME, a released encoder to download: {', '.join(RELEASED)}",
    )
    add("out", nargs="?", type=path, metavar="OUT", help="file or folder to write")
    add(
        "--as",
        dest="format",
        choices=IMPORTED_AS,
        help="official: a checkpoint for meta.init_from and evaluation; huggingface, timm: a"
        " folder; run: a release as the folder of a run, to resume",
    )
    add("--model-name", metavar="NAME", help="refuse weights of another model than this")
    add("--num-heads", type=count, metavar="N", help=HEADS)
    add = parser.add_argument_group("options for official:NAME").add_argument
    add(
        "--from",
        dest="given",
        type=path,
        metavar="FILE",
        help="read a copy of the released file, where there is no network",
    )
    add("--sha256", metavar="HEX", help="refuse a file with another hash than this")


def add_views(parser: argparse.ArgumentParser) -> None:
    """Add the options of `views`."""
    add = parser.add_argument
    add("--fname", required=True, type=path, metavar="CONFIG", help="YAML config file of the views")
    add("--image", required=True, type=path, metavar="FILE", help="image to make views of")
    add("--out", required=True, type=png, metavar="PNG", help="picture to write")
    add("--epochs", type=few, default=4, help="number of rows of views, one per epoch")
    add(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that replace those of the config file",
    )


def add_reconstruction(parser: argparse.ArgumentParser) -> None:
    """Add the options of `visualize reconstruction`."""
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        type=path,
        metavar="FILE",
        help="checkpoint of a pre-training by MAE or SimMIM",
    )
    add("--out", required=True, type=png, metavar="PNG", help="picture to write, and .json")
    add("--images", type=few, default=8, metavar="N", help="number of images, of the val split")
    add("--step", type=whole, default=0, metavar="N", help="masks as at step N of the training")
    add("--device", default="auto", help="where to compute: auto, cpu, cuda:0, ...")
    add_data(parser)


def add_draw(parser: argparse.ArgumentParser) -> None:
    """Add the options of `subsets draw`."""
    add = parser.add_argument
    add(
        "--fname",
        type=path,
        metavar="CONFIG",
        help="config file whose data section names the images",
    )
    add(
        "--images-per-class",
        type=count,
        nargs="+",
        default=list(PROTOCOL.images_per_class),
        metavar="N",
        help="numbers of images of each class, a list for each",
    )
    add("--draws", type=count, default=3, help="how often to draw each number of images")
    add("--seed", type=whole, default=0, help="seed of the draws")
    add(
        "--out",
        type=path,
        required=True,
        metavar="FOLDER",
        help="folder for the lists: FOLDER/subsets1/1imgs_class.txt and so on",
    )
    add(
        "overrides",
        nargs="*",
        metavar="data.key=value",
        help="values that say which images to take: data.root_path=...",
    )


def add_fetch(parser: argparse.ArgumentParser) -> None:
    """Add the options of `subsets fetch`."""
    add = parser.add_argument
    add("--folder", type=path, default="imagenet_subsets", help="folder for the lists")
    add("--url", help="where to get the lists; left out, from the official repository")
