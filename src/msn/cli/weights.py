"""What the commands on frozen encoders have in common: weights, images, devices, a cache."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msn.config.load import load_images
from msn.config.sections.data import Images
from msn.data.loader import worker_count
from msn.data.sources import Source
from msn.evaluation.features import Features, extract
from msn.evaluation.frozen import MSN_TAPS, FrozenEncoder, Taps, frozen
from msn.interop.pretrained import KEYS, Pretrained, read_pretrained
from msn.models.encoder import ENCODERS
from msn.runtime.devices import choose_device
from msn.runtime.errors import UserError
from msn.train.build import open_images, use_bf16


class Bench(NamedTuple):
    """A frozen encoder and the images to try it on."""

    pretrained: Pretrained
    encoder: FrozenEncoder
    images: Images
    batch_size: int
    cache: Path | None

    @property
    def workers(self) -> int:
        """Processes that decode images."""
        return worker_count(self.images.num_workers)

    def open(self, split: str) -> Source:
        """A split of the images, with as many channels as the encoder takes."""
        images = self.images.model_copy(update={"channels": self.encoder.channels})
        return open_images(images, split)

    def labelled(self) -> tuple[Source, Source]:
        """The train and the val split.

        Raises:
            UserError: one is missing, or has no labels.
        """
        train, val = self.open("train"), self.open("val")
        for split, source in (("train", train), ("val", val)):
            if source.labels() is None:
                raise UserError(
                    f"the {split} split has no labels; evaluation needs a sub-folder for each class"
                    " in it (data.root_path, data.image_folder)"
                )
        if len(train) == len(val) and train.stamp(0) == val.stamp(0):
            raise UserError(
                "the images have no val split: training and held-out images would be the same;"
                " put them into folders train and val (data.root_path, data.image_folder)"
            )
        return train, val

    def features(
        self, source: Source, *, indices: np.ndarray | None = None, taps: Taps = MSN_TAPS
    ) -> Features:
        """Features of a source, from the cache where they are there."""
        return extract(
            self.encoder,
            source,
            indices=indices,
            taps=taps,
            batch_size=self.batch_size,
            num_workers=self.workers,
            cache=self.cache,
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the weights, where they compute, and the overrides of the images."""
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint of msn or of the official code"
    )
    parser.add_argument(
        "--fname",
        metavar="CONFIG",
        help="config file whose data section names the images; left out, that of the training",
    )
    parser.add_argument(
        "--encoder", choices=KEYS, default="target", help="which of the two (default target)"
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        help=f"refuse weights of another model: {', '.join(ENCODERS)}",
    )
    parser.add_argument(
        "--devices",
        "--device",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="cpu, cuda:0 cuda:1, ...; batches are split; auto takes the first GPU if there is one",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="(default fp32)"
    )
    parser.add_argument("--image-size", type=int, metavar="PX", help="side of the views")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="(default 256)")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="keep features here and find them again"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="which images: data.root_path=..."
    )


def add_taps(parser: argparse.ArgumentParser) -> None:
    """Add which features are taken."""
    parser.add_argument(
        "--blocks", type=int, default=1, metavar="K", help="class tokens of the last K"
    )
    parser.add_argument("--norm", action="store_true", help="after the final norm, not before")
    parser.add_argument("--patch-average", action="store_true", help="add the mean patch token")
    add_mask(parser)


def add_mask(parser: argparse.ArgumentParser) -> None:
    """Add the share of patches that is dropped."""
    parser.add_argument(
        "--mask",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of patches to drop (default 0)",
    )


def taps_of(options: argparse.Namespace) -> Taps:
    """The features that are asked for."""
    return Taps(options.blocks, options.norm, options.patch_average, options.mask)


def open_bench(options: argparse.Namespace) -> Bench:
    """Read the weights, and say where the images are.

    Raises:
        UserError: the request is wrong, or a file is.
    """
    if not options.weights:
        raise UserError("--weights is missing; give a checkpoint of msn or of the official code")
    for name in ("batch_size", "image_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    devices = [choose_device(name) for name in options.devices]
    pretrained = read_pretrained(
        options.weights, encoder=options.encoder, model_name=options.model_name
    )
    default: dict[str, Any] = pretrained.config.get("data") or {}
    if not (default or options.fname or options.overrides):
        raise UserError(
            f"{options.weights}: does not say on which images it was trained; give --fname CONFIG"
            " or data.root_path=FOLDER"
        )
    images = load_images(options.fname, options.overrides, default)
    return Bench(
        pretrained,
        frozen(
            pretrained,
            devices=devices,
            bf16=use_bf16(options.precision, devices[0]),
            image_size=options.image_size,
            mean=images.mean,
            std=images.std,
        ),
        images,
        options.batch_size,
        options.cache,
    )


def beside(weights: str | Path, ending: str) -> Path:
    """A file beside the weights: `msn-latest.pth.tar` and `knn.json` give `msn-latest-knn.json`."""
    path = Path(weights)
    stem = path.name
    for suffix in (".tar", ".pth", ".pt"):
        stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}-{ending}")
