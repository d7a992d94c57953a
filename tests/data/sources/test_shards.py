import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msn.data import mapped
from msn.data.image import BadImage
from msn.data.sources import Source, open_source
from msn.runtime.errors import UserError
from tests.support.made import add, encoded, images, make_tar

PNG = encoded(images(20)[0])


def shards(root: Path, split: str = "train") -> Source:
    return open_source(source="tar", root_path=str(root), image_folder="", split=split)


def write(path: Path, members: dict[str, bytes], **attributes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            add(shard, name, content, **attributes)
    return path


def names(source: Source) -> list[str]:
    return [source.read(i).name for i in range(len(source))]


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        shards(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_splits(tmp_path: Path) -> None:
    make_tar(tmp_path / "one", "train")
    make_tar(tmp_path / "one", "val")
    assert {name[:9] for name in names(shards(tmp_path / "one"))} == {"set-train"}
    assert {name[:7] for name in names(shards(tmp_path / "one", "val"))} == {"set-val"}
    write(tmp_path / "two/train/a.tar", {"1.png": PNG})
    write(tmp_path / "two/val/b.tar", {"1.png": PNG})
    assert names(shards(tmp_path / "two", "val")) == ["b.tar/1.png"]
    write(tmp_path / "three/trains.tar", {"1.png": PNG})  # not the word
    assert names(shards(tmp_path / "three", "val")) == ["trains.tar/1.png"]
    make_tar(tmp_path / "four", "train")
    with pytest.raises(UserError, match="no tar files for the split val"):
        shards(tmp_path / "four", "val")


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    members = {
        "1.PNG": PNG,
        "1.json": b"{}",
        "._1.png": b"metadata",
        "2.txt": b"text",
        "2.png": PNG,
    }
    write(tmp_path / "a.tar", members)
    source = shards(tmp_path)
    assert names(source) == ["a.tar/1.PNG", "a.tar/2.png"]
    assert source.labels() is None


def test_labels_go_by_the_name_up_to_the_first_dot(tmp_path: Path) -> None:
    members = {"x.y/1.left.png": PNG, "x.y/1.cls": b"7\n", "x.y/1.right.png": PNG}
    write(tmp_path / "a.tar", members | {"1.png": PNG, "1.cls": b"3"})
    labels = shards(tmp_path).labels()
    assert labels is not None
    assert labels.tolist() == [7, 7, 3]


def test_labels_from_json(tmp_path: Path) -> None:
    members = {
        **{"1.png": PNG, "1.json": b'{"label": 7, "caption": "a cat"}'},
        **{"2.png": PNG, "2.json": b'{"cls": 3}'},
        **{"3.png": PNG, "3.json": b'{"label": 1}', "3.cls": b"5"},
    }
    write(tmp_path / "a.tar", members)
    labels = shards(tmp_path).labels()
    assert labels is not None
    assert labels.tolist() == [7, 3, 5]
    for content in (b'{"caption": "a cat"}', b"[1, 2]", b"{", b'{"label": null}', b"[" * 100_000):
        write(tmp_path / "b/a.tar", {"1.png": PNG, "1.json": content})
        assert shards(tmp_path / "b").labels() is None
    for content in (b'{"label": "cat"}', b'{"label": 1.5}', b'{"label": true}'):
        write(tmp_path / "c/a.tar", {"1.png": PNG, "1.json": content})
        assert "1.json has the label" in refused(tmp_path / "c")


def test_half_labelled_and_badly_labelled_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": PNG, "1.cls": b"3", "2.png": PNG})
    assert "1 of 2 images in the tar files have no label" in refused(tmp_path)
    write(tmp_path / "a.tar", {"1.png": PNG, "1.cls": b"cat"})
    assert "a.tar: 1.cls holds b'cat'; a label is a whole number" in refused(tmp_path)


@pytest.mark.parametrize("member", ["../out.png", "/tmp/out.png", "a/../../out.png", "..", "a/.."])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, member: str) -> None:
    write(tmp_path / "in/a.tar", {"1.png": PNG, member: PNG})
    message = refused(tmp_path / "in")
    assert f"a.tar: its member {member!r} leads out of it" in message
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for i, kind in enumerate(kinds):
            add(shard, f"{i}.png", type=kind, linkname=str(tmp_path / "secret.png"))
        add(shard, "folder.png", type=tarfile.DIRTYPE)
        add(shard, "good.png", PNG)
    assert names(shards(tmp_path)) == ["a.tar/good.png"]


def test_long_names_and_pax_headers(tmp_path: Path) -> None:
    long = "a" * 90 + "/" + "ü" * 60 + ".png"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / f"{format}.tar", "w", format=format) as shard:
            add(shard, long, PNG)
            add(shard, "after.png", encoded(images(20)[1]))
    source = shards(tmp_path)
    assert names(source) == [f"{f}.tar/{name}" for f in (1, 2) for name in (long, "after.png")]
    for i in range(4):
        np.testing.assert_array_equal(source.read(i).image.pixels(), images(20)[i % 2])


def test_shards_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as shard:
        add(shard, "1.png", PNG)
    assert "a.tar: cannot be read as an uncompressed tar file" in refused(tmp_path)
    whole = write(tmp_path / "a.tar", {"1.png": PNG, "2.png": PNG}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 512 + 1024 + 512 + 100])
    assert "a.tar: cannot be read" in refused(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    assert "a.tar" in refused(tmp_path)
    write(tmp_path / "a.tar", {"1.txt": b"text"})
    assert "no images in the tar files" in refused(tmp_path)


def test_a_shard_that_shrank_or_went_is_a_bad_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"1.png": PNG, "2.png": PNG})
    source = shards(tmp_path)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(BadImage, match=r"a\.tar/1\.png: truncated shard"):
        source.read(0)
    path.unlink()
    with pytest.raises(BadImage, match=r"a\.tar/2\.png: No such file"):
        source.read(1)


def test_index_follows_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SETTLED_NS", 0)
    write(tmp_path / "a.tar", {"1.png": PNG})
    assert names(shards(tmp_path)) == ["a.tar/1.png"]
    write(tmp_path / "a.tar", {"2.png": PNG})
    write(tmp_path / "b.tar", {"3.png": PNG})
    assert names(shards(tmp_path)) == ["a.tar/2.png", "b.tar/3.png"]
    os.unlink(tmp_path / "a.tar")
    assert names(shards(tmp_path)) == ["b.tar/3.png"]
