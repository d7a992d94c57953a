import io
import multiprocessing
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from msn.data.image import BadImage
from msn.data.sources.base import read_file
from msn.data.staging import stage
from msn.runtime.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree of files, one of them behind a link."""
    folder = tmp_path / "data"
    for name in ("train/cat/a.jpg", "train/cat/b.jpg", "val/dog/deep/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "train/cat/link.jpg").symlink_to(folder / "val/dog/deep/c.jpg")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pack(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def leftovers(scratch: Path) -> list[Path]:
    return [path for path in scratch.glob("*/*") if path.suffix != ".lock"]


def test_a_folder_is_copied_once(source: Path, tmp_path: Path, said: list[str]) -> None:
    copy = stage(source, tmp_path / "scratch")
    assert tree(copy) == tree(source)
    assert len(tree(copy)) == 4
    assert stage(source, tmp_path / "scratch") == copy
    assert len(said) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda source: (source / "train/cat/a.jpg").write_text("other, longer"),
        lambda source: os.utime(source / "train/cat/a.jpg", (1, 1)),
        lambda source: (source / "train/cat/new.jpg").write_text("new"),
        lambda source: (source / "train/cat/a.jpg").unlink(),
        lambda source: (source / "train/cat/a.jpg").rename(source / "train/z.jpg"),
    ],
)
def test_a_changed_source_is_copied_again(
    source: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    before = stage(source, tmp_path / "scratch")
    change(source)
    after = stage(source, tmp_path / "scratch")
    assert before != after
    assert tree(after) == tree(source)


def test_an_interrupted_copy_is_repeated(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it ended with an error or, as after `kill -9`, left its part behind."""
    copy2 = shutil.copy2

    def fails(original: Path, target: Path) -> None:
        if original.name == "c.jpg":
            raise OSError(5, "Input/output error", str(original))
        copy2(original, target)

    monkeypatch.setattr(shutil, "copy2", fails)
    with pytest.raises(UserError, match=r"c\.jpg: Input/output error, while copying"):
        stage(source, tmp_path / "scratch")
    assert leftovers(tmp_path / "scratch") == []
    monkeypatch.setattr(shutil, "copy2", copy2)
    expected = stage(source, tmp_path / "scratch")
    expected.rename(expected.with_name(f"{expected.name}.partial"))
    (expected.with_name(f"{expected.name}.partial") / "stale.jpg").write_text("stale")
    assert tree(stage(source, tmp_path / "scratch")) == tree(source)
    assert leftovers(tmp_path / "scratch") == [expected]


def _slow_copy(original: Path, target: Path) -> None:
    time.sleep(0.05)
    shutil.copyfile(original, target)


def _stage_slowly(source: Path, scratch: Path, log: Path) -> None:
    shutil.copy2 = _slow_copy  # type: ignore[assignment]
    copy = stage(source, scratch)
    with log.open("a") as file:
        file.write(f"{len(tree(copy))}\n")


def test_of_many_processes_one_copies_and_all_see_it_whole(source: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (source, tmp_path / "scratch", tmp_path / "log")
    processes = [context.Process(target=_stage_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text().split() == ["4"] * 4
    assert len(leftovers(tmp_path / "scratch")) == 1


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_file_is_unpacked(tmp_path: Path, mode: str) -> None:
    archive = pack(tmp_path / "a.tar", ("train/a.jpg", b"a"), ("train/b.jpg", b"b"), mode=mode)
    copy = stage(archive, tmp_path / "scratch")
    assert tree(copy) == {"train/a.jpg": b"a", "train/b.jpg": b"b"}


def test_a_tar_file_that_tries_to_escape_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", ("train/a.jpg", b"a"), ("../../escaped.jpg", b"b"))
    with pytest.raises(UserError, match=r"a\.tar: is not safe to unpack .*escaped\.jpg") as error:
        stage(archive, tmp_path / "scratch")
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.rglob("escaped.jpg")) == []
    assert leftovers(tmp_path / "scratch") == []


@pytest.mark.parametrize("length", [0, 500, 1000, 2560, 3000, 4000])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_file_is_refused(tmp_path: Path, mode: str, length: int) -> None:
    """At every kind of place: in a header, in a file, between two files."""
    content = bytes(np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8))
    archive = pack(tmp_path / "a.tar", ("a.jpg", content), ("b.jpg", content[::-1]), mode=mode)
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a\.tar: is not a whole tar file") as error:
        stage(archive, tmp_path / "scratch")
    assert len(str(error.value).splitlines()) == 1
    assert leftovers(tmp_path / "scratch") == []


def test_a_tar_file_damaged_inside_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", ("a.jpg", b"a" * 2000), ("b.jpg", b"b" * 2000))
    content = bytearray(archive.read_bytes())
    content[2560 + 150] ^= 255  # the checksum of the second header
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: is not a whole tar file"):
        stage(archive, tmp_path / "scratch")


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"a\.tar: is not a whole tar file"):
        stage(archive, tmp_path / "scratch")
    assert leftovers(tmp_path / "scratch") == []


def test_what_is_not_there_or_does_not_fit_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nowhere: No such file or directory, while copying"):
        stage(tmp_path / "nowhere", tmp_path / "scratch")
    with pytest.raises(UserError, match="while copying"):
        stage(source, tmp_path / "data/train/cat/a.jpg")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"takes 0\.0 GB, .* has 0\.0 GB free; make room"):
        stage(source, tmp_path / "scratch")


def test_a_folder_of_someone_else_is_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to someone else"):
        stage(source, tmp_path / "scratch")


def test_a_copy_loses_no_source_and_ends(source: Path, tmp_path: Path) -> None:
    """Links in a circle end; what cannot be copied is as bad an image there; empty classes stay."""
    for name in ("one", "two"):
        (source / f"train/cat/{name}").symlink_to(source / "train")
    (source / "train/cat/gone.jpg").symlink_to("nowhere")
    (source / "train/cat/itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(source / "train/cat/pipe.jpg")
    with (source / "train/cat/huge.jpg").open("wb") as file:
        file.truncate(200 * 2**30)
    (source / "train/empty").mkdir()
    copy = stage(source, tmp_path / "scratch")
    for name in ("train/cat/a.jpg", "train/cat/b.jpg", "val/dog/deep/c.jpg"):
        assert (copy / name).read_text() == name
    assert (copy / "train/cat/link.jpg").read_text() == "val/dog/deep/c.jpg"
    assert sorted(os.listdir(copy / "train/cat")) == [
        *("a.jpg", "b.jpg", "gone.jpg", "huge.jpg", "itself.jpg", "link.jpg", "pipe.jpg")
    ]
    assert sorted(os.listdir(copy / "train")) == ["cat", "empty"]
    reasons = []
    for name in ("gone", "itself", "pipe", "huge"):
        with pytest.raises(BadImage) as caught:
            read_file(str(copy / f"train/cat/{name}.jpg"))
        reasons.append(caught.value.reason)
    assert reasons == [
        "No such file or directory",
        "Too many levels of symbolic links",
        "not a regular file",
        "200.0 GiB, limit 1",
    ]
    assert stage(source, tmp_path / "scratch") == copy


def test_a_tar_file_with_more_behind_its_end_or_false_sizes_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", ("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600))
    whole = archive.read_bytes()
    for damaged in (whole + whole, whole[:1536] + bytes(1536) + whole[3072:] + whole):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.tar: is not a whole tar file \(zeros at byte"):
            stage(archive, tmp_path / "scratch")
    for claim in ("-1024", "-5", "9" * 30, "9" * 5000):
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            for headers in ({}, {"size": claim}, {}):
                info = tarfile.TarInfo("a.jpg")
                info.size, info.pax_headers = 600, dict(headers)
                tar.addfile(info, io.BytesIO(b"a" * 600))
        with pytest.raises(UserError, match=r"a\.tar: is not a whole tar file"):
            stage(archive, tmp_path / "scratch")
    assert leftovers(tmp_path / "scratch") == []
    content = pack(archive, ("a.jpg", b"a" * 9000), mode="w:xz").read_bytes()
    archive.write_bytes(content[:60] + b"damage" + content[66:])
    with pytest.raises(UserError, match=r"a\.tar: "):
        stage(archive, tmp_path / "scratch")
