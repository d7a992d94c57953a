"""Images, labels, weights and step counts of an evaluation that trains."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from msn.config.kinds import EvaluationFile
from msn.config.sections.evaluation import LabeledImages
from msn.data.classes import Splits, labeled_splits
from msn.data.labeled import LabeledSet, Transform
from msn.data.sources import open_source
from msn.data.sources.base import SPLITS
from msn.data.subsets import read_subset
from msn.data.unreadable import Unreadable
from msn.evaluation.readable import Seen, find_bad, without
from msn.interop import reading
from msn.interop.architecture import digest
from msn.interop.weights import Weights
from msn.runtime import collectives
from msn.runtime.errors import UserError
from msn.runtime.log import logger


@dataclass(frozen=True)
class Job:
    """What there is to learn, and how it is cut into steps.

    Attributes:
        train, val: the images.
        train_view, val_view: what is seen of an image.
        classes: how many there are.
        class_names: of each, by label.
        skipped: reason by name of the bad images that are left out.
        mean, std: (C,) of the images, on the device.
        batch_size: images per process and step.
        steps_per_epoch: whole batches of all processes in the training images.
        total_steps: length of the run.
        weights: digest of the pre-trained weights.
    """

    train: LabeledSet
    val: LabeledSet
    train_view: Transform
    val_view: Transform
    classes: int
    class_names: tuple[str, ...]
    skipped: dict[str, str]
    mean: Tensor
    std: Tensor
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    weights: str

    @property
    def sets(self) -> tuple[Seen, Seen]:
        """Both splits, each with the view that is made of its images."""
        return (self.train, self.train_view), (self.val, self.val_view)


def read_weights(config: EvaluationFile) -> Weights:
    """Read the pre-trained encoder that the config names.

    Raises:
        UserError: the file cannot be read, or is of another model.
    """
    meta = config.meta
    return reading.read(
        config.logging.pretrain_path, which=meta.weights, model_name=meta.model_name
    )


def build_job(
    config: EvaluationFile,
    weights: Weights,
    *,
    train_view: Transform,
    val_view: Transform,
    batch_size: int,
    epochs: int,
    device: torch.device,
) -> Job:
    """Open the images and count steps and classes. All processes call this.

    Raises:
        UserError: a split is missing, unlabeled, too small, or of other classes.
    """
    data = config.data
    splits = open_splits(data, weights.architecture.in_chans)
    unreadable = Unreadable(skip=True)
    if data.skip_bad:
        views = (train_view, val_view)
        splits = leave_out_bad(splits, views, data.num_workers, unreadable)
    train, val = splits.train, splits.val
    for note in (*splits.notes, *unreadable.settle()):
        logger.info(f"note: {note}")
    whole = batch_size * collectives.world_size()
    if len(train) < whole:
        raise UserError(
            f"optimization.batch_size: a step takes {whole} images over all processes, there are"
            f" only {len(train)} for training; lower it"
        )
    if not len(val):
        raise UserError("the val split: no image can be read; check data.root_path")
    steps = len(train) // whole
    usual = weights.stated or train.source
    return Job(
        train=train,
        val=val,
        train_view=train_view,
        val_view=val_view,
        classes=splits.classes,
        class_names=splits.names[: splits.classes],
        skipped=unreadable.found,
        mean=torch.tensor(data.mean or usual.mean, device=device),
        std=torch.tensor(data.std or usual.std, device=device),
        batch_size=batch_size,
        steps_per_epoch=steps,
        total_steps=steps * epochs,
        weights=digest(weights.encoder),
    )


def open_splits(data: LabeledImages, channels: int) -> Splits:
    """Open the train and the val split with their labels.

    Raises:
        UserError: one is not there, has no labels, its images are not of the encoder's channels, or
            the list of those to learn from does not fit.
    """
    for split in SPLITS:
        folder = Path(data.root_path or "", data.image_folder, split)
        if data.source == "folder" and not folder.is_dir():
            # Without splits a folder is one for all purposes, but no score is worth anything then.
            raise UserError(
                f"{folder}: no such folder; an evaluation needs the splits train and val"
            )
    if data.channels not in (None, channels):
        raise UserError(
            f"data.channels is {data.channels}, but the encoder takes images of {channels};"
            " leave it out"
        )
    images = data.model_copy(update={"channels": channels})
    train, val = (open_source(images, split) for split in SPLITS)
    splits = labeled_splits(train, val, num_classes=data.num_classes)
    if not data.subset:
        return splits
    listed = read_subset(Path(data.subset), train)
    chosen = listed[splits.train.labels[listed] >= 0]
    return replace(splits, train=replace(splits.train, chosen=chosen))


def leave_out_bad(
    splits: Splits,
    views: tuple[Transform, Transform],
    num_workers: int | str,
    unreadable: Unreadable,
) -> Splits:
    """Leave bad images out of both splits, and tell `unreadable`. All processes call this."""
    sets = splits.train, splits.val
    bad = find_bad(list(zip(sets, views, strict=True)), num_workers)
    unreadable.meet(one.image for each in bad for one in each)
    train, val = (without(*pair) for pair in zip(sets, bad, strict=True))
    return replace(splits, train=train, val=val)
