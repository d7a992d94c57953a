"""Measure the encoder on labeled images, during training and at its end."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from msn.config.kinds import Config
from msn.config.protocol import PROTOCOL
from msn.data.batch import normalize
from msn.data.classes import labeled_splits
from msn.data.labeled import evenly_spaced
from msn.data.sources import open_source
from msn.data.unreadable import Unreadable
from msn.evaluation.features import PIXELS, EvalSet, encode_all, evaluation_images, raw_pixels
from msn.evaluation.knn import knn
from msn.methods import Method
from msn.models.encoder import Encoder
from msn.runtime import collectives
from msn.runtime.errors import UserError
from msn.runtime.log import logger
from msn.runtime.sharding import is_sharded, whole
from msn.train.build import Parts
from msn.train.runlog import csv_path
from msn.visualize.picture import write
from msn.visualize.reconstruction import PICTURED, reconstruct
from msn.visualize.report import Representation, write_report

Part = TypeVar("Part", bound=nn.Module)


class Probe:
    """k-NN from the train to the val split of a labeled set, on frozen features.

    The features are class tokens before the final norm, as in MSN's evaluations.

    Args:
        config: with a `logging.probe` section; what it leaves open is taken from `data`.
        parts: the run.
        num_workers: processes that decode the images.

    Raises:
        UserError: a split is missing or has no labels, or an image cannot be read.
    """

    def __init__(self, config: Config, parts: Parts, *, num_workers: int) -> None:
        assert config.logging.probe
        self.settings = config.logging.probe
        self.config = config
        self.parts = parts
        self.num_workers = num_workers
        self.unreadable = Unreadable(
            skip=self.settings.skip_bad, option="logging.probe.skip_bad: true"
        )
        channels = {"channels": parts.source.channels}
        images = config.data.model_copy(update=self.settings.images() | channels)
        splits = labeled_splits(
            *(open_source(images, split) for split in ("train", "val")),
            max_images=self.settings.max_images,
            section="logging.probe",
        )
        self.sets = [splits.train, splits.val]
        self.train, self.val = self._images(config.image_size)
        for note in (*splits.notes, *self.unreadable.settle()):
            logger.info(f"note: {note} (logging.probe)")
        self.sets = [
            replace(images, chosen=good.indices)
            for images, good in zip(self.sets, (self.train, self.val), strict=True)
        ]
        if self.settings.k > len(self.train.labels):
            raise UserError(
                f"logging.probe.k {self.settings.k} is more than the {len(self.train.labels)}"
                " labeled training images; lower it"
            )

    def top1(self, encoder: Encoder) -> float:
        """Measure the k-NN accuracy of the encoder, in percent."""
        train, val = self._features(encoder)
        settings = self.settings
        result = knn(
            train.to(self.parts.device),
            self.train.labels,
            val.to(self.parts.device),
            self.val.labels,
            k=settings.k,
            temperature=settings.temperature,
        )
        return result.top1

    def report(self, method: Method, folder: Path, tag: str) -> None:
        """Report raw pixels, untrained and trained encoder: log a table; write JSON and PNG.

        Of a method that predicts pixels also draw held-out images as it fills them in.
        """
        untrained = self.parts.built_anew(self.config).encoder.to(self.parts.device)
        small = self._images(min(self.config.image_size, PIXELS))
        representations = [
            Representation("raw pixels", *(raw_pixels(split.images) for split in small)),
            Representation("untrained encoder", *self._features(untrained)),
            Representation("trained encoder", *self._features(method.encoder)),
        ]
        own = self.settings
        protocol = PROTOCOL._replace(k=own.k, temperature=own.temperature)
        logger.info(
            write_report(
                train=self.train,
                val=self.val,
                representations=representations,
                csv_path=csv_path(folder, tag),
                folder=folder,
                tag=tag,
                protocol=protocol,
                device=self.parts.device,
                skipped=self.unreadable.found,
            )
        )
        shown = self.val.images[evenly_spaced(len(self.val.images), PICTURED)]
        found = reconstruct(method, shown, self.parts.mean, self.parts.std)
        if found:
            write(folder / f"{tag}-reconstruction.png", found)

    def _features(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Compute the features of both splits, and put the encoder back into its mode."""
        was_training = encoder.training
        encoder.eval()
        encode = partial(
            encode_all,
            partial(self.parts.model.probed, encoder),
            normalize=partial(normalize, mean=self.parts.mean, std=self.parts.std),
            device=self.parts.device,
        )
        with torch.autocast(self.parts.device.type, torch.bfloat16, enabled=self.parts.bf16):
            features = encode(self.train.images), encode(self.val.images)
        encoder.train(was_training)
        return features

    def _images(self, side: int) -> tuple[EvalSet, EvalSet]:
        """Make the evaluation views of both splits, `side` pixels wide."""
        train, val = (
            evaluation_images(
                images,
                image_size=side,
                interpolation=self.config.data.interpolation,
                num_workers=self.num_workers,
                unreadable=self.unreadable,
            )
            for images in self.sets
        )
        return train, val


def is_due(config: Config, epoch: int) -> bool:
    """Tell whether to probe after this many finished epochs."""
    if not config.logging.probe:
        return False
    every = config.logging.probe.every
    return epoch == config.optimization.epochs or bool(every and epoch % every == 0)


def whole_encoder(config: Config, parts: Parts) -> Encoder:
    """Give rank 0 the evaluated encoder to use alone; a copy if its weights are sharded.

    All processes call this; those that share with rank 0 get an encoder without data.
    """
    encoder = parts.model.encoder
    return _whole(encoder, lambda: parts.built_anew(config).encoder, parts.device)


def whole_method(config: Config, parts: Parts) -> Method:
    """Give rank 0 the method to use alone, as `whole_encoder` gives the encoder."""
    return _whole(parts.model, lambda: parts.built_anew(config), parts.device)


def _whole(part: Part, anew: Callable[[], Part], device: torch.device) -> Part:
    if not is_sharded(part):
        return part
    weights = whole(part.state_dict())
    with torch.device("meta"):
        copy = anew()
    if collectives.rank() == 0:
        copy.load_state_dict(weights, assign=True)
        copy.to(device)
    return copy
