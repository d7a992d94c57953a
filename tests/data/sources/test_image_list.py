from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msn.data.image import BadImage
from msn.data.sources import Source
from msn.runtime.errors import UserError
from tests.support.made import encoded, images
from tests.support.sources import opened


def listed(content: str | bytes, folder: Path, name: str = "list.txt", **more: Any) -> Source:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return opened({"source": "list", "image_list": str(file)}, **more)


def entries(source: Source) -> list[tuple[str, int | None]]:
    found = source.labels()
    labels = [None] * len(source) if found is None else found.tolist()
    return [(source.name(i), labels[i]) for i in range(len(source))]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.png\nb/c.JPEG\n", [("a.png", None), ("b/c.JPEG", None)]),
        ("a.png\r\n\r\n  b.png  \n\n", [("a.png", None), ("b.png", None)]),
        ("\ufeffa.png 3\nb.png\t-1", [("a.png", 3), ("b.png", -1)]),
        ("my photo 1.png\nmy photo 2.png", [("my photo 1.png", None), ("my photo 2.png", None)]),
        ("my photo.png 10\nb.png 9", [("my photo.png", 10), ("b.png", 9)]),
        ("a.png\tred fox\nb.png\tcat\nc.png\tcat", [("a.png", 1), ("b.png", 0), ("c.png", 0)]),
        ("ü.png", [("ü.png", None)]),
    ],
)
def test_text(tmp_path: Path, content: str, expected: list[tuple[str, int | None]]) -> None:
    assert entries(listed(content, tmp_path)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.png\nb.png\n", [("a.png", None), ("b.png", None)]),
        ('a.png,0\n"b, c.png",5\n\n', [("a.png", 0), ("b, c.png", 5)]),
        ("label,split,path\ncat,x,a.png\nant,y,b.png\n", [("a.png", 1), ("b.png", 0)]),
        ("id,path\n7,a.png\n", [("a.png", None)]),
        ("path , label\r\na.png , 2\r\n", [("a.png", 2)]),
        ("filename,label\na.png,1\n", [("a.png", 1)]),
        ("Path,Label\na.png,cat\n", [("a.png", 0)]),
        ("\ufeffpath,class\na.png,dog\nb.png,cat\n", [("a.png", 1), ("b.png", 0)]),
        ("Class,Image\n3,a\n", [("a", 3)]),
        ("without_ending_1,2\n", [("without_ending_1", 2)]),
    ],
)
def test_csv(tmp_path: Path, content: str, expected: list[tuple[str, int | None]]) -> None:
    assert entries(listed(content, tmp_path, "list.csv")) == expected


NAME = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).map(lambda n: f"{n}.png")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(NAME, st.integers(0, 2**63 - 1)), min_size=1))
def test_every_name_comes_back(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    content = "".join(f"{name}\t{label}\n" for name, label in rows)
    assert entries(listed(content, tmp_path)) == rows


def test_paths_start_from_the_root_or_else_from_the_list(tmp_path: Path) -> None:
    for folder, image in zip(("here", "there/sub"), images(20), strict=False):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(encoded(image))
    lists = tmp_path / "here"
    assert (listed("a.png", lists).read(0).image.pixels() == images(20)[0]).all()
    there = {"root_path": str(tmp_path / "there"), "image_folder": "sub"}
    assert (listed("a.png", lists, **there).read(0).image.pixels() == images(20)[1]).all()
    absolute = f"{tmp_path}/there/sub/a.png"
    assert (listed(absolute, lists).read(0).image.pixels() == images(20)[1]).all()


def test_a_listed_file_may_be_missing_or_none(tmp_path: Path) -> None:
    source = listed("gone.png\n/dev/zero\nnul\0.png\n", tmp_path)
    with pytest.raises(BadImage, match=r"gone\.png: No such file or directory"):
        source.read(0)
    with pytest.raises(BadImage, match="/dev/zero: not a regular file"):
        source.read(1)
    with pytest.raises(BadImage, match="embedded null byte"):
        source.read(2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "lists no image"),
        ("\n\n", "lists no image"),
        ("a.png 1\nb.png\nc.png 2", r"1 of 3 paths have no label, the first is b\.png"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf"list\.txt: {problem}"):
        listed(content, tmp_path)


def test_a_row_of_unknown_headings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'photo,species' names no image and no column of paths"):
        listed("photo,species\na.png,cat\n", tmp_path, "list.csv")


def test_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_list is not set"):
        opened({"source": "list"}, "val")
    with pytest.raises(UserError, match=r"data\.image_list: no such file: .*/none_val\.txt"):
        opened({"source": "list", "image_list": f"{tmp_path}/none_{{split}}.txt"}, "val")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('a.png,0\n"b.png,1\nc.png,2\n', 2),  # swallows the rest
        ('path,label\na.png,0\n"b.png,1\nc.png,"2\nd.png,3\n', 3),  # swallows a line
        ('a.png,"0\nb.png,1"\nc.png,2\n', 1),
        ('path,label,note\na.png,0,"x\nb.png,1,"y"\n', 2),
        ("a.png,0\n" + '"' + "b.png,1\n" * 30_000, 2),  # more than csv takes as one cell
    ],
)
def test_sources_with_an_open_quote_are_refused(tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"list\.csv: line {line} cannot be read \(.*close each"):
        listed(content, tmp_path, "list.csv")


def test_a_note_may_go_over_several_lines(tmp_path: Path) -> None:
    content = 'path,label,note\na.png,0,"two\nlines"\n"say ""b"".png",1,\n'
    expected = [("a.png", 0), ('say "b".png', 1)]
    assert entries(listed(content, tmp_path, "list.csv")) == expected
