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
from msn.interop.pretrained import Pretrained, read_pretrained
from msn.runtime.devices import choose_device
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place
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


def result_path(options: argparse.Namespace, ending: str) -> Path:
    """Where a result goes: to --out, or beside the weights.

    Raises:
        UserError: it cannot be written there.
    """
    path: Path = options.out or beside(options.weights, ending)
    prepare_place(path)
    return path


def beside(weights: str | Path, ending: str) -> Path:
    """A file beside the weights: `msn-latest.pth.tar` and `knn.json` give `msn-latest-knn.json`."""
    path = Path(weights)
    stem = path.name
    for suffix in (".tar", ".pth", ".pt"):
        stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}-{ending}")
