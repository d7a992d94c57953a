"""Labels of a source: numbers, or class names numbered in sorted order; -1 means none.

A negative label means that there is none, as in the data sets of Hugging Face.
"""

import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from msn.data.mapped import Arrays, pack, unpack
from msn.runtime.errors import UserError

LARGEST = 2**63 - 1
_NUMBER = re.compile(r"[+-]?[0-9]+")
_NEGATIVE = re.compile(r"-0*[1-9][0-9]*")


def read_labels(texts: Sequence[str], where: Callable[[int], str]) -> Arrays:
    """Read the labels that a file gives as text.

    Args:
        texts: of each image; all are whole numbers, or names of classes. Negative numbers are none.
        where: says for the index of an image where its label is, for the message of an error.

    Returns:
        Arrays `labels`, int64 (N,), (0,) for an unlabeled source, and those of `pack_classes`.

    Raises:
        UserError: a number is too large for a label.
    """
    if all(_NUMBER.fullmatch(text) for text in texts):
        values = [_number(text, where, i) for i, text in enumerate(texts)]
        found, names = known_labels(np.array(values, dtype=np.int64)), []
    else:
        unlabeled = np.array([bool(_NEGATIVE.fullmatch(text)) for text in texts])
        names = sorted({text for text, none in zip(texts, unlabeled, strict=True) if not none})
        numbers = {name: i for i, name in enumerate(names)}
        found = np.array([numbers.get(text, -1) for text in texts], dtype=np.int64)
    return {
        "labels": np.zeros(0, dtype=np.int64) if found is None else found,
        **pack_classes(names),
    }


def known_labels(labels: np.ndarray) -> np.ndarray | None:
    """Convert labels to int64 with -1 for none; give None where no image has one."""
    found = np.where(labels < 0, -1, labels).astype(np.int64)
    return found if (found >= 0).any() else None


def pack_classes(names: Sequence[str]) -> Arrays:
    """Pack the names of classes into the arrays `class_names` and `class_ends`."""
    packed, ends = pack(os.fsencode(name) for name in names)
    return {"class_names": packed, "class_ends": ends}


def unpack_classes(index: Arrays) -> list[str] | None:
    """Unpack the names that `pack_classes` packed; give None if there are none."""
    names, ends = index["class_names"], index["class_ends"]
    return [unpack(names, ends, i) for i in range(len(ends))] or None


def _number(text: str, where: Callable[[int], str], index: int) -> int:
    if _NEGATIVE.fullmatch(text):
        return -1
    digits = text.lstrip("+-0")
    if len(digits) > len(str(LARGEST)) or int(digits or "0") > LARGEST:
        raise UserError(
            f"{where(index)} has the label {text[:40]}; a label is the name of a class or a whole"
            f" number up to {LARGEST}"
        )
    return int(digits or "0")
