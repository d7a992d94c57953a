"""Where images come from: a folder of files, or the handwritten digits that scikit-learn carries.

A source maps an index to one image, not yet decoded. It keeps names compactly and never opens a
file before it is asked to, so it is cheap to hold, and to send to a worker process.
"""

import os
from array import array
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from msn import keyed
from msn.data.image import ArrayImage, BadImage, EncodedImage, Image
from msn.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val")
DIGITS_TRAIN = 1297


class Sample(NamedTuple):
    """One image, its `label` where known, and its `name` for people."""

    image: Image
    label: int | None
    name: str


class Source(Protocol):
    """Images by index."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the data, of values scaled to [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, likewise."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """One image. Raises BadImage if it cannot be read; its pixels may raise the same."""
        ...

    def name(self, index: int) -> str:
        """What people call the image: its path below the source, or the like."""
        ...

    def stamp(self, index: int) -> str:
        """Text that changes when the image does, told without reading it. Raises BadImage."""
        ...

    def labels(self) -> np.ndarray | None:
        """All labels, int64 (N,), or None for an unlabelled source."""
        ...


def open_source(
    *,
    source: str,
    root_path: str | None,
    image_folder: str,
    split: str,
    channels: int | None = None,
) -> Source:
    """Open one split of a data set.

    Args:
        source: "folder" (images under `root_path`/`image_folder`) or "digits".
        root_path: folder that holds the data set; "digits" needs none.
        image_folder: sub-folder of `root_path`, may be empty.
        split: "train" or "val". A folder without these two sub-folders is its own only split.
        channels: 1 (grey) or 3 (RGB); None keeps the source's own number.

    Raises:
        UserError: the folder is missing, is not a folder, or holds no image.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if channels not in (None, 1, 3):
        raise UserError(f"data.channels is {channels}: it must be 1 (grey) or 3 (RGB)")
    if source == "digits":
        return Digits(split=split, channels=channels or 1)
    if source != "folder":
        raise UserError(f'data.source is "{source}": it must be "folder" or "digits"')
    return Folder(_split_folder(root_path, image_folder, split), channels=channels or 3)


class Digits:
    """The 1,797 handwritten digits of scikit-learn: 8x8 px, 1,297 to train, 500 held out."""

    # Of the training split, in double precision: images / 255, then .mean() and .std().
    MEAN = 0.3051369
    STD = 0.3756648

    def __init__(self, *, split: str, channels: int = 1) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # A fixed order of its own: the split is the same for every seed of a run.
        order = np.argsort(keyed.generator(0, keyed.Stream.SPLIT).random(len(digits.target)))
        self._order = order[:DIGITS_TRAIN] if split == "train" else order[DIGITS_TRAIN:]
        grey = np.rint(digits.images[self._order] * (255 / 16)).astype(np.uint8)
        self._images = grey[..., None]
        self._labels = digits.target[self._order].astype(np.int64)
        self.channels = channels
        self.mean = (self.MEAN,) * channels
        self.std = (self.STD,) * channels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> Sample:
        image = ArrayImage(self._images[index], self.channels)
        return Sample(image, int(self._labels[index]), self.name(index))

    def name(self, index: int) -> str:
        return f"digits/{self._order[index]}"

    def stamp(self, index: int) -> str:
        return self.name(index)

    def labels(self) -> np.ndarray:
        return self._labels


class Folder:
    """Image files below a folder.

    With images in sub-folders, each sub-folder is a class, numbered in sorted order, and its images
    may lie at any depth: order and labels are those of torchvision's ImageFolder. Without, the
    images directly in the folder are taken, unlabelled. Hidden files and folders are passed over.
    """

    # Per-channel statistics of the ImageNet training images, as every ImageNet recipe uses them.
    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, folder: Path, *, channels: int = 3) -> None:
        self.channels = channels
        self.mean = self.MEAN if channels == 3 else (sum(self.MEAN) / 3,)
        self.std = self.STD if channels == 3 else (sum(self.STD) / 3,)
        self._folder = str(folder)
        self._scan()

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> Sample:
        name = self.name(index)
        label = None if self._labels is None else int(self._labels[index])
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise BadImage(path, error.strerror or repr(error)) from error
        return Sample(EncodedImage(data, self.channels, path), label, name)

    def labels(self) -> np.ndarray | None:
        return self._labels

    def _scan(self) -> None:
        # All names as one run of bytes with their ends: a million names in tens of megabytes, and
        # no Python objects whose reference counts would unshare memory between workers.
        names, ends, labels = bytearray(), array("q"), array("q")
        flat, classes = _list_folder(self._folder)
        for label, class_name in enumerate(classes):
            for name in _images_below(self._folder, class_name):
                names += os.fsencode(name)
                ends.append(len(names))
                labels.append(label)
        if flat and labels:
            raise UserError(
                f"{self._folder}: holds images ({flat[0]}, ...) beside class sub-folders; "
                "move them into a class, or set data.image_folder to one of the sub-folders"
            )
        for name in flat:
            names += os.fsencode(name)
            ends.append(len(names))
        if not ends:
            raise UserError(
                f"{self._folder}: no images here or in its sub-folders (looked for "
                f"{' '.join(EXTENSIONS)}); check data.root_path and data.image_folder"
            )
        self._names = bytes(names)
        self._ends = np.array(ends, dtype=np.int64)
        self._labels = np.array(labels, dtype=np.int64) if labels else None

    def name(self, index: int) -> str:
        end = self._ends[index]  # first, so that an index out of range raises IndexError
        start = self._ends[index - 1] if index % len(self) else 0
        return os.fsdecode(self._names[start:end])

    def stamp(self, index: int) -> str:
        path = os.path.abspath(os.path.join(self._folder, self.name(index)))
        try:
            found = os.stat(path)
        except OSError as error:
            raise BadImage(path, error.strerror or repr(error)) from error
        return f"{path} {found.st_size} {found.st_mtime_ns}"


def _split_folder(root_path: str | None, image_folder: str, split: str) -> Path:
    if not root_path:
        raise UserError("data.root_path is not set: name the folder that holds the images")
    root = Path(root_path).expanduser()
    _require_folder(root, "data.root_path")
    base = root / image_folder
    _require_folder(base, "data.image_folder")
    if (base / split).is_dir():
        return base / split
    for other in SPLITS:
        if (base / other).is_dir():
            raise UserError(
                f'{base}: has a folder "{other}" but none called "{split}"; '
                "create it, or change data.root_path or data.image_folder"
            )
    return base


def _require_folder(path: Path, key: str) -> None:
    if not path.exists():
        raise UserError(f"{key}: no such folder: {path}; create it or correct the path")
    if not path.is_dir():
        raise UserError(f"{key}: {path} is a file, not a folder; name the folder that holds it")


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Names of the images directly in a folder, and of its sub-folders, both sorted."""
    _, folders, files = next(os.walk(folder, onerror=_refuse))
    visible = [name for name in folders if not name.startswith(".")]
    return sorted(filter(_is_image, files)), sorted(visible)


def _images_below(folder: str, class_name: str) -> list[str]:
    """Images at any depth below a class, relative to `folder`, in order of folder, then name."""
    found = []
    start = os.path.join(folder, class_name)
    for root, folders, files in os.walk(start, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.append((os.path.relpath(root, folder), sorted(filter(_is_image, files))))
    return [os.path.join(root, name) for root, files in sorted(found) for name in files]


def _refuse(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: cannot be listed ({error.strerror}); make it readable or move it away"
    )


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)
