"""What a source of images is, and base classes for files and for arrays."""

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from msn.data.image import ArrayImage, BadImage, Image, open_image
from msn.data.mapped import Arrays
from msn.data.normalization import Normalization, imagenet_normalization, measured_normalization
from msn.data.sources.labels import known_labels
from msn.runtime import keyed
from msn.runtime.errors import UserError
from msn.runtime.files import open_regular

ARRAYS = ".npy"  # images in a data set that has no others, as they may be features or masks
# Of several images of a sample in tar shards the first is taken.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".avif", ".jxl", ".jp2", ".j2k"),
    *(".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pfm", ARRAYS),
)
MAX_BYTES = 2**30  # of an image file: as many pixels as are read, in RGB of 32 bits
LEFT_ALONE = ("__MACOSX", "@eaDir")
"""Folders that archives and network storage add; like hidden ones they are neither class nor image.
"""
SPLITS = ("train", "val")
STATISTICS_BYTES = 2**26  # of images looked at for their mean: all of Fashion-MNIST
STATISTICS_FILES = 1000  # likewise


class Sample(NamedTuple):
    """One image, its `label` where known, and its `name` for people."""

    image: Image
    label: int | None
    name: str


class Source(Protocol):
    """Images by index. Cheap to hold and to send to a worker: it opens files when asked to."""

    label_rule: str
    """What gives its images labels, for those who miss them."""

    @property
    def channels(self) -> int:
        """Number of channels: 1 (gray), 3 (RGB), or as many as its arrays have."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the data, of values scaled to [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the data, of values scaled to [0, 1]."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Read one image. Raises BadImage if it cannot be read; its pixels may raise the same."""
        ...

    def name(self, index: int) -> str:
        """Give the name that people know the image by: its path below the source, or the like."""
        ...

    def stamp(self, index: int) -> str:
        """Give text that changes when the image does, without decoding it. Raises BadImage."""
        ...

    def labels(self) -> np.ndarray | None:
        """Give all labels, int64 (N,), -1 for an image without; None for an unlabeled source."""
        ...

    def classes(self) -> list[str] | None:
        """List the names of the classes by label; give None where labels are only numbers."""
        ...


class EncodedSource(ABC):
    """A source of image files of unknown content.

    It claims the statistics of ImageNet for gray and RGB, and measures those of other channels.

    Args:
        channels: 1 (gray) or 3 (RGB), whatever the files hold; or that of the arrays in them.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, see `Source.mean`. Raises UserError: no image to measure."""
        return self._normalization.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, see `Source.std`. Raises UserError like `mean`."""
        return self._normalization.std

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Give the name that people know the image by, see `Source.name`."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """Give the label of one image, or None where it is not known."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """Read the content of the image file. Raises BadImage."""

    def path(self, index: int) -> str:
        """Tell where the image is, for messages."""
        return self.name(index)

    def stamp(self, index: int) -> str:
        """Give text that changes when the bytes of the image do, see `Source.stamp`."""
        return f"{self.path(index)} {zlib.crc32(self.encoded(index))}"

    def read(self, index: int) -> Sample:
        index = range(len(self))[index]  # from the end, or an IndexError, as in a list
        image = open_image(self.encoded(index), self.channels, self.path(index))
        return Sample(image, self.label(index), self.name(index))

    @cached_property
    def _normalization(self) -> Normalization:
        if self.channels in (1, 3):
            return imagenet_normalization(self.channels)
        counts, last_bad = np.zeros((self.channels, 256)), None
        order = keyed.generator(0, keyed.Stream.ORDER).permutation(len(self))
        for index in order[:STATISTICS_FILES].tolist():
            try:
                counts += _histograms(self.read(index).image.pixels(), 2)
            except BadImage as bad:
                last_bad = bad
            if counts.sum() >= STATISTICS_BYTES:
                break
        if not counts.any():
            raise UserError(
                f"data.channels is {self.channels}: no such image to measure ({last_bad}); correct"
                " it, or set data.mean and data.std"
            )
        return measured_normalization(counts)


class ArraySource:
    """A source of images that lie decoded in an array.

    Args:
        arrays: holds `images`, uint8 (N, ...). To be cheap to send, it is a `Mapped` if large.
        labels: integers (N,), negative for none, or None.
        axes: where height, width and channels of an image are among its axes.
        channels: 1 (gray) or 3 (RGB); None takes those that are there.
        title: first part of the images' names.
        classes: names of the classes by label, if known.
    """

    label_rule = "the file of labels that belongs to the images"

    def __init__(
        self,
        arrays: Arrays,
        labels: np.ndarray | None,
        *,
        title: str,
        channels: int | None = None,
        axes: tuple[int, int, int] = (0, 1, 2),
        classes: list[str] | None = None,
    ) -> None:
        self._arrays = arrays
        self._labels = labels
        self._classes = classes
        self._title = title
        self._axes = axes
        own = arrays["images"].shape[1 + axes[2]]
        self.channels = channels or own
        self.mean, self.std = self._statistics(own)

    def __len__(self) -> int:
        return len(self._arrays["images"])

    def read(self, index: int) -> Sample:
        index = range(len(self))[index]
        pixels = self._arrays["images"][index].transpose(self._axes)
        label = -1 if self._labels is None else int(self._labels[index])
        image = ArrayImage(pixels, self.channels)
        return Sample(image, None if label < 0 else label, self.name(index))

    def name(self, index: int) -> str:
        return f"{self._title}/{index}"

    def stamp(self, index: int) -> str:
        return f"{self.name(index)} {zlib.crc32(self.read(index).image.pixels())}"

    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else known_labels(self._labels)

    def classes(self) -> list[str] | None:
        return self._classes

    def _statistics(self, own: int) -> Normalization:
        """Compute mean and standard deviation of each channel, over images spread evenly."""
        images = self._arrays["images"]
        chosen = images[:: 1 + images.nbytes // STATISTICS_BYTES]
        counts = np.zeros((own, 256))
        for start in range(0, len(chosen), 1000):
            counts += _histograms(chosen[start : start + 1000], 1 + self._axes[2])
        if own != self.channels:  # as for `EncodedSource`, of all channels together
            counts = np.repeat(counts.sum(0, keepdims=True), self.channels, axis=0)
        return measured_normalization(counts)


def read_file(path: str) -> bytes:
    """Read the content of an image file. Raises BadImage, also for a pipe or a device."""
    with _bad_if_refused(path), open_regular(path) as file:
        refuse_large(path, os.fstat(file.fileno()).st_size)
        return file.read()


def refuse_large(path: str, size: int) -> None:
    """Raise BadImage for a file of more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise BadImage(path, f"{size / 2**30:.1f} GiB, limit {MAX_BYTES / 2**30:.0f}")


def file_stamp(path: str) -> str:
    """Give the stamp of an image that is a file, without reading it. Raises BadImage."""
    with _bad_if_refused(path):
        found = os.stat(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def is_left_alone(name: str) -> bool:
    """Tell whether a file or folder of this name is skipped, as no data of the user."""
    return name.startswith(".") or name in LEFT_ALONE


def data_folder(root_path: str | None, image_folder: str) -> Path:
    """Find the folder `root_path`/`image_folder`. Raises UserError if that is no folder."""
    if not root_path:
        raise UserError("data.root_path is not set: name the folder that holds the images")
    root = Path(root_path).expanduser()
    _require_folder(root, "data.root_path")
    base = root / image_folder
    _require_folder(base, "data.image_folder")
    return base


def split_folder(base: Path, split: str) -> Path:
    """Find the sub-folder of a split; a folder that has none is its own only split."""
    if (base / split).is_dir():
        return base / split
    for other in SPLITS:
        if (base / other).is_dir():
            raise UserError(
                f'{base}: has a folder "{other}" but none called "{split}"; '
                "create it, or change data.root_path or data.image_folder"
            )
    return base


def _histograms(pixels: np.ndarray, axis: int) -> np.ndarray:
    """Count the pixels of each value, (C, 256), of uint8 with its channels at `axis`."""
    channels = np.moveaxis(pixels, axis, 0)
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])


def _require_folder(path: Path, key: str) -> None:
    if not path.exists():
        raise UserError(f"{key}: no such folder: {path}; create it or correct the path")
    if not path.is_dir():
        raise UserError(f"{key}: {path} is a file, not a folder; name the folder that holds it")


@contextmanager
def _bad_if_refused(path: str) -> Iterator[None]:
    """Turn an error of the file system into a BadImage."""
    try:
        yield
    except OSError as error:
        raise BadImage(path, error.strerror or repr(error)) from error
    except ValueError as error:  # of a name that no file can have
        raise BadImage(path, str(error)) from error
