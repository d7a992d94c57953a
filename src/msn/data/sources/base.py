"""What a source of images is, and what several kinds of it share."""

import os
import stat
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from msn.data.image import ArrayImage, BadImage, EncodedImage, Image
from msn.data.mapped import Arrays
from msn.data.normalisation import imagenet_normalisation
from msn.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val")
STATISTICS_BYTES = 2**26  # of images looked at for their mean: all of Fashion-MNIST


class Sample(NamedTuple):
    """One image, its `label` where known, and its `name` for people."""

    image: Image
    label: int | None
    name: str


class Source(Protocol):
    """Images by index. Cheap to hold and to send to a worker: it opens files when asked to."""

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
        """Text that changes when the image does, told without decoding it. Raises BadImage."""
        ...

    def labels(self) -> np.ndarray | None:
        """All labels, int64 (N,), or None for an unlabelled source."""
        ...


class EncodedSource(ABC):
    """A source of image files of unknown content; it claims the statistics of ImageNet.

    Args:
        channels: 1 (grey) or 3 (RGB), whatever the files hold.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.mean, self.std = imagenet_normalisation(channels)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """As in `Source`."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """The label of one image, where known."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The content of the image file. Raises BadImage."""

    def path(self, index: int) -> str:
        """Where the image is, for messages."""
        return self.name(index)

    def stamp(self, index: int) -> str:
        """As in `Source`; here of the bytes."""
        return f"{self.path(index)} {zlib.crc32(self.encoded(index))}"

    def read(self, index: int) -> Sample:
        index = range(len(self))[index]  # from the end, or an IndexError, as in a list
        image = EncodedImage(self.encoded(index), self.channels, self.path(index))
        return Sample(image, self.label(index), self.name(index))


class ArraySource:
    """A source of images that lie decoded in an array.

    Args:
        arrays: holds `images`, uint8 (N, ...). To be cheap to send, it is a `Mapped` if large.
        labels: integers (N,), or None.
        axes: where height, width and channels of an image are among its axes.
        channels: 1 (grey) or 3 (RGB); None takes those that are there.
        title: first part of the images' names.
    """

    def __init__(
        self,
        arrays: Arrays,
        labels: np.ndarray | None,
        *,
        title: str,
        channels: int | None = None,
        axes: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        self._arrays = arrays
        self._labels = labels
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
        label = None if self._labels is None else int(self._labels[index])
        return Sample(ArrayImage(pixels, self.channels), label, self.name(index))

    def name(self, index: int) -> str:
        return f"{self._title}/{index}"

    def stamp(self, index: int) -> str:
        return f"{self.name(index)} {zlib.crc32(self.read(index).image.pixels())}"

    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.astype(np.int64)

    def _statistics(self, own: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, over images spread evenly."""
        images = self._arrays["images"]
        chosen = images[:: 1 + images.nbytes // STATISTICS_BYTES]
        counts = np.zeros((own, 256))
        for start in range(0, len(chosen), 1000):
            part = np.moveaxis(chosen[start : start + 1000], 1 + self._axes[2], 0)
            counts += [np.bincount(channel.ravel(), minlength=256) for channel in part]
        if own != self.channels:  # as for `EncodedSource`, of all channels together
            counts = np.repeat(counts.sum(0, keepdims=True), self.channels, axis=0)
        share, levels = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
        mean = share @ levels
        std = np.sqrt(share @ levels**2 - mean**2)
        return tuple(mean.tolist()), tuple(std.tolist())


def read_file(path: str) -> bytes:
    """The content of an image file. Raises BadImage, also for a pipe or a device."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadImage(path, "not a file")
            return file.read()
    except OSError as error:
        raise BadImage(path, error.strerror or repr(error)) from error


def file_stamp(path: str) -> str:
    """The stamp of an image that is a file, without reading it. Raises BadImage."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise BadImage(path, error.strerror or repr(error)) from error
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def data_folder(root_path: str | None, image_folder: str) -> Path:
    """`root_path`/`image_folder`. Raises UserError if that is no folder."""
    if not root_path:
        raise UserError("data.root_path is not set: name the folder that holds the images")
    root = Path(root_path).expanduser()
    _require_folder(root, "data.root_path")
    base = root / image_folder
    _require_folder(base, "data.image_folder")
    return base


def split_folder(base: Path, split: str) -> Path:
    """The sub-folder of a split; a folder that has none is its own only split."""
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


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else a pipe would wait for a writer
