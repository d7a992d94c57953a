"""A folder of image files: a sub-folder for each class, or all in one."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape

from msn.data.mapped import THREADS, Arrays, Watch, cached, pack, unpack
from msn.data.sources.base import (
    ARRAYS,
    EXTENSIONS,
    EncodedSource,
    file_stamp,
    is_left_alone,
    read_file,
)
from msn.data.sources.labels import pack_classes, unpack_classes
from msn.runtime.errors import UserError


class Folder(EncodedSource):
    """Image files below a folder, found once and remembered (see `msn.data.mapped`).

    With images in sub-folders, each sub-folder is a class, numbered in sorted order, and its images
    may lie at any depth: order and labels are those of torchvision's ImageFolder. Without, the
    images directly in the folder are taken, unlabeled. Hidden files and folders, and
    those of `LEFT_ALONE`, are passed over.
    Arrays (`.npy`) are images where there are no others.

    Raises:
        UserError: there is no image, there are some beside classes, or a folder cannot be listed.
    """

    label_rule = "a sub-folder for each class"

    def __init__(self, folder: Path, *, channels: int = 3) -> None:
        super().__init__(channels)
        self._folder = os.path.abspath(folder)
        self._index = cached(f"folder {self._folder}", partial(_build_index, self._folder))

    def __len__(self) -> int:
        return len(self._index["file_ends"])

    def name(self, index: int) -> str:
        folder = self._folder_of(index)
        parent = unpack(self._index["folders"], self._index["folder_ends"], folder)
        return os.path.join(parent, unpack(self._index["files"], self._index["file_ends"], index))

    def path(self, index: int) -> str:
        return os.path.join(self._folder, self.name(index))

    def label(self, index: int) -> int | None:
        label = int(self._index["classes"][self._folder_of(index)])
        return None if label < 0 else label

    def labels(self) -> np.ndarray | None:
        classes = self._index["classes"]
        if classes[0] < 0:
            return None
        return np.repeat(classes, np.diff(self._index["firsts"], append=len(self)))

    def classes(self) -> list[str] | None:
        return None if self._index["classes"][0] < 0 else unpack_classes(self._index)

    def stamp(self, index: int) -> str:
        return file_stamp(self.path(index))

    def encoded(self, index: int) -> bytes:
        return read_file(self.path(index))

    def _folder_of(self, index: int) -> int:
        return int(np.searchsorted(self._index["firsts"], index, side="right")) - 1


class _Place(NamedTuple):
    """A folder to be listed."""

    path: str  # below the root, "" for the root itself
    line: tuple[tuple[int, int], ...]  # device and inode of each folder that it is in


class _Listing(NamedTuple):
    """What one folder holds."""

    path: str
    line: tuple[tuple[int, int], ...]  # with itself
    folders: list[str]
    files: tuple[np.ndarray, np.ndarray]  # names of the images, sorted, packed
    arrays: tuple[np.ndarray, np.ndarray]  # likewise


def _build_index(root: str, watch: Watch) -> Arrays:
    """List the folders with images, in order, and their images.

    Arrays: `folders` and `folder_ends`, packed paths below the root; `classes` (D,), -1 for none;
    their names as of `pack_classes`;
    `firsts` (D,), the index of the first image in each; `files` and `file_ends`, packed names.
    """
    listings = list(_scan(root, watch))
    if not any(len(listing.files[1]) for listing in listings):
        listings = [listing._replace(files=listing.arrays) for listing in listings]
    classes = {name: i for i, name in enumerate(sorted(listings[0].folders))}
    with_images = [listing for listing in listings if len(listing.files[1])]
    if not with_images:
        raise UserError(
            f"{root}: no images here or in its sub-folders (looked for "
            f"{' '.join(EXTENSIONS)}); check data.root_path and data.image_folder"
        )
    if not with_images[0].path and len(with_images) > 1:
        raise UserError(
            f"{root}: holds images ({unpack(*with_images[0].files, 0)}, ...) beside class"
            " sub-folders; move them into a class, or set data.image_folder to one of the"
            " sub-folders"
        )

    def class_of(listing: _Listing) -> int:
        return classes.get(listing.path.split(os.sep)[0], -1)

    with_images.sort(key=lambda listing: (class_of(listing), listing.path))
    folders, folder_ends = pack(os.fsencode(listing.path) for listing in with_images)
    counts = np.array([len(listing.files[1]) for listing in with_images])
    lengths = [np.diff(listing.files[1], prepend=0) for listing in with_images]
    return {
        "folders": folders,
        "folder_ends": folder_ends,
        "classes": np.array([class_of(listing) for listing in with_images], dtype=np.int64),
        **pack_classes(list(classes)),
        "firsts": np.cumsum(counts) - counts,
        "files": np.concatenate([listing.files[0] for listing in with_images]),
        "file_ends": np.cumsum(np.concatenate(lengths)),
    }


def _scan(root: str, watch: Watch) -> Iterator[_Listing]:
    """Yield the listings of the root and all folders below it; read many at a time."""
    with ThreadPoolExecutor(THREADS) as pool, _progress(root) as report:
        level: list[_Place] = [_Place("", ())]
        while level:
            below: list[_Place] = []
            for listing in pool.map(partial(_list, root, watch), level):
                report(len(listing.files[1]) + len(listing.arrays[1]))
                below += [
                    _Place(os.path.join(listing.path, n), listing.line) for n in listing.folders
                ]
                yield listing
            level = below


def _list(root: str, watch: Watch, place: _Place) -> _Listing:
    folder = os.path.join(root, place.path)
    try:
        found = watch(folder)
        line = (*place.line, (found.st_dev, found.st_ino))
        if line[-1] in place.line:  # a link to a folder that it is in
            return _Listing(place.path, line, [], pack([]), pack([]))
        folders: list[str] = []
        files: list[str] = []
        arrays: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_left_alone(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS):
                    (arrays if entry.name.lower().endswith(ARRAYS) else files).append(entry.name)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise UserError(
                        f"{entry.path}: links to nothing, and may have been a class; repair or"
                        " remove it"
                    )
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror}); make it readable or move it"
            " away"
        ) from error
    packed = [pack(os.fsencode(name) for name in sorted(names)) for names in (files, arrays)]
    return _Listing(place.path, line, folders, *packed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, through a file, or too far
        return False


@contextmanager
def _progress(root: str) -> Iterator[Callable[[int], None]]:
    """Show the number of images found so far, if there is a terminal."""
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    if not console.is_terminal:
        yield lambda images: None
        return
    found = 0
    with console.status("") as status:

        def report(images: int) -> None:
            nonlocal found
            found += images
            status.update(f"{escape(root)}: {found:,} images")

        yield report
