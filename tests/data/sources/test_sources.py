"""What holds for every source, and that each reads what an independent reader does."""

import functools
import gzip
import http.server
import math
import pickle
import re
import tarfile
import threading
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.datasets as tv

from msn.config.sections.data import SourceName
from msn.runtime.errors import UserError
from msn.train.pretraining import pretrain
from tests.support.experiments import tiny_config
from tests.support.made import COUNT, MAKERS, encoded, idx, images, labels, make_cifar10, md5
from tests.support.sources import opened

Pairs = Iterator[tuple[np.ndarray, int]]


@pytest.fixture(params=MAKERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A data set of each kind, as the `data` section would name it."""
    return MAKERS[request.param](tmp_path / "set")


def test_there_is_one_of_each_kind() -> None:
    assert set(MAKERS) == set(typing.get_args(SourceName))


def test_contract(place: dict[str, Any]) -> None:
    source = opened(place)
    assert len(source) == (1297 if place["source"] == "digits" else COUNT)
    assert len(source.mean) == len(source.std) == source.channels
    everything = [source.read(i) for i in range(len(source))]
    for i, sample in enumerate(everything):
        pixels = sample.image.pixels()
        assert pixels.dtype == np.uint8
        assert pixels.shape == sample.image.shape
        assert pixels.shape[2] == source.channels
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable  # torch warns of arrays that are not
        assert sample.name == source.name(i)
    assert len({sample.name for sample in everything}) == len(source)
    found = source.labels()
    if place["source"] == "stl10_unlabeled":
        assert found is None
        assert {sample.label for sample in everything} == {None}
    else:
        assert found is not None
        assert found.dtype == np.int64
        assert found.tolist() == [sample.label for sample in everything]


def test_index_is_that_of_a_list(place: dict[str, Any]) -> None:
    source = opened(place)
    assert source.read(-1).name == source.read(len(source) - 1).name
    for index in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source.read(index)


@pytest.mark.parametrize("channels", [1, 3])
def test_travels_to_a_worker_without_its_images(place: dict[str, Any], channels: int) -> None:
    source = opened(place, channels=channels)
    sent = pickle.dumps(source)
    assert place["source"] == "digits" or len(sent) < 4000
    copy = pickle.loads(sent)
    assert (copy.channels, copy.mean, copy.std) == (channels, source.mean, source.std)
    for i in (0, 5, len(source) - 1):
        np.testing.assert_array_equal(copy.read(i).image.pixels(), source.read(i).image.pixels())
        assert copy.read(i)[1:] == source.read(i)[1:]


def test_stamps_are_of_the_image(place: dict[str, Any], tmp_path: Path) -> None:
    source, again = opened(place), opened(place)
    stamps = [source.stamp(i) for i in range(COUNT)]
    assert stamps == [again.stamp(i) for i in range(COUNT)]
    assert len(set(stamps)) == COUNT
    if place["source"] in ("folder", "list"):
        [first] = (tmp_path / "set").glob("train/class 0/0.png")
        first.write_bytes(encoded(images(28)[1]))
        assert [source.stamp(i) != stamps[i] for i in range(COUNT)].count(True) == 1


def test_gray_and_color_are_the_same_image(place: dict[str, Any]) -> None:
    gray, color = (opened(place, channels=c).read(3).image.pixels().astype(int) for c in (1, 3))
    luma = color @ (0.299, 0.587, 0.114)
    assert np.abs(luma - gray[..., 0]).max() <= (4 if place["source"] == "tar" else 2)  # JPEG


@pytest.mark.slow
def test_trains_for_an_epoch(place: dict[str, Any], tmp_path: Path) -> None:
    changes = {f"data__{key}": value for key, value in place.items()}
    steps = 1297 // 64 if place["source"] == "digits" else COUNT // 8
    batch = 64 if place["source"] == "digits" else 8
    config = tiny_config(tmp_path / "run", criterion__batch_size=batch, **changes)
    pretrain(config, torch.device("cpu"))
    rows = (tmp_path / "run/tiny_r0.csv").read_text().splitlines()
    header = rows[0].split(",")
    losses = [float(row.split(",")[header.index("loss")]) for row in rows[1:]]
    assert len(losses) >= math.ceil(steps / config.logging.log_freq) - 1
    assert all(map(math.isfinite, losses))


# --- against independent readers


def read_folder(root: Path) -> Pairs:
    for image, label in tv.ImageFolder(str(root / "train")):
        yield np.asarray(image), label


def read_list(root: Path) -> Pairs:
    for line in (root / "train.txt").read_text().splitlines():
        path, label = line.split("\t")
        yield np.asarray(PIL.Image.open(root / "train" / path)), int(label)


def read_tar(root: Path) -> Pairs:
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as shard:
            for name in sorted(name for name in shard.getnames() if name.endswith(".jpg")):
                image, label = map(shard.extractfile, (name, name.replace(".jpg", ".cls")))
                assert image is not None
                assert label is not None
                yield np.asarray(PIL.Image.open(image)), int(label.read())


def read_idx(root: Path) -> Pairs:
    (root / "MNIST").mkdir()
    (root / "MNIST/raw").symlink_to(root)  # where torchvision looks; it wants unpacked files
    for split in ("train", "t10k"):
        (root / f"{split}-images-idx3-ubyte").write_bytes(idx(images(28, 1)[..., 0]))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels()))
    for image, label in tv.MNIST(str(root)):
        yield np.asarray(image)[..., None], label


def fake_cifar10(root: Path) -> type[tv.CIFAR10]:
    """torchvision's own, with the check sums of the small set."""
    folder = root / tv.CIFAR10.base_folder

    class Fake(tv.CIFAR10):
        train_list = [[n, md5(folder / n)] for n in (f"data_batch_{i}" for i in range(1, 6))]  # noqa: RUF012
        test_list = [["test_batch", md5(folder / "test_batch")]]  # noqa: RUF012
        meta = {**tv.CIFAR10.meta, "md5": md5(folder / "batches.meta")}  # noqa: RUF012

    return Fake


def read_cifar10(root: Path) -> Pairs:
    for image, label in fake_cifar10(root)(str(root)):
        yield np.asarray(image), label


def read_cifar100(root: Path) -> Pairs:
    folder = root / tv.CIFAR100.base_folder

    class Fake(tv.CIFAR100):
        train_list = [["train", md5(folder / "train")]]  # noqa: RUF012
        test_list = [["test", md5(folder / "test")]]  # noqa: RUF012
        meta = {**tv.CIFAR100.meta, "md5": md5(folder / "meta")}  # noqa: RUF012

    for image, label in Fake(str(root)):
        yield np.asarray(image), label


def read_stl10(root: Path, split: str = "train") -> Pairs:
    folder = root / tv.STL10.base_folder

    class Fake(tv.STL10):
        train_list = [[n, md5(folder / n)] for n, _ in tv.STL10.train_list]  # noqa: RUF012
        test_list = [[n, md5(folder / n)] for n, _ in tv.STL10.test_list]  # noqa: RUF012

    for image, label in Fake(str(root), split=split):
        yield np.asarray(image), label


def read_stl10_unlabeled(root: Path) -> Pairs:
    return read_stl10(root, "unlabeled")


def read_huggingface(root: Path) -> Pairs:
    import datasets

    for row in datasets.load_from_disk(str(root))["train"]:
        yield np.asarray(row["image"]), row["label"]


READERS: dict[str, Callable[[Path], Pairs]] = {
    "folder": read_folder,
    "list": read_list,
    "tar": read_tar,
    "idx": read_idx,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "stl10": read_stl10,
    "stl10_unlabeled": read_stl10_unlabeled,
    "huggingface": read_huggingface,
}  # the digits have a test of their own


@pytest.mark.parametrize("kind", READERS)
def test_reads_what_another_reader_reads(kind: str, tmp_path: Path) -> None:
    source = opened(MAKERS[kind](tmp_path))
    theirs = list(READERS[kind](tmp_path))
    assert len(source) == len(theirs) == COUNT
    for i, (pixels, label) in enumerate(theirs):
        sample = source.read(i)
        difference = np.abs(sample.image.pixels().astype(int) - pixels.astype(int))
        assert difference.max() <= (3 if kind == "tar" else 0)  # of JPEG
        assert sample.label == (None if kind == "stl10_unlabeled" else label)


def test_statistics_of_arrays_are_theirs(tmp_path: Path) -> None:
    for kind, side, channels in (("idx", 28, 1), ("cifar10", 32, 3), ("stl10", 96, 3)):
        source = opened(MAKERS[kind](tmp_path / kind))
        values = images(side, channels) / 255
        assert source.mean == pytest.approx(values.mean((0, 1, 2)))
        assert source.std == pytest.approx(values.std((0, 1, 2)))
        gray = opened(MAKERS[kind](tmp_path / f"{kind} gray"), channels=1)
        assert gray.mean == pytest.approx([values.mean()])
        assert gray.std == pytest.approx([values.std()])


def test_channels_that_the_source_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.channels is 4: images of digits are of 1 .* or 3"):
        opened({"source": "digits"}, channels=4)


# --- download


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address under which the files in `tmp_path`/far can be had."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "far"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_download_is_asked_for_and_made_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """From a server here, in place of the one far away."""
    make_cifar10(tmp_path / "far")
    fake = fake_cifar10(tmp_path / "far")
    archive = tmp_path / "far" / tv.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "far" / tv.CIFAR10.base_folder, tv.CIFAR10.base_folder)
    for name in ("train_list", "test_list", "meta"):
        monkeypatch.setattr(tv.CIFAR10, name, getattr(fake, name))
    monkeypatch.setattr(tv.CIFAR10, "url", f"{server}/{archive.name}")
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5(archive))
    (tmp_path / "near").mkdir()
    place = {"source": "cifar10", "root_path": str(tmp_path / "near")}
    with pytest.raises(UserError, match=r"data_batch_1: no such file; set data\.download: true"):
        opened(place)
    source = opened(place, download=True)
    np.testing.assert_array_equal(source.read(7).image.pixels(), images(32)[7])
    archive.unlink()
    opened(place, download=True)  # nothing is missing
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="cifar10: cannot be downloaded"):
        opened({**place, "root_path": str(tmp_path / "new")}, download=True)


# --- what is wrong


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    "content", [b"", b"noise", pickle.dumps({"data": 3}), pickle.dumps({"data": Evil()})]
)
def test_a_bad_cifar_file_is_refused_and_runs_no_code(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = make_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_3: is not a file of CIFAR") as caught:
        opened(place)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_bad_stl10(tmp_path: Path) -> None:
    place = MAKERS["stl10"](tmp_path)
    with pytest.raises(UserError, match=r'stl10_unlabeled has no split "val"'):
        opened({**place, "source": "stl10_unlabeled"}, "val")
    with (tmp_path / "stl10_binary/train_X.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"train_X\.bin: is not a whole file"):
        opened(place)
    (tmp_path / "stl10_binary/train_y.bin").unlink()
    with pytest.raises(UserError, match=r"train_y\.bin: no such file"):
        opened(place)


def test_bad_huggingface(tmp_path: Path) -> None:
    place = MAKERS["huggingface"](tmp_path / "set")
    assert len(opened(place, "val")) == 5  # its split is called test
    with pytest.raises(UserError, match="is no data set saved with save_to_disk"):
        opened({**place, "root_path": str(tmp_path)})


def test_damaged_sources_of_huggingface_are_refused(tmp_path: Path) -> None:
    """Also when cut between two batches of rows, and with a file of odd JSON."""
    import datasets

    values = {"image": [PIL.Image.fromarray(image) for image in images(20)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(values, features=features).save_to_disk(str(tmp_path / "set"))
    place = {"source": "huggingface", "root_path": str(tmp_path / "set")}
    [file] = (tmp_path / "set").glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=rf"{file.name}: has no end, only {COUNT} rows can be read"):
        opened(place)
    file.write_bytes(whole)
    for name in ("state.json", "dataset_info.json"):
        content = (tmp_path / "set" / name).read_bytes()
        for odd in (b"", b"[]", b"null"):
            (tmp_path / "set" / name).write_bytes(odd)
            with pytest.raises(UserError, match="is no data set saved with save_to_disk"):
                opened(place)
        (tmp_path / "set" / name).write_bytes(content)
    assert len(opened(place)) == COUNT


@pytest.mark.parametrize("gz", [True, False])
def test_bad_idx(gz: bool, tmp_path: Path) -> None:
    place = MAKERS["idx"](tmp_path, gz=gz)  # type: ignore[call-arg]
    assert len(opened(place)) == COUNT
    with pytest.raises(UserError, match="no file t10k-images-idx3-ubyte or"):
        opened(place, "val")
    end = ".gz" if gz else ""
    file = tmp_path / f"train-images-idx3-ubyte{end}"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:9], b"", encoded(images(20)[0])):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=rf"train-images-idx3-ubyte{end}: .* fetch it again"):
            opened(place)
    file.write_bytes(whole)
    (tmp_path / f"train-labels-idx1-ubyte{end}").rename(tmp_path / "elsewhere")
    assert opened(place).labels() is None
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels(7)))
    with pytest.raises(UserError, match="has 7 labels for 24 images"):
        opened(place)


def test_idx_sources_that_lost_something_say_what_is_left(tmp_path: Path) -> None:
    """Cut or longer than their header says, plain or packed, with claims beyond any memory."""

    def refusal(end: str, content: bytes) -> str:
        file = tmp_path / f"train-images-idx3-ubyte{end}"
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            opened({"source": "idx", "root_path": str(tmp_path)})
        file.unlink()
        message = str(caught.value)
        assert message.startswith(f"{file}: holds ")
        assert message.endswith("; fetch it again")
        return message.removeprefix(f"{file}: holds ").removesuffix("; fetch it again")

    noise = np.random.default_rng(0).integers(0, 256, (8, 20, 20), dtype=np.uint8)
    whole = idx(noise)
    packed = gzip.compress(whole)
    huge = bytes([0, 0, 8, 3]) + np.array([2**32 - 1] * 3, ">u4").tobytes()
    for end, pack in (("", bytes), (".gz", gzip.compress)):
        assert refusal(end, pack(whole[: 16 + 3 * 400 + 7])) == "3 of 8 images"
        assert refusal(end, pack(whole + bytes(3))) == "over 8 images"
        assert refusal(end, pack(huge + bytes(9))) == f"0 of {2**32 - 1} images"
        for shape in ((0, 20, 20), (8, 0, 20)):
            expected = f"no values, its shape is {shape}"
            assert refusal(end, pack(idx(np.zeros(shape, np.uint8)))) == expected
    damaged = packed[:-8] + bytes(4) + packed[-4:]
    for cut in (packed[:-4], packed[:-20], damaged):
        assert re.match(r"[78] of 8 images, and is damaged \(.*\)", refusal(".gz", cut))
