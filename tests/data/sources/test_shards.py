import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msn.data import mapped
from msn.data.image import BadImage
from msn.data.sources import Source
from msn.runtime.errors import UserError
from tests.support.made import add, encoded, images, make_tar
from tests.support.sources import opened

PNG = encoded(images(20)[0])


def shards(root: Path, split: str = "train", image_key: str | None = None) -> Source:
    return opened({"source": "tar", "root_path": str(root)}, split, image_key=image_key)


def write(path: Path, members: dict[str, bytes], **attributes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            add(shard, name, content, **attributes)
    return path


def names(source: Source) -> list[str]:
    return [source.read(i).name for i in range(len(source))]


def refused(root: Path, image_key: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        shards(root, image_key=image_key)
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
        "LICENSE": b"without an ending",
        "2.png": PNG,
    }
    write(tmp_path / "a.tar", members)
    source = shards(tmp_path)
    assert names(source) == ["a.tar/1.PNG", "a.tar/2.png"]
    assert source.labels() is None


def test_a_key_of_several_members_is_one_image(tmp_path: Path) -> None:
    """Named by `data.image_key`, else the first of the usual ones; its mask is left alone."""
    members = {
        "x.y/1.seg.png": PNG, "x.y/1.cls": b"7\n", "x.y/1.jpg": PNG, "x.y/1.txt": b"text",
        "1.png": PNG, "1.JPEG": PNG, "1.npy": b"features", "1.cls": b"3", "1.seg.png": PNG,
    }  # fmt: skip
    write(tmp_path / "a.tar", members)
    source = shards(tmp_path)
    assert names(source) == ["a.tar/x.y/1.jpg", "a.tar/1.JPEG"]
    assert source.labels().tolist() == [7, 3]  # type: ignore[union-attr]
    masks = shards(tmp_path, image_key="seg.png")
    assert names(masks) == ["a.tar/x.y/1.seg.png", "a.tar/1.seg.png"]
    assert masks.labels().tolist() == [7, 3]  # type: ignore[union-attr]
    assert len(shards(tmp_path)) == 2  # each has an index of its own


def test_a_key_of_which_the_image_is_not_known_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.jpg": PNG, "2.left.png": PNG, "2.right.png": PNG, "2.npy": b""})
    message = refused(tmp_path)
    assert "1 of 2 samples in the tar files have no image jpg, jpeg, png, webp, ..., but" in message
    assert "the first 2.left.png; set data.image_key" in message
    assert (
        "1 of 2 samples in the tar files have no image left.png, but others, the first 1.jpg"
        in (refused(tmp_path, image_key="left.png"))
    )
    write(tmp_path / "a.tar", {"1.jpg": PNG})
    with tarfile.open(tmp_path / "a.tar", "a") as shard:
        add(shard, "1.jpg", PNG)
    assert "a.tar: holds 1.jpg twice; pack it again with one of them" in refused(tmp_path)


def test_half_labeled_and_badly_labeled_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": PNG, "1.cls": b"3", "2.png": PNG})
    assert "1 of 2 images in the tar files have no label" in refused(tmp_path)
    for content in (b"", b" \n", b"\xff", b"cat\ndog", b"x" * 256):
        write(tmp_path / "a.tar", {"1.png": PNG, "1.cls": content})
        assert f"a.tar: 1.cls holds {content[:40]!r}; a label is a whole nu" in refused(tmp_path)


@pytest.mark.parametrize("member", ["../out.png", "/tmp/out.png", "a/../../out.png", "..", "a/.."])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, member: str) -> None:
    write(tmp_path / "in/a.tar", {"1.png": PNG, member: PNG})
    message = refused(tmp_path / "in")
    assert f"a.tar: its member {member!r} leads out of it" in message
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_links_and_devices_are_bad_images(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for i, kind in enumerate(kinds):
            add(shard, f"{i}.png", type=kind, linkname=str(tmp_path / "secret.png"))
            add(shard, f"{i}.cls", type=kind, linkname=str(tmp_path / "secret.png"))
        add(shard, "folder.png", type=tarfile.DIRTYPE)
        add(shard, "good.png", PNG)
    source = shards(tmp_path)
    assert [source.name(i) for i in range(6)] == [
        f"a.tar/{name}.png" for name in ("0", "1", "2", "3", "4", "good")
    ]
    assert source.labels() is None
    for i in range(5):
        with pytest.raises(BadImage, match=r"\d\.png: a link or device; pack the shard with --de"):
            source.read(i)
    np.testing.assert_array_equal(source.read(5).image.pixels(), images(20)[0])


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


# --- damage: nothing is lost without a word


def eight(path: Path) -> bytearray:
    return bytearray(write(path, {f"{i}.png": PNG for i in range(8)}).read_bytes())


HELD = 512 + -(-len(PNG) // 512) * 512  # that a member takes, with its header
DAMAGE: dict[str, Any] = {
    "cut at a member": lambda whole: whole[: 4 * HELD],
    "cut in a member": lambda whole: whole[: 4 * HELD - 700],
    "cut in a header": lambda whole: whole[: 4 * HELD + 200],
    "without its end": lambda whole: whole[: 8 * HELD],
    "a wrong sum": lambda whole: whole[: 4 * HELD] + b"x" + whole[4 * HELD + 1 :],
    "zeroed blocks": lambda whole: whole[: 4 * HELD] + bytes(HELD) + whole[5 * HELD :],
    "a zeroed header": lambda whole: whole[: 4 * HELD] + bytes(512) + whole[4 * HELD + 512 :],
    "more behind the end": lambda whole: whole + whole,
}


def test_odd_labels_are_no_other_numbers(tmp_path: Path) -> None:
    """Python reads 1_0 as 10, and others of its digits too; negative means that there is none."""
    for odd in ("1_0", "\u0661"):
        write(
            tmp_path / "a.tar", {"1.png": PNG, "1.cls": b"1", "2.png": PNG, "2.cls": odd.encode()}
        )
        assert shards(tmp_path).classes() == ["1", odd]
    write(tmp_path / "a.tar", {"1.png": PNG, "1.cls": b"1", "2.png": PNG, "2.cls": b"-5"})
    source = shards(tmp_path)
    assert source.labels().tolist() == [1, -1]  # type: ignore[union-attr]
    assert source.read(1).label is None
    for digits in (20, 41, 200):
        write(tmp_path / "a.tar", {"1.png": PNG, "1.cls": b"1" + b"0" * (digits - 1)})
        assert re.search(r"1\.png has the label 10+; a label is", refused(tmp_path))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_say_how_much_could_be_read(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(DAMAGE[damage](eight(path)))
    message = refused(tmp_path)
    assert message.startswith(f"{path}: cannot be read as an uncompressed tar file (")
    readable = 8 if damage in ("without its end", "more behind the end") else 4
    if damage == "cut in a member":
        readable = 3
    assert f"; samples before that: {readable}); fetch or pack it again" in message


def outcome(root: Path) -> tuple[str, list[str]]:
    """What is wrong, or else the names of the images."""
    try:
        return "", names(shards(root))
    except (UserError, BadImage) as error:
        return str(error), []


def test_sizes_that_headers_claim_are_not_believed(tmp_path: Path) -> None:
    keys = ("size", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.map")
    refusals = 0
    for key in keys:
        for claim in ("-5", "-1024", "9" * 30, "9" * 5000, str(2**62), "x", "1,2,3"):
            with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as shard:
                add(shard, "1.png", PNG)
                headers = {key: claim}
                if key == "GNU.sparse.realsize":
                    headers |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
                add(shard, "2.png", PNG, pax_headers=headers)
                add(shard, "3.png", PNG)
            problem, found = outcome(tmp_path)
            if problem:  # of the shard, or of the sparse member alone
                assert re.search(r"a\.tar: cannot be read as|2\.png: a sparse member", problem)
                refusals += "cannot be read as" in problem
            else:
                assert found == [f"a.tar/{i}.png" for i in (1, 2, 3)], (key, claim)
    assert refusals >= 12
    content = eight(tmp_path / "a.tar")
    content[2 * HELD + 124 : 2 * HELD + 136] = b"\xff" * 11 + b"\x00"  # -256, of GNU's sizes
    header = content[2 * HELD : 2 * HELD + 512]
    header[148:156] = b" " * 8
    content[2 * HELD + 148 : 2 * HELD + 156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(content)
    assert "samples before that: 2" in refused(tmp_path)


def test_a_sparse_member_is_one_bad_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        add(shard, "1.png", PNG)
        sparse = {"GNU.sparse.size": "4000", "GNU.sparse.map": f"0,{len(PNG)}"}
        add(shard, "2.png", PNG, pax_headers=sparse)
        add(shard, "3.png", PNG)
    source = shards(tmp_path)
    assert [source.name(i) for i in range(3)] == [f"a.tar/{i}.png" for i in (1, 2, 3)]
    with pytest.raises(BadImage, match=r"2\.png: a sparse member; pack the shard without"):
        source.read(1)
    np.testing.assert_array_equal(source.read(2).image.pixels(), images(20)[0])


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to(tmp_path / "nowhere")
    assert "a.tar: cannot be read as an uncompressed tar file (" in refused(tmp_path)
    (tmp_path / "a.tar").unlink()
    os.mkfifo(tmp_path / "a.tar")
    assert "a.tar: cannot be read as an uncompressed tar file (not a regular file;" in refused(
        tmp_path
    )


def test_a_link_may_state_a_size(tmp_path: Path) -> None:
    """As of what it links to, as some programs write it; nothing of it follows."""
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        add(shard, "1.png", PNG)
        link = tarfile.TarInfo("notes")
        link.size, link.type, link.linkname = 5000, tarfile.LNKTYPE, "1.png"
        shard.addfile(link)
        add(shard, "2.png", PNG)
    assert names(shards(tmp_path)) == ["a.tar/1.png", "a.tar/2.png"]
