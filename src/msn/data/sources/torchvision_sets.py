"""CIFAR-10, CIFAR-100 and STL-10, from the files that torchvision keeps on disk."""

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from msn.data.mapped import Arrays, Mapped, Watch, cached
from msn.data.sources.base import ArraySource
from msn.runtime.errors import UserError

CIFAR_FILES = {
    "cifar10": {
        "train": [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)],
        "val": ["cifar-10-batches-py/test_batch"],
    },
    "cifar100": {"train": ["cifar-100-python/train"], "val": ["cifar-100-python/test"]},
}
CIFAR_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
CIFAR_NAMES = {
    "cifar10": ("cifar-10-batches-py/batches.meta", "label_names"),
    "cifar100": ("cifar-100-python/meta", "fine_label_names"),
}
CIFAR_SIDE = 32
PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
STL10_FILES = {
    ("stl10", "train"): ("train_X.bin", "train_y.bin"),
    ("stl10", "val"): ("test_X.bin", "test_y.bin"),
    ("stl10_unlabeled", "train"): ("unlabeled_X.bin", None),
}
STL10_SIDE = 96


def open_cifar(
    root: Path, name: str, *, split: str, channels: int | None, download: bool
) -> ArraySource:
    """Open CIFAR; `name` is "cifar10" or "cifar100" (with its 100 fine labels).

    Raises:
        UserError: a file is missing, and cannot be downloaded; or is not what its name says.
    """
    files = [root / file for file in CIFAR_FILES[name][split]]
    _fetch(root, name, files, download)
    paths = [str(file.absolute()) for file in files]
    arrays = cached("\n".join([name, *paths]), partial(_read_cifar, paths, CIFAR_LABELS[name]))
    return ArraySource(
        arrays,
        arrays["labels"],
        channels=channels,
        title=f"{name}/{split}",
        classes=_cifar_names(root, name),
    )


def open_stl10(
    root: Path, name: str, *, split: str, channels: int | None, download: bool
) -> ArraySource:
    """Open STL-10; `name` is "stl10", or "stl10_unlabeled" for 100,000 images without labels.

    Raises:
        UserError: as for `open_cifar`, or the split is one that the unlabeled images lack.
    """
    if (name, split) not in STL10_FILES:
        raise UserError(f'{name} has no split "{split}"; use data.source: stl10 for labeled images')
    images_name, labels_name = STL10_FILES[name, split]
    folder = root / "stl10_binary"
    images = folder / images_name
    _fetch(root, name, [folder / file for file in (images_name, labels_name) if file], download)
    count, rest = divmod(images.stat().st_size, 3 * STL10_SIDE**2)
    labels = None
    if labels_name:  # from 1; a 0 becomes -1, which is none
        labels = np.fromfile(folder / labels_name, dtype=np.uint8).astype(np.int64) - 1
    if rest or not count or (labels is not None and len(labels) != count):
        raise UserError(f"{images}: is not a whole file of STL-10; fetch it again")
    layout = {"images": ("|u1", (count, 3, STL10_SIDE, STL10_SIDE), 0)}
    arrays = Mapped(str(images.absolute()), layout)
    # On disk: channel, column, row.
    names = folder / "class_names.txt"
    return ArraySource(
        arrays,
        labels,
        channels=channels,
        axes=(2, 1, 0),
        title=f"{name}/{split}",
        classes=names.read_text("utf-8", "replace").split() if names.is_file() else None,
    )


def _fetch(root: Path, name: str, files: list[Path], download: bool) -> None:
    """Download the files if any is missing and `download` allows it. Raises UserError."""
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    if not download:
        raise UserError(
            f"{missing[0]}: no such file; set data.download: true, or correct data.root_path"
        )
    from torchvision.datasets import CIFAR10, CIFAR100, STL10

    try:
        {"cifar10": CIFAR10, "cifar100": CIFAR100}.get(name, STL10)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name}: cannot be downloaded to {root} ({error})") from error


def _read_cifar(paths: list[str], label_key: str, watch: Watch) -> Arrays:
    """Read the arrays `images`, uint8 (N, 32, 32, 3), and `labels`, uint8 (N,)."""
    images, labels = [], []
    for path in paths:
        watch(path)
        try:
            batch = _Unpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
            data = batch["data"].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
            if data.dtype != np.uint8:
                raise TypeError(f"holds {data.dtype}, must be uint8")
            images.append(data.transpose(0, 2, 3, 1))
            labels.append(np.array(batch[label_key], dtype=np.uint8))
        except Exception as error:  # whatever broken bytes make of a pickle
            raise UserError(
                f"{path}: is not a file of CIFAR ({error!r:.80}); fetch it again"
            ) from error
        if len(images[-1]) != len(labels[-1]):
            raise UserError(f"{path}: has more images than labels, or less; fetch it again")
    return {"images": np.concatenate(images), "labels": np.concatenate(labels)}


def _cifar_names(root: Path, name: str) -> list[str] | None:
    """Read the names of the classes; give None where their file is missing."""
    file, key = CIFAR_NAMES[name]
    if not (root / file).is_file():
        return None
    try:
        meta = _Unpickler(io.BytesIO((root / file).read_bytes()), encoding="latin1").load()
        return [str(text) for text in meta[key]]
    except Exception as error:
        raise UserError(
            f"{root / file}: is not a file of CIFAR ({error!r:.80}); fetch it again"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Reads arrays, numbers, texts, and lists of them; refuses a pickle that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)
