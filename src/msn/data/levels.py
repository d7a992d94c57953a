"""Convert pixel values of any type to 0..255, or say why that would be a guess.

Unsigned integers keep the upper eight bits of their width; floats stand for 0 to 1 and are
multiplied by 255. Nothing is clipped: of other floats and of signed integers nobody but their owner
knows what is black and what is white.
"""

import numpy as np
import PIL.Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

REMEDY = "save as uint8, uint16 or floats of 0 to 1"
_SIGNED = 2  # in SampleFormat
_WHITE_IS_ZERO = 0  # in PhotometricInterpretation


class UnknownScale(ValueError):
    """Values of which it is not known what is black and what is white."""


def levels(array: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Convert the values of an array to uint8, in its shape.

    Args:
        array: unsigned integers, or floats of 0 to 1.
        bits: width of the integers, where it is not that of their type.

    Raises:
        UnknownScale: values of another type or range.
    """
    if array.dtype.kind == "u":
        width = bits or 8 * array.dtype.itemsize
        return (array >> (width - 8)).astype(np.uint8) if width > 8 else array
    if array.dtype.kind != "f":
        raise UnknownScale(f"{array.dtype}, of unknown scale; {REMEDY}")
    with np.errstate(all="ignore"):
        scaled = np.rint(array.astype(np.float32, copy=False) * np.float32(255))
        low, high = scaled.min(initial=0), scaled.max(initial=0)
    if not (low >= 0 and high <= 255):  # NaN is neither
        there = f"from {array.min():.3g} to {array.max():.3g}" if low <= high else "with NaN"
        raise UnknownScale(f"{array.dtype} {there}; {REMEDY}")
    levels: np.ndarray = scaled.astype(np.uint8)
    return levels


def with_levels(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image to eight bits for each value, in a mode that Pillow converts as it should.

    Raises:
        UnknownScale: as for `levels`.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = max(tags.get(BITSPERSAMPLE, (8,)))
    if _SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise UnknownScale(f"int{bits}, of unknown scale; {REMEDY}")
    if image.mode.startswith("I;16"):
        found = levels(np.asarray(image), bits if tags else 16)
    elif image.mode == "I":  # 32 bits in a TIFF, and 16 in what else there is
        found = levels(np.asarray(image).view(np.uint32), 32 if tags else 16)
    elif image.mode == "F":
        found = levels(np.asarray(image))
    else:
        return image
    return PIL.Image.fromarray(
        255 - found if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO else found
    )
