"""Arrays (`.npy`) of any number of channels, in every source that can hold them."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msn.data.image import BadImage
from msn.data.sources import Source
from msn.runtime.errors import UserError
from tests.support import sources as support
from tests.support.made import add, encoded, images, npy

COUNT, CHANNELS = 12, 5
ARRAYS = np.random.default_rng(0).integers(0, 65536, (COUNT, 9, 11, CHANNELS), dtype=np.uint16)
ARRAYS[..., 1] //= 3
ARRAYS[..., 4] = 12 * 256  # the same everywhere


def make_folder(root: Path) -> dict[str, Any]:
    for i, array in enumerate(ARRAYS):
        path = root / f"train/class {i % 3}/{i:02}.NPY"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(array))
    return {"source": "folder", "root_path": str(root)}


def make_list(root: Path) -> dict[str, Any]:
    make_folder(root)
    lines = [f"train/class {i % 3}/{i:02}.NPY\n" for i in range(COUNT)]
    (root / "list.txt").write_text("".join(lines))
    return {"source": "list", "root_path": str(root), "image_list": str(root / "list.txt")}


def make_tar(root: Path) -> dict[str, Any]:
    with tarfile.open(root / "train.tar", "w") as shard:
        for i, array in enumerate(ARRAYS):
            add(shard, f"{i:02}.npy", npy(array))
            add(shard, f"{i:02}.cls", str(i % 3).encode())
    return {"source": "tar", "root_path": str(root)}


def make_huggingface(root: Path) -> dict[str, Any]:
    import datasets

    features = {
        "image": datasets.Array3D(ARRAYS.shape[1:], "uint16"),
        "label": datasets.ClassLabel(num_classes=3),
    }
    columns = {"image": list(ARRAYS), "label": [i % 3 for i in range(COUNT)]}
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.save_to_disk(str(root))
    return {"source": "huggingface", "root_path": str(root)}


MAKERS = (make_folder, make_list, make_tar, make_huggingface)


def opened(place: dict[str, Any], channels: int | None = CHANNELS) -> Source:
    return support.opened({"channels": channels, **place})


@pytest.mark.parametrize("make", MAKERS)
def test_arrays_are_read(make: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    source = opened(make(tmp_path))
    assert (len(source), source.channels) == (COUNT, CHANNELS)
    read = [source.read(i) for i in range(COUNT)]
    order = np.argsort([sample.name[-6:] for sample in read]) if make is make_folder else range(12)
    for i, index in enumerate(order):
        np.testing.assert_array_equal(read[index].image.pixels(), ARRAYS[i] // 256)
        assert read[index].label == (None if make is make_list else i % 3)
    with pytest.raises(BadImage, match=r"channels: 5, not 3 \(data\.channels\)"):
        opened(make(tmp_path), None).read(0)


def test_statistics_are_those_of_the_arrays(tmp_path: Path) -> None:
    """Bad ones are left out; a constant channel is not blown up."""
    place = make_folder(tmp_path)
    (tmp_path / "train/class 0/bad.npy").write_bytes(b"")
    source = opened(place)
    values = ARRAYS // 256 / 255
    assert source.mean == pytest.approx(values.mean((0, 1, 2)))
    assert source.std[:4] == pytest.approx(values.std((0, 1, 2))[:4])
    assert source.std[4] == 1 / 255


def test_no_array_of_so_many_channels(tmp_path: Path) -> None:
    source = opened(make_folder(tmp_path), 4)
    with pytest.raises(
        UserError, match=r"data\.channels is 4: .* channels: 5, not 4 .* data\.mean"
    ):
        _ = source.mean


def test_arrays_beside_other_images_are_passed_over(tmp_path: Path) -> None:
    """They may be features or masks of these."""
    png = encoded(images(20)[0])
    (tmp_path / "features").mkdir()
    (tmp_path / "1.png").write_bytes(png)
    for name in ("1.npy", "features/1.npy"):
        (tmp_path / name).write_bytes(npy(ARRAYS[0]))
    with tarfile.open(tmp_path / "train.tar", "w") as shard:
        add(shard, "1.npy", npy(ARRAYS[0]))
        add(shard, "1.png", png)
    for kind, name in (("folder", "1.png"), ("tar", "train.tar/1.png")):
        source = opened({"source": kind, "root_path": str(tmp_path)}, 3)
        assert [source.name(i) for i in range(len(source))] == [name]
        assert source.read(0).image.pixels().shape == (20, 20, 3)
