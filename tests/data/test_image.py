"""What an image file becomes, against Pillow; and each kind of bad image, as a file."""

import io
import pickle
from typing import Any

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_images

from msn.data.image import ArrayImage, BadImage, EncodedImage

PHOTO = load_sample_images().images[0]


def encoded(
    array: np.ndarray = PHOTO, format: str = "JPEG", mode: str = "RGB", **more: Any
) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(array).convert(mode).save(stream, format, **more)
    return stream.getvalue()


def ours(data: bytes, channels: int = 3, reduction: int = 1) -> np.ndarray:
    image = EncodedImage(data, channels, "it")
    pixels = image.pixels(reduction)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == (
        -(-image.shape[0] // reduction), -(-image.shape[1] // reduction), channels
    )  # fmt: skip
    return pixels


def reference(data: bytes) -> np.ndarray:
    """The loader of torchvision's ImageFolder."""
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def reason(data: bytes) -> str:
    """Why the bytes are no image; the shape may be known, but then not the pixels."""
    with pytest.raises(BadImage) as caught:
        EncodedImage(data, 3, "it").pixels()
    assert caught.value.name == "it"
    assert len(caught.value.reason) < 100
    return caught.value.reason


# --- good ones


@pytest.mark.parametrize("more", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_that_of_pillow(mode: str, more: dict[str, Any]) -> None:
    data = encoded(PHOTO[:201, :303], mode=mode, **more)
    difference = np.abs(ours(data).astype(int) - reference(data).astype(int))
    assert difference.max() <= 3  # builds of libjpeg may round in different ways


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_reduction_averages_squares(format: str, reduction: int, channels: int) -> None:
    data = encoded(PHOTO[:200, :304], format)
    reduced = ours(data, channels, reduction).astype(float)
    full = ours(data, channels)
    squares = full.reshape(200 // reduction, reduction, 304 // reduction, reduction, channels)
    assert np.abs(reduced - squares.mean((1, 3))).mean() < 3


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_sides_of_a_reduction_are_rounded_up(reduction: int) -> None:
    for format in ("JPEG", "PNG"):
        ours(encoded(PHOTO[:37, :61], format), 3, reduction)
    array = ArrayImage(PHOTO[:37, :61], 1)
    assert array.shape == (37, 61, 1)
    assert array.pixels(reduction).shape == (-(-37 // reduction), -(-61 // reduction), 1)


def test_arrays_change_channels_as_pillow_does() -> None:
    grey = np.asarray(PIL.Image.fromarray(PHOTO).convert("L")).astype(int)
    found = ArrayImage(PHOTO, 1).pixels()
    assert np.abs(found[..., 0] - grey).max() <= 1
    np.testing.assert_array_equal(ArrayImage(found, 3).pixels(), np.repeat(found, 3, 2))
    assert np.abs(ours(encoded(format="PNG"), 1)[..., 0] - grey).max() <= 1


def test_bad_image_travels_between_processes() -> None:
    bad = pickle.loads(pickle.dumps(BadImage("a.jpg", "0 bytes")))
    assert (bad.name, bad.reason, str(bad)) == ("a.jpg", "0 bytes", "a.jpg: 0 bytes")
