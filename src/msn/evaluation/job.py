"""From the config of an evaluation to what there is to learn: images, labels, weights, steps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msn.config.load import EvaluationFile
from msn.config.sections.evaluation import LabelledImages
from msn.data.labelled import LabelledSet, Transform
from msn.data.subsets import read_subset
from msn.interop.pretrained import Pretrained, digest, read_pretrained
from msn.runtime import collectives
from msn.runtime.errors import UserError
from msn.train.build import open_images


@dataclass(frozen=True)
class Job:
    """What there is to learn, and how it is cut into steps.

    Attributes:
        train, val: the images.
        train_view, val_view: what is seen of an image.
        classes: how many there are.
        mean, std: (C,) of the images, on the device.
        batch_size: images per process and step.
        steps_per_epoch: whole batches of all processes in the training images.
        total_steps: length of the run.
        weights: digest of the pre-trained weights.
    """

    train: LabelledSet
    val: LabelledSet
    train_view: Transform
    val_view: Transform
    classes: int
    mean: Tensor
    std: Tensor
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    weights: str


def read_weights(config: EvaluationFile) -> Pretrained:
    """The pre-trained encoder that the config names.

    Raises:
        UserError: the file cannot be read, or is of another model.
    """
    meta = config.meta
    return read_pretrained(
        config.logging.pretrain_path, encoder=meta.weights, model_name=meta.model_name
    )


def build_job(
    config: EvaluationFile,
    weights: Pretrained,
    *,
    train_view: Transform,
    val_view: Transform,
    batch_size: int,
    epochs: int,
    device: torch.device,
) -> Job:
    """Open the images and count steps and classes.

    Raises:
        UserError: a split is missing, unlabelled, too small, or of other classes.
    """
    data, channels = config.data, weights.architecture.in_chans
    train, val = (labelled_set(data, split, channels) for split in ("train", "val"))
    classes = count_classes(data, train, val)
    whole = batch_size * collectives.world_size()
    if len(train) < whole:
        raise UserError(
            f"optimization.batch_size: a step takes {whole} images over all processes, there are"
            f" only {len(train)} for training; lower it"
        )
    steps = len(train) // whole
    return Job(
        train=train,
        val=val,
        train_view=train_view,
        val_view=val_view,
        classes=classes,
        mean=torch.tensor(data.mean or weights.mean or train.source.mean, device=device),
        std=torch.tensor(data.std or weights.std or train.source.std, device=device),
        batch_size=batch_size,
        steps_per_epoch=steps,
        total_steps=steps * epochs,
        weights=digest(weights.weights),
    )


def labelled_set(data: LabelledImages, split: str, channels: int) -> LabelledSet:
    """A split with its labels.

    Raises:
        UserError: it is not there, has no labels, its images are not of the encoder's channels, or
            the list of those to learn from does not fit.
    """
    folder = Path(data.root_path or "", data.image_folder, split)
    if data.source == "folder" and not folder.is_dir():
        # Without splits a folder is one for all purposes, but no score is worth anything then.
        raise UserError(f"{folder}: no such folder; an evaluation needs the splits train and val")
    if data.channels not in (None, channels):
        raise UserError(
            f"data.channels is {data.channels}, but the encoder takes images of {channels};"
            " leave it out"
        )
    source = open_images(data.model_copy(update={"channels": channels}), split)
    labels = source.labels()
    if labels is None:
        raise UserError(
            f"{folder if data.root_path else data.source}: the images have no labels;"
            " put them into one folder per class, or name another data.source"
        )
    chosen = np.arange(len(source))
    if data.subset and split == "train":
        chosen = read_subset(Path(data.subset), source)
    return LabelledSet(source, np.asarray(labels), chosen)


def count_classes(data: LabelledImages, train: LabelledSet, val: LabelledSet) -> int:
    """The number of classes that is asked for, or of those in the training images.

    Raises:
        UserError: there is a label beyond it.
    """
    found = int(train.labels.max()) + 1
    classes = data.num_classes or found
    for split, images in (("train", train), ("val", val)):
        most = int(images.labels.max()) + 1
        if most > classes:
            rule = f"data.num_classes {classes}" if data.num_classes else f"{found} in train"
            raise UserError(
                f"the {split} images are of {most} classes, which is more than {rule};"
                " check data.root_path and data.num_classes"
            )
    return classes
