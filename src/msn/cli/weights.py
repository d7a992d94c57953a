"""Weights, images, devices and cache, as all commands on frozen encoders open them."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msn.config.load import load_images
from msn.config.sections.data import Images
from msn.data.classes import Splits, labeled_splits
from msn.data.image import BadImage
from msn.data.labeled import LabeledSet
from msn.data.loader import worker_count
from msn.data.sources import Source, open_source
from msn.data.sources.files import Files
from msn.data.unreadable import Unreadable
from msn.evaluation.features import Features, extract
from msn.evaluation.frozen import FrozenEncoder, frozen
from msn.interop import reading
from msn.interop.weights import Weights
from msn.models.encoder import MSN_TAPS, Taps
from msn.runtime.devices import choose_device, use_bf16
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place


class Bench(NamedTuple):
    """A frozen encoder and the images to try it on."""

    pretrained: Weights
    encoder: FrozenEncoder
    images: Images
    batch_size: int
    cache: Path | None
    unreadable: Unreadable
    files: Sequence[Path] = ()  # in place of the splits of a data set

    @property
    def workers(self) -> int:
        """Number of processes that decode images."""
        return worker_count(self.images.num_workers)

    def open(self, split: str) -> Source:
        """Open a split of the images, with as many channels as the encoder takes."""
        if self.files:
            return Files(self.files, channels=self.encoder.channels)
        images = self.images.model_copy(update={"channels": self.encoder.channels})
        return open_source(images, split)

    def labeled(self, max_images: int | None = None) -> Splits:
        """Open the train and the val split with labels, their classes matched.

        Raises:
            UserError: one is missing, or has no labels.
        """
        train, val = self.open("train"), self.open("val")
        splits = labeled_splits(train, val, max_images=max_images)
        require_held_out(train, val)
        for note in splits.notes:
            print(f"note: {note}")
        return splits

    def extract(
        self, source: Source, *, indices: np.ndarray | None = None, taps: Taps = MSN_TAPS
    ) -> Features:
        """Compute features of a source, or read them from the cache; call `settle` afterwards."""
        return extract(
            self.encoder,
            source,
            indices=indices,
            taps=taps,
            batch_size=self.batch_size,
            num_workers=self.workers,
            cache=self.cache,
            unreadable=self.unreadable,
        )

    def features(self, images: LabeledSet, *, taps: Taps = MSN_TAPS) -> tuple[Tensor, Tensor]:
        """Give features (N, D) and labels (N,) of the readable images; call `settle` after it."""
        found = self.extract(images.source, indices=images.chosen, taps=taps)
        return found.features, torch.from_numpy(images.labels[found.indices])

    def settle(self) -> None:
        """Report which images were left out.

        Raises:
            UserError: there are bad images, and they are not to be left out.
        """
        for line in self.unreadable.settle():
            print(f"note: {line}")


def taps_of(options: argparse.Namespace) -> Taps:
    """Give the taps that the options ask for."""
    return Taps(options.blocks, options.norm, options.patch_average, options.mask)


def open_bench(options: argparse.Namespace) -> Bench:
    """Open the frozen encoder and the images that the options name.

    Raises:
        UserError: the request is wrong, or a file is.
    """
    if not options.weights:
        raise UserError("--weights is missing; give a checkpoint of msn or of the official code")
    devices = [choose_device(name) for name in options.devices]
    pretrained = reading.read(
        options.weights,
        which=options.encoder,
        num_heads=options.num_heads,
        model_name=options.model_name,
    )
    files = getattr(options, "images", ())  # which not all commands take
    alone: dict[str, Any] = {"root_path": ".", "num_workers": 0} if files else {}
    default: dict[str, Any] = pretrained.config.get("data") or alone
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
        Unreadable(skip=options.skip_bad),
        files,
    )


def result_path(options: argparse.Namespace, ending: str) -> Path:
    """Find the path to write a result to: `--out`, or a file beside the weights.

    Raises:
        UserError: it cannot be written there.
    """
    path: Path = options.out or beside(options.weights, ending)
    prepare_place(path)
    return path


def beside(weights: str | Path, ending: str) -> Path:
    """Name a file beside the weights, such as `msn-latest-knn.json` for `msn-latest.pth.tar`."""
    path = Path(weights) if Path(weights).name else Path(weights).resolve()
    stem = path.name
    for suffix in (".tar", ".pth", ".pt"):
        stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}-{ending}")


def require_held_out(train: Source, val: Source) -> None:
    """Refuse two splits that are the same images.

    Raises:
        UserError: says where to put held-out images.
    """
    if len(train) == len(val) and _first_stamp(train) == _first_stamp(val):
        raise UserError(
            "the images have no val split: training and held-out images would be the same;"
            " put them into folders train and val (data.root_path, data.image_folder)"
        )


def _first_stamp(source: Source) -> str:
    """Give the stamp of the first readable image, by which two splits are found to be the same."""
    for index in range(len(source)):
        with contextlib.suppress(BadImage):
            return source.stamp(index)
    return ""
