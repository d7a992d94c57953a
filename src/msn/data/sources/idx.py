"""IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from msn.data.mapped import Arrays, Mapped, Watch, cached
from msn.data.sources.base import ArraySource
from msn.runtime.errors import UserError

TYPES = {9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}  # beside 8, uint8
HEADER_BYTES = {axes: 4 + 4 * axes for axes in (1, 3)}
DAMAGE = (OSError, EOFError, zlib.error)  # that reading a file may meet
PREFIXES = {"train": "train", "val": "t10k"}
_CHUNK = 2**20


def open_idx(folder: Path, *, split: str, channels: int | None) -> ArraySource:
    """Open the images of a split, with their labels if there are any.

    Plain files are mapped as they are, gzip files are unpacked into the cache folder once.

    Args:
        folder: holds `train-images-idx3-ubyte` and the like, plain or `.gz`.

    Raises:
        UserError: the images are missing, or a file is not what its name says.
    """
    prefix = PREFIXES[split]
    file = _find(folder, f"{prefix}-images", 3)
    if file is None:
        raise UserError(
            f"{folder}: no file {prefix}-images-idx3-ubyte or {prefix}-images-idx3-ubyte.gz here;"
            " check data.root_path and data.image_folder"
        )
    images = _open_images(file)
    labels = _read_labels(_find(folder, f"{prefix}-labels", 1), len(images["images"]))
    return ArraySource(images, labels, channels=channels, title=f"{folder.name}/{prefix}")


def _find(folder: Path, stem: str, axes: int) -> Path | None:
    names = [f"{stem}{dash}idx{axes}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _open_images(file: Path) -> Arrays:
    """Open the array `images`, uint8 (N, H, W, 1), of a plain or gzip file."""
    if file.suffix == ".gz":
        return cached(f"idx {file.absolute()}", partial(_unpack, file))
    with _reading(file) as stream:
        shape = _shape(file, stream, 3)
        _require_length(file, shape, file.stat().st_size - HEADER_BYTES[3])
        return Mapped(str(file.absolute()), {"images": ("|u1", (*shape, 1), HEADER_BYTES[3])})


def _unpack(file: Path, watch: Watch) -> Arrays:
    watch(str(file.absolute()))
    return {"images": _read(file, 3)[..., None]}


def _read_labels(file: Path | None, images: int) -> np.ndarray | None:
    if file is None:
        return None
    labels = _read(file, 1)
    if len(labels) != images:
        raise UserError(
            f"{file}: has {len(labels)} labels for {images} images; fetch the files again"
        )
    return labels


def _read(file: Path, axes: int) -> np.ndarray:
    content, problem = bytearray(), ""
    with _reading(file) as stream:
        shape = _shape(file, stream, axes)
        try:  # to the end and beyond: there a gzip file has its check sum
            while len(content) <= math.prod(shape) and (chunk := stream.read1(_CHUNK)):
                content += chunk
        except DAMAGE as error:
            problem = str(error)
    _require_length(file, shape, len(content), problem)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _require_length(file: Path, shape: tuple[int, ...], length: int, problem: str = "") -> None:
    """Refuse a file that holds more or less than its header says."""
    expected, each = math.prod(shape), math.prod(shape[1:])
    if not expected:
        raise UserError(f"{file}: holds no values, its shape is {shape}; fetch it again")
    if problem or length != expected:
        there = f"{length // each} of {shape[0]}" if length <= expected else f"over {shape[0]}"
        reason = f", and is damaged ({problem})" if problem else ""
        kind = "images" if len(shape) > 1 else "labels"
        raise UserError(f"{file}: holds {there} {kind}{reason}; fetch it again")


def _shape(file: Path, stream: io.BufferedIOBase, axes: int) -> tuple[int, ...]:
    """Read the shape in a header: two zeros, type (8 is a byte), number of axes, their sizes."""
    header = stream.read(HEADER_BYTES[axes])
    if header[:2] == bytes(2) and header[2:3] and header[2] in TYPES:
        raise UserError(
            f"{file}: holds {TYPES[header[2]]}, must be uint8; write the values as levels of 0 to"
            " 255, or as .npy files for data.source: folder"
        )
    if len(header) < HEADER_BYTES[axes] or header[:4] != bytes([0, 0, 8, axes]):
        raise UserError(f"{file}: is not an IDX file of {axes} axes of bytes; fetch it again")
    return struct.unpack(f">{axes}I", header[4:])


@contextmanager
def _reading(file: Path) -> Iterator[io.BufferedIOBase]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream
    except DAMAGE as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch it again") from error
