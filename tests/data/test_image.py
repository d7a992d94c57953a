"""What an image file becomes, against Pillow; and each kind of bad image, as a file."""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.features
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images

from msn.data.formats import jpeg_xl_size
from msn.data.image import MAX_PIXELS, ArrayImage, BadImage, EncodedImage, Image, open_image
from msn.data.sources.folder import Folder
from tests.support.made import npy

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
    gray = np.asarray(PIL.Image.fromarray(PHOTO).convert("L")).astype(int)
    found = ArrayImage(PHOTO, 1).pixels()
    assert np.abs(found[..., 0] - gray).max() <= 1
    np.testing.assert_array_equal(ArrayImage(found, 3).pixels(), np.repeat(found, 3, 2))
    assert np.abs(ours(encoded(format="PNG"), 1)[..., 0] - gray).max() <= 1


def test_bad_image_travels_between_processes() -> None:
    bad = pickle.loads(pickle.dumps(BadImage("a.jpg", "0 bytes")))
    assert (bad.name, bad.reason, str(bad)) == ("a.jpg", "0 bytes", "a.jpg: 0 bytes")


# --- arrays


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13, 200])
def test_arrays_are_read_as_they_are(channels: int, dtype: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (20, 30, channels))
    array = (levels if dtype == "u1" else levels * 256 + 77).astype(dtype)
    for stored in (array, np.asfortranarray(array), *[array[..., 0]] * (channels == 1)):
        image = open_image(npy(stored), channels, "it")
        assert image.shape == (20, 30, channels)
        assert image.pixels().dtype == np.uint8
        assert image.pixels().flags.c_contiguous
        np.testing.assert_array_equal(image.pixels(), levels)
        squares = levels.reshape(10, 2, 15, 2, channels).mean((1, 3))
        np.testing.assert_allclose(image.pixels(2), squares, atol=0.5)
        assert image.pixels(8).shape == (3, 4, channels)


FIVE = npy(np.zeros((8, 9, 5), np.uint16))
NO_ARRAYS = {
    "other channels": (npy(np.zeros((8, 9, 4), np.uint8)), "channels: 4, not 5 (data.channels)"),
    "gray": (npy(np.zeros((8, 9), np.uint8)), "channels: 1, not 5 (data.channels)"),
    "a JPEG": (encoded(), "no array of 5 channels (data.channels)"),
    "empty": (b"", "0 bytes"),
    "floats": (npy(np.full((8, 9, 5), 2, np.float32)), "float32 from 2 to 2; save as uint8"),
    "signed": (npy(np.zeros((8, 9, 5), np.int16)), "int16, of unknown scale; save as uint8"),
    "a batch": (npy(np.zeros((2, 8, 9, 5), np.uint8)), "shape (2, 8, 9, 5), must be (H, W) or "),
    "no pixels": (npy(np.zeros((0, 9, 5), np.uint8)), "shape (0, 9, 5), must be (H, W) or (H, "),
    "objects": (npy(np.array([[os.system]])), "cannot be decoded (ValueError('Object arrays"),
    "cut": (FIVE[:-1], "truncated"),
    "cut in its header": (FIVE[:50], "truncated"),
    "only a start": (FIVE[:6], "truncated"),
    "a claim": (FIVE.replace(b"(8, 9, 5), ", b"(8, 99999999999999, 5), "), "cannot be decoded"),
    "large": (npy(np.zeros((10_000, 9_000, 1), np.uint8)), "90 megapixels, limit 89"),
}


@pytest.mark.parametrize("name", NO_ARRAYS)
def test_other_arrays_are_bad_images(name: str) -> None:
    data, expected = NO_ARRAYS[name]
    with pytest.raises(BadImage) as caught:
        open_image(data, 5, "it").pixels()
    assert caught.value.name == "it"
    assert caught.value.reason.startswith(expected), caught.value.reason
    assert len(caught.value.reason) < 100


# --- odd ones: what the reference makes of them, or a reason


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """An RGB image of any size that its header may claim."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    )


def with_exif(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


def with_garbage_exif() -> bytes:
    """A JPEG whose EXIF segment claims what it does not hold."""
    data = encoded()
    segment = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def palette_with_transparency() -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(PHOTO).quantize(16)
    image.save(stream, "PNG", transparency=bytes(range(0, 256, 16)))
    return stream.getvalue()


def animated(format: str) -> bytes:
    stream = io.BytesIO()
    frames = [PIL.Image.fromarray(np.roll(PHOTO, 40 * i, axis=1)) for i in range(3)]
    frames[0].save(stream, format, save_all=True, append_images=frames[1:])
    return stream.getvalue()


RAMP = np.linspace(0, 65535, 40 * 50).astype(np.uint16).reshape(40, 50)
COLOR_RAMP = np.stack([RAMP, RAMP[::-1], RAMP // 3], axis=-1)
ODD = {
    "turned by EXIF.jpg": with_exif(6),
    "wrong EXIF.jpg": with_exif(77),
    "garbage EXIF.jpg": with_garbage_exif(),
    "CMYK.jpg": encoded(mode="CMYK"),
    "CMYK.tif": encoded(format="TIFF", mode="CMYK"),
    "16 bit.png": cv2.imencode(".png", COLOR_RAMP)[1].tobytes(),
    "16 bit.tif": cv2.imencode(".tiff", COLOR_RAMP)[1].tobytes(),
    "palette with transparency.png": palette_with_transparency(),
    "transparent.webp": encoded(format="WEBP", mode="RGBA"),
    "animated.webp": animated("WEBP"),
    "animated.png": animated("PNG"),
    "an animated GIF.png": animated("GIF"),
    "several pictures.jpg": animated("MPO"),
    "1x1.jpg": encoded(PHOTO[:1, :1]),
    "1x1.png": encoded(PHOTO[:1, :1], "PNG"),
    "more behind the end.jpg": encoded() + b"something else" * 100,
    "PNG inside.jpg": encoded(format="PNG"),
    "bilevel.png": encoded(format="PNG", mode="1"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_as_the_reference_does(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ODD[name])
    image = read(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(ODD[name])
    assert image.shape == expected.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of Pillow's warnings comes through
        found = image.pixels()
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3)
    assert ours(ODD[name], 1).shape == (*expected.shape[:2], 1)


def sixteen_bits(format: str, mode: str) -> bytes:
    stream = io.BytesIO()
    content = RAMP.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    PIL.Image.frombytes(mode, RAMP.shape[::-1], content).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "I;16"), ("PPM", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")]
)
def test_gray_of_sixteen_bits_is_its_upper_eight(format: str, mode: str, channels: int) -> None:
    """As the reference does with color; of gray it makes white, but for values below 256."""
    data = sixteen_bits(format, mode)
    assert (reference(data)[RAMP > 255] == 255).all()
    expected = np.repeat(RAMP[..., None] // 256, channels, axis=2)
    np.testing.assert_array_equal(ours(data, channels), expected)
    squares = expected.reshape(20, 2, 25, 2, channels).mean((1, 3))
    np.testing.assert_allclose(ours(data, channels, 2), squares, atol=0.5)


def read(folder: Path) -> Image:
    return Folder(folder).read(0).image


BOMB = "100 megapixels, limit 89"
JPEG, WHOLE_PNG = encoded(), encoded(format="PNG")
BAD = {
    "empty.jpg": (b"", "0 bytes"),
    "text.jpg": (b"<html>404</html>", "not an image"),
    "only a start.jpg": (b"\xff\xd8\xff\xe0 only a start", "truncated"),
    "cut in half.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut at the end.jpg": (JPEG[:-2], "truncated"),
    "cut, with a thumbnail.jpg": (
        JPEG[:2] + b"\xff\xe5" + struct.pack(">H", 6) + b"\xff\xd9\xff\xd9" + JPEG[2:-99],
        "truncated",
    ),
    "cut and progressive.jpg": (encoded(progressive=True)[:-3000], "truncated"),
    "cut.png": (WHOLE_PNG[: len(WHOLE_PNG) // 2], "truncated"),
    "cut.webp": (encoded(format="WEBP")[:-500], "cannot be decoded"),
    "cut.tif": (encoded(format="TIFF")[:-500], "truncated"),
    "bomb.png": (png(10_000, 10_000), BOMB),
    "bomb.jpg": (encoded(np.zeros((8, 8, 3), np.uint8)).replace(
        struct.pack(">HH", 8, 8), struct.pack(">HH", 10_000, 10_000)), BOMB),
    "large bomb.png": (png(60_000, 60_000), "over 179 megapixels, limit 89"),
    "no pixels.png": (png(100, 100), "truncated"),
    "floats up to 255.tif": (encoded(format="TIFF", mode="F"), "float32 from "),
    "script.eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_a_reason(name: str, tmp_path: Path, capfd: Any) -> None:
    content, expected = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage) as caught:
        read(tmp_path).pixels()
    assert caught.value.name == str(tmp_path / name)
    assert caught.value.reason.startswith(expected), caught.value.reason
    assert len(caught.value.reason) < 100
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_bomb_does_not_go_off(tmp_path: Path) -> None:
    """The size alone is what refuses it: its pixels would decode."""
    (tmp_path / "bomb.png").write_bytes(png(10_000, 9_000, bytes(9_000 * 30_001)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="90 megapixels, limit 89"):
        _ = read(tmp_path).shape
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_as_many_pixels_as_allowed_are_read(tmp_path: Path) -> None:
    height = MAX_PIXELS // 10_000
    (tmp_path / "large.png").write_bytes(png(10_000, height))
    assert read(tmp_path).shape == (height, 10_000, 3)


def test_files_that_cannot_be_opened_have_a_reason(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(JPEG)
    source = Folder(tmp_path)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "c.jpg").unlink()
    os.mkfifo(tmp_path / "c.jpg")
    reasons = []
    for i in range(3):
        with pytest.raises(BadImage) as caught:
            source.read(i)
        reasons.append(caught.value.reason)
    assert reasons == ["No such file or directory", "Is a directory", "not a regular file"]


@pytest.mark.slow
def test_unreadable_permissions_have_a_reason(tmp_path: Path) -> None:
    """As nobody, since root may read everything."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "a.jpg").chmod(0)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from msn.data.sources.folder import Folder\n"
        "source = Folder(Path(sys.argv[1]))\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: source.read(0)\n"
        "except Exception as error: print(type(error).__name__, error.reason)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout == "BadImage Permission denied\n"


@settings(deadline=None)
@given(data=st.data())
def test_damage_never_does_more_than_refuse(data: st.DataObject) -> None:
    """Wherever a file is cut or changed, it is decoded at the size it says, or refused."""
    whole = bytearray(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(whole[: data.draw(st.integers(0, len(whole)))]), 3, "it")
        height, width, _ = image.shape
        if height * width < 10**6:
            assert image.pixels().shape == (height, width, 3)
    except BadImage:
        pass


SMALL = [
    *(encoded(PHOTO[:40, :30], format) for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")),
    npy(PHOTO[:40, :30]),
]


@settings(deadline=None, max_examples=50)
@given(cut=st.integers(1, 800))
def test_every_cut_that_pillow_notices_is_noticed(cut: int) -> None:
    data = SMALL[0][:-cut] if cut < len(SMALL[0]) else b"\xff"
    try:
        expected = reference(data)
    except Exception:
        reason(data)
    else:
        np.testing.assert_allclose(ours(data).astype(int), expected.astype(int), atol=3)


# --- formats that not every installation reads


def test_modern_formats_are_read_as_pillow_does() -> None:
    for format in ("AVIF", "JPEG2000"):
        data = encoded(PHOTO[:40, :56], format)
        np.testing.assert_array_equal(ours(data), reference(data), format)
        assert ours(data, 1, 2).shape == (20, 28, 1)
        for end in (8, 60, -200):
            assert reason(data[:end]), format


def test_formats_that_are_not_read_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    box = b"\0\0\0\x0cJXL \r\n\x87\n"
    for data in (b"\xff\x0a\0\0", box):
        assert reason(data) == "JPEG XL; pip install pillow-jxl-plugin to read it"
    heif = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert reason(heif).startswith("HEIF, damaged or of a kind that Pillow does not read; save as")
    assert reason(b"PF\n8 8\n-1\n" + bytes(768)).startswith("PFM in color, ")
    assert reason(b"II*\0\x08\0\0\0\0\0").startswith("TIFF, damaged or of a kind")
    monkeypatch.setattr(PIL.features, "check", lambda feature: False)
    for format, name in (("AVIF", "AVIF"), ("JPEG2000", "JPEG 2000")):
        expected = f"{name}, which this Pillow was built without; pip install --upgrade pillow"
        assert reason(encoded(PHOTO[:8, :8], format)) == expected


def test_the_size_of_a_jpeg_xl_is_in_its_header() -> None:
    """By hand, of the fields of the standard: small, height, ratio, width."""
    sizes = {
        (24, 16): "1" + "01000" + "000" + "10000",  # 8 x (2 + 1), 8 x (1 + 1)
        (2000, 3000): "0" + "10" + f"{1999:013b}"[::-1] + "001",  # 3 : 2
        (300, 70_000): "0" + "00" + f"{299:09b}"[::-1] + "000" + "01" + f"{69_999:018b}"[::-1],
    }
    for size, bits in sizes.items():
        codestream = b"\xff\x0a" + int(bits[::-1], 2).to_bytes(12, "little")
        assert jpeg_xl_size(codestream) == size
        part = struct.pack(">I", 12 + len(codestream)) + b"jxlp" + bytes(4) + codestream
        boxes = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl " + bytes(8) + part
        assert jpeg_xl_size(boxes) == size


def test_jpeg_xl_is_read_with_its_plugin() -> None:
    pytest.importorskip("pillow_jxl")
    data = encoded(PHOTO[:40, :56], "JXL", lossless=True)
    assert jpeg_xl_size(data) == (40, 56)
    np.testing.assert_array_equal(ours(data), PHOTO[:40, :56])
    assert reason(data[: len(data) // 2])
