"""An image as a source gives it: its size at once, its pixels when asked for.

The reference is the loader of torchvision's ImageFolder, `PIL.Image.open(file).convert("RGB")`: no
EXIF rotation, the first frame of an animation. Whole, ordinary JPEGs are decoded by OpenCV, to the
same pixels in half the time and at a fraction of the size if need be; all else by Pillow itself.
Files of NumPy (`.npy`) hold images of any number of channels.

Values of more than eight bits become levels as `msn.data.levels` says; Pillow would clip gray ones.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import PIL.Image

from msn.data.formats import JPEG_XL, NotRead, jpeg_xl_size, readable_as, unread
from msn.data.levels import UnknownScale, levels, with_levels

MAX_PIXELS = 2**30 // 12  # where Pillow starts to warn of a decompression bomb
_END_OF_JPEG = b"\xff\xd9"
_NPY = b"\x93NUMPY"
_COLOR = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_GREY = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class BadImage(Exception):
    """An image that cannot be had: `name` says which, `reason` why, in a few words."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Image(Protocol):
    """One image: gray, RGB, or of any other number of channels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) at full size, known without decoding. Raises BadImage."""
        ...

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Decode to contiguous uint8 (ceil(H / reduction), ceil(W / reduction), C).

        Args:
            reduction: 1, 2, 4 or 8, the side of the square that each pixel stands for.

        Raises:
            BadImage: it cannot be decoded.
        """
        ...


class ArrayImage:
    """An image that is an array already.

    Args:
        array: uint8 (H, W, C).
        channels: wanted: C, or gray is repeated to RGB, or RGB becomes ITU-R 601 luma.
    """

    def __init__(self, array: np.ndarray, channels: int) -> None:
        if array.shape[2] == channels:
            self._array = np.array(array, order="C")  # its own: the source's may be read-only
        elif channels == 3:
            self._array = np.repeat(array, 3, axis=2)
        else:
            self._array = cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY)[..., None]

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self._array.shape
        return height, width, channels

    def pixels(self, reduction: int = 1) -> np.ndarray:
        if reduction == 1:
            return self._array
        planes = map(PIL.Image.fromarray, np.moveaxis(self._array, 2, 0))
        return np.stack([np.asarray(plane.reduce(reduction)) for plane in planes], axis=2)


class EncodedImage:
    """The bytes of an image file.

    Args:
        data: the whole file.
        channels: wanted, 1 (gray) or 3 (RGB), whatever the file holds.
        name: for `BadImage`.
    """

    def __init__(self, data: bytes, channels: int, name: str) -> None:
        self._data = data
        self._channels = channels
        self._name = name

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._header.height, self._header.width, self._channels

    def pixels(self, reduction: int = 1) -> np.ndarray:
        if self._header.ordinary_jpeg:
            flags = _COLOR[reduction] if self._channels == 3 else _GREY[reduction]
            encoded = np.frombuffer(self._data, dtype=np.uint8)
            decoded: np.ndarray | None = cv2.imdecode(
                encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION
            )
            if decoded is not None:
                color = self._channels == 3
                pixels: np.ndarray = (
                    cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB) if color else decoded[..., None]
                )
                return pixels
        with self._opened(io.BytesIO(self._data)) as image:
            image = with_levels(image).convert("RGB" if self._channels == 3 else "L")
            pixels = np.array(image if reduction == 1 else image.reduce(reduction))
            return pixels if pixels.ndim == 3 else pixels[..., None]

    @cached_property
    def _header(self) -> "_Header":
        stream = io.BytesIO(self._data)
        with self._opened(stream) as image:
            width, height = image.size
            # libjpeg makes up what a truncated file lacks. Compressed data holds no marker, hence
            # an end marker behind the headers, where Pillow stopped reading, ends the image.
            ordinary = (
                image.format == "JPEG"
                and image.mode in ("RGB", "L")
                and self._data.rfind(_END_OF_JPEG, stream.tell()) >= 0
            )
        return _Header(height, width, ordinary)

    @contextmanager
    def _opened(self, stream: io.BytesIO) -> Iterator[PIL.Image.Image]:
        """Open the image with Pillow, and turn whatever goes wrong with it into a BadImage."""
        if not self._data:
            raise BadImage(self._name, "0 bytes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd metadata, which nobody asks for
                formats = readable_as(self._data)
                if JPEG_XL in formats:
                    _refuse_bomb(self._name, *jpeg_xl_size(self._data))
                with PIL.Image.open(stream, formats=formats) as image:
                    _refuse_bomb(self._name, image.height, image.width)
                    yield image
        except BadImage:
            raise
        except PIL.UnidentifiedImageError:
            raise BadImage(self._name, unread(self._data)) from None
        except Exception as error:  # broken bytes make decoders raise errors of any kind
            raise BadImage(self._name, _reason(error)) from error


def open_image(data: bytes, channels: int, name: str) -> Image:
    """Make an `Image` from the bytes of a file.

    Args:
        data: the whole file: encoded as JPEG, PNG or the like, or an array of NumPy (`.npy`) of a
            type that `msn.data.levels` knows, (H, W) for one channel or (H, W, channels).
        channels: wanted. Encoded images are there as gray or RGB; arrays have to have so many.
        name: for `BadImage`.

    Raises:
        BadImage: it has not that many channels, or an array cannot be read.
    """
    if data.startswith(_NPY):
        array = _array_in(data, name)
        if array.shape[2] != channels:
            raise BadImage(name, f"channels: {array.shape[2]}, not {channels} (data.channels)")
        return ArrayImage(array, channels)
    if data and channels not in (1, 3):
        raise BadImage(name, f"no array of {channels} channels (data.channels)")
    return EncodedImage(data, channels, name)


class _Header(NamedTuple):
    height: int
    width: int
    ordinary_jpeg: bool  # RGB or gray, and with its end


def _array_in(data: bytes, name: str) -> np.ndarray:
    """Read the image in a NumPy file as uint8 (H, W, C). Raises BadImage."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.ndim not in (2, 3) or not array.size:
            raise BadImage(name, f"shape {array.shape}, must be (H, W) or (H, W, C)")
        _refuse_bomb(name, *array.shape[:2])
        array = levels(array)
    except BadImage:
        raise
    except Exception as error:  # broken headers too raise errors of many kinds
        raise BadImage(name, _reason(error)) from error
    return array if array.ndim == 3 else array[..., None]


def _refuse_bomb(name: str, height: int, width: int) -> None:
    pixels = height * width
    if pixels > MAX_PIXELS:
        megapixels = f"{pixels / 1e6:.0f} megapixels, limit {MAX_PIXELS / 1e6:.0f}"
        raise BadImage(name, megapixels)


def _reason(error: Exception) -> str:
    if isinstance(error, UnknownScale | NotRead):
        return str(error)
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"over {2 * MAX_PIXELS / 1e6:.0f} megapixels, limit {MAX_PIXELS / 1e6:.0f}"
    if "truncated" in str(error).lower() or str(error).startswith("EOF"):
        return "truncated"
    return f"cannot be decoded ({error!r:.60})"
