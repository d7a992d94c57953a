"""A text file or CSV file that lists image files."""

import csv
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from msn.data.mapped import Arrays, Watch, cached, pack, unpack
from msn.data.sources.base import EXTENSIONS, EncodedSource, data_folder, file_stamp, read_file
from msn.data.sources.labels import read_labels, unpack_classes
from msn.runtime.errors import UserError

PATH_HEADINGS = ("path", "filename", "file_name", "filepath", "file", "image_path", "image", "img")
LABEL_HEADINGS = ("label", "class", "class_name", "target", "category")
"""Headings of the columns of a CSV file, in small letters; the first that is there counts."""


class ImageList(EncodedSource):
    """The images that a file lists, in its order.

    A file `*.csv` has the paths in its column `path` and labels, if any, in its column `label`, or
    under another of the usual headings, in small or large letters; one without a row of headings
    has them in its first two columns. Any other file has a path in each
    line, and may have a label behind it, after a tab or a space. Labels are whole numbers, or names
    of classes, which are numbered in sorted order; a negative number means that there is none.

    Args:
        file: the list.
        folder: what paths are relative to; None takes the folder of the list.

    Raises:
        UserError: the list is missing, empty, no text, or has labels for some of its paths only.
    """

    label_rule = "a label behind each path (in a CSV file, a column label)"

    def __init__(self, file: Path, folder: Path | None, *, channels: int = 3) -> None:
        super().__init__(channels)
        path = os.path.abspath(file)
        self._folder = os.path.abspath(folder or file.parent)
        self._index = cached(f"list {path}", partial(_build_index, path))

    def __len__(self) -> int:
        return len(self._index["path_ends"])

    def name(self, index: int) -> str:
        return unpack(self._index["paths"], self._index["path_ends"], index)

    def path(self, index: int) -> str:
        return os.path.join(self._folder, self.name(index))

    def label(self, index: int) -> int | None:
        label = int(self._index["labels"][index]) if len(self._index["labels"]) else -1
        return None if label < 0 else label

    def labels(self) -> np.ndarray | None:
        return self._index["labels"] if len(self._index["labels"]) else None

    def classes(self) -> list[str] | None:
        return unpack_classes(self._index)

    def stamp(self, index: int) -> str:
        return file_stamp(self.path(index))

    def encoded(self, index: int) -> bytes:
        return read_file(self.path(index))


def list_file(image_list: str | None, split: str) -> Path:
    """Find the list of a split; `{split}` in `image_list` stands for the split's name."""
    if not image_list:
        raise UserError("data.image_list is not set: name the text or CSV file that lists images")
    file = Path(image_list.replace("{split}", split)).expanduser()
    if not file.is_file():
        raise UserError(f"data.image_list: no such file: {file}; create it or correct the path")
    return file


def list_root(root_path: str | None, image_folder: str) -> Path | None:
    """Find the folder that the paths of a list are relative to, if the config names one."""
    return data_folder(root_path, image_folder) if root_path else None


def _build_index(path: str, watch: Watch) -> Arrays:
    """Read a list of images into arrays.

    Arrays: `paths` and `path_ends`, packed; those of `read_labels`.
    """
    try:
        watch(path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = (
                _csv_rows(path, file) if path.lower().endswith(".csv") else map(_split_line, file)
            )
            rows = [(image, label) for image, label in lines if image]
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a list of images ({error})") from error
    if not rows:
        raise UserError(f"{path}: lists no image; write one path in each line")
    unlabeled = sum(not label for _, label in rows)
    if 0 < unlabeled < len(rows):
        first = next(image for image, label in rows if not label)
        raise UserError(
            f"{path}: {unlabeled} of {len(rows)} paths have no label, the first is {first};"
            " label all of them, or none"
        )
    paths, path_ends = pack(os.fsencode(image) for image, _ in rows)
    labels = read_labels(
        [] if unlabeled else [label for _, label in rows],
        lambda index: f"{path}: row {index + 1}, {rows[index][0]},",
    )
    return {"paths": paths, "path_ends": path_ends, **labels}


def _csv_rows(path: str, file: Iterator[str]) -> Iterator[tuple[str, str]]:
    path_column, label_column = 0, 1
    for i, (line, row) in enumerate(_strictly(path, file)):
        cells = [cell.strip() for cell in row]
        headings = [cell.lower() for cell in cells]
        if i == 0 and any(heading in PATH_HEADINGS for heading in headings):
            path_column = _column(headings, PATH_HEADINGS)
            label_column = _column(headings, LABEL_HEADINGS)
            continue
        if i == 0 and len(cells) > 1 and not any(re.search(r"[./\d]", h) for h in headings):
            raise UserError(
                f"{path}: its first row '{','.join(cells)}' names no image and no column of paths;"
                " call the columns path and label"
            )
        cells += [""] * (1 + max(path_column, label_column) - len(cells))
        if "\n" in cells[path_column] + cells[label_column]:
            raise _open_quote(path, line, "its quote closes on another line")
        yield cells[path_column], cells[label_column]


def _strictly(path: str, file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with their line numbers; refuse a quote that is left open."""
    reader, line = csv.reader(file, strict=True), 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise _open_quote(path, line, str(error)) from error


def _open_quote(path: str, line: int, reason: str) -> UserError:
    return UserError(
        f"{path}: line {line} cannot be read ({reason}); close each quote in the line that opens"
        ' it, and write a quote in a name as ""'
    )


def _column(headings: list[str], names: tuple[str, ...]) -> int:
    """Find the column that bears one of the names; give one behind the last if none does."""
    return next((headings.index(name) for name in names if name in headings), len(headings))


def _split_line(line: str) -> tuple[str, str]:
    line = line.strip()
    if line.lower().endswith(EXTENSIONS):  # spaces, if any, are those of the path
        return line, ""
    separator = "\t" if "\t" in line else " "
    path, _, label = line.rpartition(separator) if separator in line else (line, "", "")
    return path.strip(), label.strip()
