import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from msn.data import mapped
from msn.data.image import BadImage
from msn.data.sources import Source
from msn.data.sources.folder import Folder
from msn.runtime.errors import UserError
from tests.support.sources import opened


def save(path: Path, color: tuple[int, int, int] = (200, 100, 50), size: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(path)
    return path


def folder(
    root: Path, image_folder: str = "", split: str = "train", channels: int | None = None
) -> Source:
    place = {"root_path": str(root), "image_folder": image_folder}
    return opened(place, split, channels=channels)


def names(source: Source) -> list[str]:
    return [source.read(i).name for i in range(len(source))]


# --- folder: what is found, in which order, with which label


def test_order_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    for name in [
        "b/2.png", "b/10.png", "b/deep/er/0.png", "b/deep-er/1.png", "a b/x.JPEG", "a b/y.Webp",
        "C/z.bmp", "C/a.tif", "C/b.tiff", "C/c.PPM", "C/d.jpg", "ü/ñ.png",
        *(f"b/{letter}/{letter}.png" for letter in "qwertyuiop"),
    ]:  # fmt: skip
        save(tmp_path / "images/train" / name)
    (tmp_path / "images/train/b/notes.txt").write_text("not an image")
    ours = folder(tmp_path, "images")
    theirs = ImageFolder(str(tmp_path / "images/train"))
    root = theirs.root
    assert names(ours) == [os.path.relpath(path, root) for path, _ in theirs.samples]
    labels = ours.labels()
    assert labels is not None
    assert labels.dtype == np.int64
    assert labels.tolist() == theirs.targets
    assert [ours.read(i).label for i in range(len(ours))] == theirs.targets


def test_split_is_taken_where_there_is_one(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png")
    save(tmp_path / "val/a/2.png")
    assert names(folder(tmp_path)) == ["a/1.png"]
    assert names(folder(tmp_path, split="val")) == ["a/2.png"]


def test_folder_without_splits_is_its_own_split(tmp_path: Path) -> None:
    save(tmp_path / "x/1.png")
    save(tmp_path / "y/2.png")
    assert names(folder(tmp_path)) == names(folder(tmp_path, split="val")) == ["x/1.png", "y/2.png"]


def test_missing_split_beside_another_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png")
    with pytest.raises(UserError, match='"train" but none called "val"'):
        folder(tmp_path, split="val")


def test_flat_folder_is_unlabeled(tmp_path: Path) -> None:
    for name in ["2.png", "10.png", "1.png"]:
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = folder(tmp_path)
    assert names(source) == ["1.png", "10.png", "2.png"]
    assert source.labels() is None
    assert source.read(0).label is None


def test_empty_class_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save(tmp_path / "b/1.png")
    assert folder(tmp_path).read(0).label == 1


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ["a/1.png", "a/._1.png", ".cache/2.png", "a/.thumbs/3.png"]:
        save(tmp_path / name)
    source = folder(tmp_path)
    assert names(source) == ["a/1.png"]
    assert source.read(0).label == 0


def test_index_follows_python(tmp_path: Path) -> None:
    for name in "123":
        save(tmp_path / f"{name}.png")
    source = folder(tmp_path)
    assert [source.read(i).name for i in (-3, -2, -1)] == ["1.png", "2.png", "3.png"]
    with pytest.raises(IndexError):
        source.read(3)


def test_names_are_kept_compactly(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i:04}.png").touch()
    source = Folder(tmp_path)
    arrays = source._index
    per_image = sum(array.nbytes for name, array in arrays.items() if name[0] != "_") / 300
    assert per_image < len("0000.png") + 8 + 1  # the name, its end, and what is there once


# --- folder: pixels


def test_color_and_gray_pixels(tmp_path: Path) -> None:
    save(tmp_path / "ü.png", (200, 100, 50))
    color, gray = folder(tmp_path), folder(tmp_path, channels=1)
    image = color.read(0).image.pixels()
    assert image.dtype == np.uint8
    assert image.shape == (6, 6, 3)
    assert (image == (200, 100, 50)).all()
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert gray.read(0).image.shape == (6, 6, 1)
    assert np.abs(gray.read(0).image.pixels() - luma).max() <= 1
    assert (color.channels, gray.channels) == (3, 1)
    assert (len(color.mean), len(color.std), len(gray.mean), len(gray.std)) == (3, 3, 1, 1)
    assert gray.mean[0] == pytest.approx(np.mean(color.mean))


def test_jpeg_is_near_pil(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), (100, 80))
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=90)
    ours = folder(tmp_path).read(0).image.pixels().astype(int)
    theirs = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).astype(int)
    assert np.abs(ours - theirs).max() <= 4  # decoders may round their transforms differently


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1"])
def test_other_modes_decode_as_pil_does(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8)))
    image.save(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    np.testing.assert_array_equal(folder(tmp_path).read(0).image.pixels(), expected)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 48).astype(np.uint16).reshape(4, 4, 3)
    cv2.imwrite(str(tmp_path / "a.png"), ramp[..., ::-1])
    image = folder(tmp_path).read(0).image.pixels()
    assert image.dtype == np.uint8
    assert np.abs(image - ramp / 257).max() <= 1


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), (10, 200, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert folder(tmp_path).read(0).image.shape == (4, 8, 3)


# --- folder: what is wrong is said in one line that names it


def refused(root: Path | None, image_folder: str = "") -> str:
    with pytest.raises(UserError) as caught:
        opened({"root_path": root and str(root), "image_folder": image_folder})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bad_folders(tmp_path: Path) -> None:
    file = save(tmp_path / "file.png")
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "text/train/a").mkdir(parents=True)
    (tmp_path / "text/train/a/readme.txt").touch()
    assert "data.root_path is not set" in refused(None)
    assert f"data.root_path: no such folder: {tmp_path}/none" in refused(tmp_path / "none")
    assert f"data.image_folder: no such folder: {tmp_path}/no" in refused(tmp_path, "no")
    assert f"{file} is a file, not a folder" in refused(file)
    assert f"{file} is a file, not a folder" in refused(tmp_path, "file.png")
    for name in ("empty", "text"):
        message = refused(tmp_path, name)
        assert f"{tmp_path}/{name}/train: no images" in message
        assert "data.image_folder" in message


def test_images_beside_classes_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "stray.png")
    save(tmp_path / "a/1.png")
    assert "stray.png" in refused(tmp_path)


def test_vanished_image_names_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "gone.png")
    source = folder(tmp_path)
    path.unlink()
    with pytest.raises(BadImage) as caught:
        source.read(0)
    assert caught.value.name == str(path)
    assert caught.value.reason == "No such file or directory"


# --- folder: the index


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes, and a cache of its own that trusts the clock."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "SETTLED_NS", 0)
    root = tmp_path / "images"
    for name in ("a/1.png", "b/2.png", "b/deep/er/3.png"):
        save(root / name)
    time.sleep(0.02)  # more than a tick of the file system's clock
    return root


def kept(root: Path) -> tuple[int, int]:
    """The file of the index: another one if it was made again."""
    [path] = (root.parent / "cache/msn").iterdir()
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_index_is_kept(settled: Path, tmp_path: Path) -> None:
    first = names(folder(settled))
    before = kept(settled)
    (settled / "b/2.png").write_bytes(b"other content, same name")
    assert names(folder(settled)) == first == ["a/1.png", "b/2.png", "b/deep/er/3.png"]
    assert kept(settled) == before


CHANGES = {
    "add": lambda root: save(root / "a/9.png"),
    "add deep down": lambda root: save(root / "b/deep/er/9.png"),
    "add a class": lambda root: save(root / "c/9.png"),
    "remove": lambda root: (root / "b/2.png").unlink(),
    "rename": lambda root: (root / "a/1.png").rename(root / "a/9.png"),
    "move": lambda root: (root / "a/1.png").rename(root / "b/9.png"),
    "rename a class": lambda root: (root / "b").rename(root / "c"),
    "swap the root": lambda root: [root.rename(root.parent / "old"), save(root / "x/1.png")],
    "add to a folder that had none": lambda root: save(root / "b/deep/9.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_index_follows_the_tree(settled: Path, change: str) -> None:
    before = names(folder(settled))
    CHANGES[change](settled)
    after = names(folder(settled))
    assert after != before
    on_disk = (path for path in settled.rglob("*.png"))
    assert sorted(after) == sorted(str(path.relative_to(settled)) for path in on_disk)


def test_a_change_while_scanning_is_seen_the_next_time(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "SETTLED_NS", 2 * 10**9)
    save(settled / "a/8.png")
    assert len(folder(settled)) == 4
    before = kept(settled)
    folder(settled)
    assert kept(settled) != before  # changed so lately, it is not trusted


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "a")
    assert names(folder(tmp_path)) == ["a/1.png", "other/1.png"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(save(tmp_path / "x.png").read_bytes())
    source = folder(tmp_path)
    assert names(source) == [name, "x.png"]
    assert source.read(0).image.shape == (6, 6, 3)


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"set/{i}/{i}.png")
    code = f"from msn.data.sources.folder import Folder; Folder({str(tmp_path / 'set')!r})"
    command = [sys.executable, "-c", code]
    quiet = subprocess.run(command, capture_output=True, check=True)
    assert quiet.stdout == quiet.stderr == b""
    ours, theirs = os.openpty()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "xterm"}
    subprocess.run(command, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    assert b"images" in os.read(ours, 1 << 16)
    os.close(ours)


def test_links_that_lead_nowhere_are_bad_images(tmp_path: Path) -> None:
    """Each alone, be it to itself, through a file, too far, or to what is gone."""
    save(tmp_path / "a/good.png")
    (tmp_path / "a/text").write_text("")
    for name, target in {
        "itself": "itself.png", "through": "text/x.png", "far": "x" * 300, "gone": "gone",
    }.items():  # fmt: skip
        (tmp_path / f"a/{name}.png").symlink_to(target)
    source = folder(tmp_path)
    reasons = {}
    for i in range(len(source)):
        try:
            source.read(i).image.pixels()
        except BadImage as bad:
            reasons[Path(bad.name).stem] = bad.reason
    assert reasons == {
        "itself": "Too many levels of symbolic links",
        "through": "Not a directory",
        "far": "File name too long",
        "gone": "No such file or directory",
    }
    for target in ("class", "gone"):
        (tmp_path / "class").symlink_to(target)
        with pytest.raises(UserError, match=r"class: links to nothing, and may have been a class"):
            folder(tmp_path)
        (tmp_path / "class").unlink()


def test_a_huge_file_is_a_bad_image(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(200 * 2**30)
    with pytest.raises(BadImage, match=r"huge\.png: 200\.0 GiB, limit 1"):
        folder(tmp_path).read(0)
