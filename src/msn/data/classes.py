"""Match the classes of the train and val splits by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msn.data.labeled import LabeledSet, evenly_spaced
from msn.data.sources import Source
from msn.runtime.errors import UserError, printable
from msn.runtime.wording import counted

NAMED = 5  # classes in a message


@dataclass(frozen=True)
class Splits:
    """Two splits whose labels mean the same.

    Attributes:
        train: images to learn from; their labels are 0 to `classes` - 1.
        val: images to measure with. Those of a class that train lacks have a label from `classes`
            on, which no classifier gives: they count as errors.
        classes: number of classes to learn.
        names: of all classes, by label; those that train lacks come last.
        notes: what the user should know of these splits, a line each.
    """

    train: LabeledSet
    val: LabeledSet
    classes: int
    names: tuple[str, ...]
    notes: tuple[str, ...]


def labeled_splits(
    train: Source,
    val: Source,
    *,
    num_classes: int | None = None,
    max_images: int | None = None,
    section: str = "data",
) -> Splits:
    """Give the labels of both splits one numbering, that of the classes of the training images.

    Classes with names are matched by name, plain numbers by number. Images without a label are left
    out. Only classes that the training images show count, in the order of their labels.

    Args:
        num_classes: how many classes there are; plain numbers then stay as they are.
        max_images: at most so many of each split, spread evenly.
        section: of the config that names the images, for messages.

    Raises:
        UserError: a split has no labels, the two have no class in common, or there are more than
            `num_classes`.
    """
    sets = [
        _labeled(source, split, max_images, section)
        for source, split in ((train, "train"), (val, "val"))
    ]
    present = [np.unique(images.labels[images.chosen]) for images in sets]
    known, asked = (
        class_names(images.source, labels) for images, labels in zip(sets, present, strict=True)
    )
    plain = train.classes() is None and val.classes() is None
    numbers = present[0] if num_classes and plain else np.arange(len(known))
    classes = num_classes or len(known)
    if numbers[-1] >= classes:
        raise UserError(
            f"the train images are of {numbers[-1] + 1} classes, more than {section}.num_classes"
            f" {classes}; check {section}.root_path and {section}.num_classes"
        )
    number = dict(zip(known, numbers.tolist(), strict=True))
    lacking = [name for name in asked if name not in number]
    if len(lacking) == len(asked):
        raise UserError(
            f"no class of val ({some(asked)}) is one of train ({some(known)}); name them alike, or"
            f" check {section}.root_path and {section}.image_folder"
        )
    number |= {name: classes + i for i, name in enumerate(lacking)}
    names = {label: name for name, label in number.items()}
    matched = [
        _renumbered(images, labels, np.array([number[name] for name in own]))
        for images, labels, own in zip(sets, present, (known, asked), strict=True)
    ]
    return Splits(
        matched[0],
        matched[1],
        classes,
        tuple(names.get(label, str(label)) for label in range(classes + len(lacking))),
        (
            *split_notes(train, "train"),
            *split_notes(val, "val"),
            *_lacking_notes(lacking, matched[1], classes),
        ),
    )


def class_names(source: Source, labels: np.ndarray) -> list[str]:
    """List the names of the classes that labels stand for, or the number where there is none."""
    names = source.classes() or []
    return [names[label] if label < len(names) else str(label) for label in labels.tolist()]


def split_notes(source: Source, split: str) -> list[str]:
    """List what a user should know of a split's labels: images without one, empty classes."""
    labels, names, notes = source.labels(), source.classes(), []
    if labels is None:
        return []
    unlabeled = int((labels < 0).sum())
    if unlabeled:
        notes.append(f"{unlabeled} of {len(labels)} {split} images have no label and are left out")
    if names:
        with_images = set(np.unique(labels).tolist())
        empty = [name for i, name in enumerate(names) if i not in with_images]
        if empty:
            notes.append(f"{_count(empty)} of {split} without images: {some(empty)}")
    return notes


def some(names: Sequence[str]) -> str:
    """Join the first few of many names into text for a message."""
    return ", ".join(map(printable, names[:NAMED])) + ", ..." * (len(names) > NAMED)


def _labeled(source: Source, split: str, max_images: int | None, section: str) -> LabeledSet:
    labels = source.labels()
    if labels is None:
        raise UserError(
            f"the {split} split has no labels; evaluation needs {source.label_rule}"
            f" ({section}.root_path, {section}.image_folder)"
        )
    labeled = np.flatnonzero(labels >= 0)
    return LabeledSet(source, labels, labeled[evenly_spaced(len(labeled), max_images)])


def _renumbered(images: LabeledSet, labels: np.ndarray, numbers: np.ndarray) -> LabeledSet:
    """Replace the sorted `labels` by `numbers`; images that are not chosen get -1."""
    own = np.full(len(images.source), -1, dtype=np.int64)
    own[images.chosen] = numbers[np.searchsorted(labels, images.labels[images.chosen])]
    return LabeledSet(images.source, own, images.chosen)


def _lacking_notes(lacking: list[str], val: LabeledSet, classes: int) -> list[str]:
    if not lacking:
        return []
    wrong = int((val.labels >= classes).sum())
    return [
        f"{_count(lacking)} of val not in train: {some(lacking)}; {wrong} of {len(val)} val images"
        " count as errors"
    ]


def _count(names: list[str]) -> str:
    return counted(len(names), "class")
