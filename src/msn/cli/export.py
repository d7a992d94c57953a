"""`msn export`: write weights for other software, or release the whole state of a run."""

import argparse

import torch

from msn.cli.terminal import say_written
from msn.config.sizes import EncoderSize
from msn.interop import huggingface, official, reading, release, timm_vit
from msn.interop.classifiers import with_linear_head
from msn.interop.graph import Graph, write_onnx, write_torch
from msn.interop.weights import Weights
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place


def run(options: argparse.Namespace) -> None:
    """Write weights in the requested format, or release the whole state of a run."""
    prepare_place(options.out, folder=options.to in ("huggingface", "timm", "release"))
    if options.to == "release":
        release.write(options.out, options.weights)
    else:
        weights = reading.read(options.weights, which=options.encoder, num_heads=options.num_heads)
        if options.head:
            weights = with_linear_head(weights, options.head)
        write(weights, options)
    say_written(options.out)


def write(weights: Weights, options: argparse.Namespace) -> None:
    """Write weights in any of the formats except `release`."""
    if options.to in ("onnx", "torch"):
        graph = Graph(weights, options.tap, normalize=options.normalize)
        images = torch.rand(2, weights.architecture.in_chans, *image_size(weights, options))
        if options.to == "onnx":
            write_onnx(options.out, graph, images, opset=options.opset)
        else:
            write_torch(options.out, graph, images)
        return
    {"official": official, "huggingface": huggingface, "timm": timm_vit}[options.to].write(
        options.out, weights
    )


def image_size(weights: Weights, options: argparse.Namespace) -> tuple[int, int]:
    """Find the height and width of the images that an exported graph takes.

    Raises:
        UserError: more than two numbers, or smaller than a patch.
    """
    sizes = options.image_size or [weights.architecture.image_size]
    size = weights.architecture.size
    patch = (isinstance(size, EncoderSize) and size.patch_size) or 1
    if len(sizes) > 2 or min(sizes) < patch:
        given = " ".join(map(str, sizes))
        raise UserError(
            f"--image-size {given}: must be a side, or height and width, of at least {patch} px"
        )
    return sizes[0], sizes[-1]
