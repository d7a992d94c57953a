"""Image files and folders of them that are named one by one."""

import os
from collections.abc import Sequence
from pathlib import Path

from msn.data.sources.base import EXTENSIONS, EncodedSource, file_stamp, is_left_alone, read_file
from msn.runtime.errors import UserError


class Files(EncodedSource):
    """The named files, and the images directly in named folders, in sorted order; unlabeled.

    Args:
        given: files and folders.
        channels: see `EncodedSource`.

    Raises:
        UserError: there is nothing at a path, or a folder holds no image.
    """

    label_rule = "no label; images of a data set (--fname, data.root_path) may have them"

    def __init__(self, given: Sequence[Path], *, channels: int) -> None:
        super().__init__(channels)
        self._paths = [str(path) for one in given for path in _below(one)]

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def label(self, index: int) -> int | None:
        return None

    def labels(self) -> None:
        return None

    def classes(self) -> None:
        return None

    def stamp(self, index: int) -> str:
        return file_stamp(os.path.abspath(self._paths[index]))

    def encoded(self, index: int) -> bytes:
        return read_file(self._paths[index])


def _below(path: Path) -> list[Path]:
    """List the images that a path names."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name image files or folders of them")
        return [path]
    found = sorted(
        each
        for each in path.iterdir()
        if each.name.lower().endswith(EXTENSIONS) and not is_left_alone(each.name)
    )
    if not found:
        raise UserError(f"{path}: no images directly in this folder; name one that holds some")
    return found
