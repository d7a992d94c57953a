"""`msn import`: convert weights from elsewhere, to be evaluated or trained further."""

import argparse
from pathlib import Path

from msn.cli.terminal import say_written
from msn.interop import huggingface, official, reading, release, timm_vit, zoo
from msn.interop.architecture import official_names
from msn.interop.weights import Weights
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place
from msn.runtime.wording import counted

ZOO = "official:"
WRITERS = {"official": official.write, "huggingface": huggingface.write, "timm": timm_vit.write}


def run(options: argparse.Namespace) -> None:
    """Read weights, print what they are, and write them if an output is given."""
    if (options.out is None) != (options.format is None):
        raise UserError("OUT and --as go together: give both, or neither to look only")
    if options.format == "run":
        config = release.unpack(Path(options.source), options.out)
        print(f"to resume: python main.py --fname {config}")
        say_written(options.out)
        return
    if options.format:
        prepare_place(options.out, folder=options.format != "official")
    model_name, source = options.model_name, Path(options.source)
    if options.source.startswith(ZOO):
        name = options.source.removeprefix(ZOO)
        source = zoo.fetch(name, given=options.given, expected=options.sha256)
        model_name = model_name or zoo.MODELS[name]
        print(f"{source}\nSHA-256  {release.sha256(source)}\nlicense  {zoo.LICENCE}")
    weights = reading.read(source, num_heads=options.num_heads, model_name=model_name)
    print(describe(weights))
    if options.format:
        WRITERS[options.format](options.out, weights)
        say_written(options.out)


def describe(weights: Weights) -> str:
    """Describe weights that were read, in a few lines."""
    size, channels = weights.architecture.size, weights.architecture.in_chans
    side = weights.architecture.image_size
    names = " = ".join(official_names(size)) or "no official model"
    rest = [
        "projection head" * bool(weights.head),
        counted(len(weights.prototypes), "prototype") if weights.prototypes is not None else "",
        counted(len(weights.classifier.bias), "class") if weights.classifier else "",
        weights.pixels.description if weights.pixels else "",
    ]
    return "\n".join(
        (
            f"encoder  {names}: {size.description}",
            f"images   {side} x {side} px, {counted(channels, 'channel')}",
            f"with     {', '.join(filter(None, rest)) or 'nothing else'}",
        )
    )
