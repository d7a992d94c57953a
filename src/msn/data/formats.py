"""Recognize the format of image bytes, and name the package that reads it."""

import importlib
import re

import PIL.features

# What Pillow may open: among the rest are formats that start other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
JPEG_XL = "JXL"  # as its plugin calls it
_STARTS = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    "AVIF": rb"....ftypavi[fs]",
    "HEIF": rb"....ftyp(?:he|mi|ms)",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PFM in color": rb"PF\s",
}
_KIND = re.compile(b"|".join(b"(%s)" % start for start in _STARTS.values()), re.DOTALL)
_FEATURES = {"AVIF": "avif", "JPEG 2000": "jpg_2000"}  # that a Pillow may have been built without
# Width over height, by a number of three bits; 0 means that the width follows.
_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class NotRead(ValueError):
    """A kind of image that nothing installed reads; the text says what would."""


def readable_as(data: bytes) -> tuple[str, ...]:
    """List the formats that Pillow may take the bytes for.

    Raises:
        NotRead: a kind that needs another package.
    """
    kind = _kind(data)
    if kind in _FEATURES and not PIL.features.check(_FEATURES[kind]):
        raise NotRead(f"{kind}, which this Pillow was built without; pip install --upgrade pillow")
    if kind != "JPEG XL":
        return FORMATS
    try:
        importlib.import_module("pillow_jxl")
    except ImportError:
        raise NotRead("JPEG XL; pip install pillow-jxl-plugin to read it") from None
    return (JPEG_XL,)


def unread(data: bytes) -> str:
    """Explain in a few words why Pillow finds no image in the bytes."""
    kind = _kind(data)
    if kind is None:
        return "not an image"
    if kind in ("JPEG XL", *_FEATURES):
        return f"cannot be decoded as {kind}"
    return f"{kind}, damaged or of a kind that Pillow does not read; save as PNG"


def jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Read height and width from a JPEG XL header; its plugin would decode the image for them.

    Raises:
        NotRead: there is no such header.
    """
    bits = int.from_bytes(_codestream(data)[2:12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    over, under = _RATIOS[ratio]
    return height, height * over // under if ratio else side()


def _codestream(data: bytes) -> bytes:
    """Find the start of the image itself, which a container may hold in one of its boxes."""
    if data.startswith(b"\xff\x0a"):
        return data[:12]
    place = 0
    while place + 8 <= len(data):
        size, header = int.from_bytes(data[place : place + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        kind, content = data[place + 4 : place + 8], place + header
        if kind in (b"jxlc", b"jxlp"):
            content += 4 * (kind == b"jxlp")  # its number among the parts
            return data[content : content + 12]
        if size < header:
            break
        place += size
    raise NotRead("cannot be decoded as JPEG XL")


def _kind(data: bytes) -> str | None:
    found = _KIND.match(data)
    return None if found is None else list(_STARTS)[(found.lastindex or 1) - 1]
