"""Tar shards in the layout of WebDataset, read in any order and never unpacked."""

import json
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msn.data.image import BadImage
from msn.data.mapped import THREADS, Arrays, Watch, cached, pack, unpack
from msn.data.sources.base import ARRAYS, EXTENSIONS, SPLITS, EncodedSource, file_stamp
from msn.runtime.errors import UserError

MAX_LABEL_BYTES = 32
MAX_JSON_BYTES = 2**20
JSON_LABELS = ("label", "cls", "class", "target")
"""Keys of a `.json` member under which the label is looked for, the first that is there."""


class Shards(EncodedSource):
    """The images in tar files, in order of file and place, found once and remembered.

    Each image member is a sample; its label is the whole number in the member of the same name up
    to the first dot that ends in `.cls`, else that under `label` in the one that ends in `.json`
    (or under another of `JSON_LABELS`). Members are read at their place in the shard: nothing is
    unpacked, links and devices are passed over. Arrays (`.npy`) are images where there are no
    others.

    Args:
        shards: the tar files, uncompressed.

    Raises:
        UserError: a shard cannot be read or has a member with a path that leads out of it, there is
            no image, or only some of the images have labels.
    """

    def __init__(self, folder: Path, shards: list[Path], *, channels: int = 3) -> None:
        super().__init__(channels)
        self._folder = os.path.abspath(folder)
        names = [shard.name for shard in shards]
        key = "\n".join(["tar", self._folder, *names])
        self._index = cached(key, partial(_build_index, self._folder, names))

    def __len__(self) -> int:
        return len(self._index["sizes"])

    def name(self, index: int) -> str:
        member = unpack(self._index["members"], self._index["member_ends"], index)
        return f"{self._shard(index)}/{member}"

    def path(self, index: int) -> str:
        return os.path.join(self._folder, self.name(index))

    def label(self, index: int) -> int | None:
        return int(self._index["labels"][index]) if len(self._index["labels"]) else None

    def labels(self) -> np.ndarray | None:
        return self._index["labels"] if len(self._index["labels"]) else None

    def stamp(self, index: int) -> str:
        shard = os.path.join(self._folder, self._shard(index))
        return f"{file_stamp(shard)} {self.name(index)}"

    def encoded(self, index: int) -> bytes:
        size, offset = int(self._index["sizes"][index]), int(self._index["offsets"][index])
        try:
            with open(os.path.join(self._folder, self._shard(index)), "rb", buffering=0) as shard:
                data = os.pread(shard.fileno(), size, offset)
        except OSError as error:
            raise BadImage(self.path(index), error.strerror or repr(error)) from error
        if len(data) < size:
            raise BadImage(self.path(index), "truncated shard")
        return data

    def _shard(self, index: int) -> str:
        shard = int(np.searchsorted(self._index["firsts"], index, side="right")) - 1
        return unpack(self._index["shards"], self._index["shard_ends"], shard)


def find_shards(base: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of a split's tar files, and those.

    They lie in a sub-folder of its name, or bear its name as a word, as in `set-train-0001.tar`. In
    a folder where none bears the name of a split, all belong to each.

    Raises:
        UserError: there are none.
    """
    folder = base / split if (base / split).is_dir() else base
    found = sorted(folder.glob("[!.]*.tar"))
    if folder == base:
        of = {name: [path for path in found if _has_word(path.stem, name)] for name in SPLITS}
        found = of[split] if any(of.values()) else found
    if not found:
        raise UserError(
            f"{folder}: no tar files for the split {split} here (looked for *.tar, {split}/*.tar"
            f" and *{split}*.tar); check data.root_path and data.image_folder"
        )
    return folder, found


def _has_word(text: str, word: str) -> bool:
    return word in re.split(r"[^a-zA-Z]+", text)


class _Contents(NamedTuple):
    """The images in one shard."""

    members: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int | None]


def _build_index(folder: str, names: list[str], watch: Watch) -> Arrays:
    """Arrays: `shards` and `shard_ends`, packed names; `firsts`, the first image in each;
    `members` and `member_ends`; `offsets` and `sizes` in bytes; `labels` (N,), or (0,) for none.
    """

    def contents_of(name: str) -> tuple[_Contents, _Contents]:
        watch(os.path.join(folder, name))
        return _read_shard(os.path.join(folder, name))

    with ThreadPoolExecutor(THREADS) as pool:
        images, arrays = zip(*pool.map(contents_of, names), strict=True)
    kind = images if any(found.members for found in images) else arrays
    contents = dict(zip(names, kind, strict=True))
    counts = np.array([len(found.members) for found in contents.values()], dtype=np.int64)
    if not counts.sum():
        raise UserError(f"{folder}: no images in the tar files ({names[0]}, ...)")
    shards, shard_ends = pack(os.fsencode(name) for name in names)
    members, member_ends = pack(
        os.fsencode(member) for found in contents.values() for member in found.members
    )
    labels = [label for found in contents.values() for label in found.labels]
    known = [label for label in labels if label is not None]
    if 0 < len(known) < len(labels):
        raise UserError(
            f"{folder}: {len(labels) - len(known)} of {len(labels)} images in the tar files have no"
            " label (a member .cls, or .json with a label in it); label all of them, or none"
        )
    return {
        "shards": shards,
        "shard_ends": shard_ends,
        "firsts": np.cumsum(counts) - counts,
        "members": members,
        "member_ends": member_ends,
        "offsets": np.array([o for found in contents.values() for o in found.offsets], np.int64),
        "sizes": np.array([s for found in contents.values() for s in found.sizes], np.int64),
        "labels": np.array(known, dtype=np.int64),
    }


def _read_shard(path: str) -> tuple[_Contents, _Contents]:
    """The images in a shard, and the arrays."""
    images, arrays = _Contents([], [], [], []), _Contents([], [], [], [])
    labels: dict[str, int] = {}
    noted: dict[str, int | None] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                shard.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                _refuse_escape(path, member.name)
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    continue
                name = os.path.basename(member.name).lower()
                if name.endswith(EXTENSIONS) and not name.startswith("."):
                    kind = arrays if name.endswith(ARRAYS) else images
                    kind.members.append(member.name)
                    kind.offsets.append(member.offset_data)
                    kind.sizes.append(member.size)
                elif name.endswith(".cls"):
                    labels[_key(member.name)] = _read_label(path, shard, member)
                elif name.endswith(".json") and not name.startswith("."):
                    noted[_key(member.name)] = _noted_label(path, shard, member)
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{path}: cannot be read as an uncompressed tar file ({error}); fetch or pack it again"
        ) from error
    for kind in (images, arrays):
        kind.labels.extend((noted | labels).get(_key(member)) for member in kind.members)
    return images, arrays


def _refuse_escape(path: str, member: str) -> None:
    if member.startswith("/") or ".." in member.split("/"):
        raise UserError(
            f"{path}: its member {member!r} leads out of it; do not trust this file, or pack it"
            " again with relative paths"
        )


def _key(member: str) -> str:
    """What the members of one sample share: the name up to the first dot."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".")[0])


def _read_label(path: str, shard: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = shard.extractfile(member)
    text = file.read(MAX_LABEL_BYTES) if file else b""
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{path}: {member.name} holds {text!r}; a label is a whole number"
        ) from None


def _noted_label(path: str, shard: tarfile.TarFile, member: tarfile.TarInfo) -> int | None:
    """The label in a `.json` member, None where it tells of other things or is no JSON."""
    file = shard.extractfile(member)
    try:
        values = json.loads(file.read(MAX_JSON_BYTES)) if file else None
    except (ValueError, RecursionError):
        return None
    known = values if isinstance(values, dict) else {}
    label = next((known[key] for key in JSON_LABELS if key in known), None)
    if label is not None and type(label) is not int:
        raise UserError(
            f"{path}: {member.name} has the label {str(label)[:80]!r}; a label of tar shards is a"
            " whole number: write the number of the class, or list the files with data.source: list"
        )
    return label
