import csv
import os
from pathlib import Path

import pytest

from msn.data.bad_images import BadImages, bad_images_path
from msn.data.image import BadImage
from msn.runtime.errors import RunError, UserError


def bad(*names: str, reason: str = "truncated") -> list[BadImage]:
    return [BadImage(name, reason) for name in names]


def opened(folder: Path, start: int = 0, max_bad: float = 1.0) -> BadImages:
    path = bad_images_path(folder, "run")
    return BadImages(path, images=100, max_bad=max_bad, start_step=start)


def entries(folder: Path) -> list[list[str]]:
    with bad_images_path(folder, "run").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_each_is_said_listed_and_counted_once(tmp_path: Path, said: list[str]) -> None:
    images = opened(tmp_path)
    images.record(0, bad("a.jpg"))
    images.record(3, bad("a.jpg", "b, c.jpg", reason='odd "marker"'))
    images.record(4, [])
    assert entries(tmp_path) == [
        ["step", "name", "reason"],
        ["0", "a.jpg", "truncated"],
        ["3", "b, c.jpg", 'odd "marker"'],
    ]
    assert said == [
        "bad image, replaced by another: a.jpg: truncated",
        'bad image, replaced by another: b, c.jpg: odd "marker"',
    ]
    assert images.count == 2


def test_without_bad_images_there_is_no_list(tmp_path: Path, said: list[str]) -> None:
    opened(tmp_path).record(0, [])
    assert not list(tmp_path.iterdir())
    assert not said


@pytest.mark.parametrize("saved_at", [0, 2, 5, 6])
def test_a_resumed_list_equals_the_unbroken_one(
    tmp_path: Path, saved_at: int, said: list[str]
) -> None:
    """Also in its count at every step, and with nothing said twice by the whole of the run."""
    met = [bad(f"{step // 2}.jpg", f"{step}.png") for step in range(12)]
    lines: dict[str, list[str]] = {}
    counts: dict[str, dict[int, int]] = {"whole": {}, "broken": {}}
    for name, parts in {"whole": [range(12)], "broken": [range(6), range(saved_at, 12)]}.items():
        (tmp_path / name).mkdir()
        for part in parts:
            images = opened(tmp_path / name, start=part.start)
            for step in part:
                images.record(step, met[step])
                counts[name][step] = images.count
        lines[name] = said[:]
        said.clear()
    assert entries(tmp_path / "whole") == entries(tmp_path / "broken")
    assert counts["whole"] == counts["broken"]
    news = [line for line in lines["broken"] if line.startswith("bad image,")]
    assert news == lines["whole"]
    again = [line for line in lines["broken"] if "bad images so far" in line]
    assert len(again) == (saved_at > 0)


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    images = opened(tmp_path)
    images.record(0, bad("a.jpg", "b.jpg"))
    with images.path.open("a") as file:
        file.write("1,c.j")
    opened(tmp_path, start=9).record(9, bad("d.jpg"))
    assert [row[1] for row in entries(tmp_path)] == ["name", "a.jpg", "b.jpg", "d.jpg"]


def test_names_that_cannot_be_printed(tmp_path: Path, said: list[str]) -> None:
    names = ["two\nlines.jpg", "latin-\udce9.jpg", "größe.jpg"]
    opened(tmp_path).record(0, bad(*names))
    opened(tmp_path, start=1).record(1, bad(*names))
    assert len(said) == 4
    assert all(line.isprintable() for line in said)
    assert [row[1] for row in entries(tmp_path)[1:]] == [
        "two\\nlines.jpg",
        "latin-\\udce9.jpg",
        "größe.jpg",
    ]


def test_more_than_allowed_stop_the_run(tmp_path: Path) -> None:
    images = opened(tmp_path, max_bad=0.06)
    names = [f"{i}.jpg" for i in range(7)]
    images.record(0, bad(*names[:4]))
    images.record(1, bad(*names[:4]))  # the same ones again are no more
    images.record(2, bad(*names[4:6]))
    with pytest.raises(RunError) as caught:
        images.record(3, bad(names[6]))
    message = str(caught.value)
    assert message.startswith("7 of 100 images are bad, more than data.max_bad 0.06 allows: 0.jpg")
    assert "4.jpg (truncated), ...; repair" in message
    assert str(images.path) in message
    assert len(message.splitlines()) == 1
    assert len(entries(tmp_path)) == 8


def test_none_may_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"1 of 100 images .* allows: a\.jpg \(truncated\); repair"):
        opened(tmp_path, max_bad=0.0).record(0, bad("a.jpg"))


def test_what_was_met_before_a_resume_counts(tmp_path: Path) -> None:
    opened(tmp_path, max_bad=0.02).record(0, bad("a.jpg", "b.jpg"))
    with pytest.raises(RunError, match="3 of 100"):
        opened(tmp_path, start=1, max_bad=0.02).record(1, bad("c.jpg"))


def test_what_was_repaired_before_a_repeated_step_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        opened(tmp_path, max_bad=0.01).record(5, bad("a.jpg", "b.jpg"))
    resumed = opened(tmp_path, start=2, max_bad=0.01)
    resumed.record(5, [])
    assert resumed.count == 0


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    """Before anything is written to it: it may be a folder, a pipe, or hold what is no list."""
    path = bad_images_path(tmp_path, "run")
    path.mkdir()
    makers = [
        lambda: path.write_text(f"step,name,reason\n1,{'a' * 200_000},truncated\n"),
        lambda: path.write_text(f"step,name,reason\n{'9' * 5000},a.jpg,truncated\n"),
        lambda: os.mkfifo(path),
    ]
    for make in (None, *makers):
        if make:
            make()
        with pytest.raises(UserError) as caught:
            opened(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot be read as the run's list of bad images (")
        assert message.endswith(
            "); move it away, and the run lists again those that it meets from now on"
        )
        assert len(message) < 400
        path.rmdir() if path.is_dir() else path.unlink()
    images = opened(tmp_path)
    images.record(0, bad("a.jpg"))
    assert len(entries(tmp_path)) == 2
