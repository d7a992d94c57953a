"""Values of every type: as levels from 0 to 255 by a stated scale, or a bad image that says why."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from msn.data.image import BadImage, open_image
from msn.data.levels import levels
from msn.runtime.errors import UserError
from tests.support.made import idx, make_cifar10, npy
from tests.support.sources import opened

RAMP = np.arange(64).reshape(8, 8) / 63  # 0 to 1
FLOATS = np.rint(RAMP * 255)
REMEDY = "; save as uint8, uint16 or floats of 0 to 1"


def tiff(array: np.ndarray, *, photometric: int = 1, bits: int = 0, data: bytes = b"") -> bytes:
    """A gray image of the array's type."""
    order = "<" if array.dtype.newbyteorder("=").str == array.dtype.str else ">"
    data = data or array.tobytes()
    kinds = {"u": 1, "i": 2, "f": 3}
    height, width = array.shape
    tags = [
        (256, width), (257, height), (258, bits or array.dtype.itemsize * 8), (259, 1),
        (262, photometric), (273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height), (279, len(data)),
        (339, kinds[array.dtype.kind]),
    ]  # fmt: skip
    entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return start + b"".join(entries) + bytes(4) + data


def twelve_bits() -> bytes:
    values = np.rint(RAMP * 4095).astype(np.uint16)
    packed = "".join(f"{value:012b}" for value in values.ravel())
    return tiff(values, bits=12, data=int(packed, 2).to_bytes(len(packed) // 8, "big"))


def as_pillow_writes(array: np.ndarray, format: str) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, format)
    return stream.getvalue()


def pfm(array: np.ndarray) -> bytes:
    return b"Pf\n8 8\n-1.0\n" + array[::-1].astype("<f4").tobytes()


def ramp(dtype: str) -> np.ndarray:
    top = int(np.iinfo(dtype).max)
    return np.array([i * top // 63 for i in range(64)], dtype=dtype).reshape(8, 8)


def pixels(data: bytes) -> np.ndarray:
    return open_image(data, 1, "it").pixels()[..., 0]


def test_pixels_of_unsigned_integers_keep_the_upper_eight_bits_of_their_width() -> None:
    expected = {bits: ramp(f"u{bits // 8}") >> (bits - 8) for bits in (8, 16, 32, 64)}
    for dtype in ("u1", "<u2", ">u2", "<u4", ">u4", "u8"):
        stored = ramp(dtype)
        np.testing.assert_array_equal(pixels(npy(stored)), expected[8 * stored.itemsize], dtype)
    for dtype in ("u1", "<u2", ">u2", "<u4"):
        stored = ramp(dtype)
        bits = 8 * stored.itemsize
        np.testing.assert_array_equal(pixels(tiff(stored)), expected[bits], dtype)
    for white_is_zero in (ramp("u1"), ramp("<u2")):
        found = pixels(tiff(white_is_zero, photometric=0))
        np.testing.assert_array_equal(found, 255 - expected[8 * white_is_zero.itemsize])
    np.testing.assert_array_equal(pixels(twelve_bits()), np.rint(RAMP * 4095).astype(int) >> 4)
    for format in ("PNG", "PPM", "JPEG2000"):
        data = as_pillow_writes(ramp("u2"), format)
        np.testing.assert_array_equal(pixels(data), expected[16], format)


def test_pixels_of_floats_from_0_to_1_are_multiplied_by_255() -> None:
    for dtype in ("f2", "<f4", ">f4", "f8"):
        found = pixels(npy(RAMP.astype(dtype))).astype(int)
        assert np.abs(found - FLOATS).max() <= (dtype == "f2"), dtype
    for data in (tiff(RAMP.astype("<f4")), tiff(RAMP.astype(">f4")), pfm(RAMP)):
        np.testing.assert_array_equal(pixels(data), FLOATS)
        color = open_image(data, 3, "it").pixels()
        np.testing.assert_array_equal(color, np.repeat(FLOATS[..., None], 3, axis=2))
    # Rounding of a division may end a bit beyond 1, and is no other scale.
    np.testing.assert_array_equal(levels(np.array([0.0, np.nextafter(1, 2)])), [0, 255])


def test_pixels_of_unknown_scale_are_bad_images_that_name_the_type() -> None:
    nan, inf = RAMP.copy(), RAMP.copy()
    nan[3, 3], inf[3, 3] = np.nan, np.inf
    stored = {
        "float32 from 0 to 6.55e+04": RAMP * 65535,
        "float32 from -1 to 1": RAMP * 2 - 1,
        "float32 from 0 to inf": inf,
        "float32 with NaN": nan,
    }
    cases = [(kind, array.astype("<f4")) for kind, array in stored.items()]
    cases += [(f"int{n * 8}, of unknown scale", ramp(f"i{n}")) for n in (1, 2, 4)]
    for kind, array in cases:
        data = [npy(array), tiff(array)] + [pfm(array)] * (array.dtype.kind == "f")
        for content in data:
            with pytest.raises(BadImage) as caught:
                pixels(content)
            assert caught.value.reason == kind + REMEDY
            assert len(caught.value.reason) < 100
    for other in (ramp("i8"), RAMP > 0.5, RAMP.astype("c8")):
        with pytest.raises(BadImage, match=rf"{other.dtype}, of unknown scale; save as uint8"):
            pixels(npy(other))


def test_pixels_of_arrays_in_huggingface_go_by_the_same_scale(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    for dtype, expected in (("float32", FLOATS), ("uint32", ramp("u4") >> 24), ("int64", None)):
        array = RAMP if dtype == "float32" else ramp(dtype)
        features = datasets.Features({"image": datasets.Array2D((8, 8), dtype)})
        data = datasets.Dataset.from_dict({"image": [array.astype(dtype)]}, features=features)
        data.save_to_disk(str(tmp_path / dtype))
        place = {"source": "huggingface", "root_path": str(tmp_path / dtype)}
        source = opened(place, channels=1)
        if expected is None:
            with pytest.raises(BadImage, match="int64, of unknown scale"):
                source.read(0)
        else:
            np.testing.assert_array_equal(source.read(0).image.pixels()[..., 0], expected)


def test_pixels_of_files_of_bytes_are_bytes(tmp_path: Path) -> None:
    """IDX and CIFAR of another type are refused rather than read as bytes."""
    content = bytearray(idx(np.zeros((2, 8, 8), np.uint8)))
    content[2] = 0x0D
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    place = {"root_path": str(tmp_path)}
    with pytest.raises(UserError, match=r"idx3-ubyte: holds float32, must be uint8; "):
        opened(place, source="idx")
    make_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py/data_batch_2"
    batch.write_bytes(pickle.dumps({"data": np.full((4, 3072), 300, np.int16), "labels": [0] * 4}))
    with pytest.raises(UserError, match=r"data_batch_2: is not a file of CIFAR .*int16"):
        opened(place, source="cifar10")
