"""Tar shards in the layout of WebDataset, read in any order without unpacking."""

import json
import os
import re
import stat
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msn.data.image import BadImage
from msn.data.mapped import THREADS, Arrays, Watch, cached, pack, unpack
from msn.data.sources.base import (
    ARRAYS,
    EXTENSIONS,
    SPLITS,
    EncodedSource,
    file_stamp,
    is_left_alone,
    refuse_large,
)
from msn.data.sources.labels import read_labels, unpack_classes
from msn.data.tar_file import members
from msn.runtime.errors import UserError

# Of members that cannot be read at their place, in place of a size.
SPARSE, LINK = -1, -2
UNREADABLE = {
    SPARSE: "a sparse member; pack the shard without --sparse",
    LINK: "a link or device; pack the shard with --dereference --hard-dereference",
}
MAX_LABEL_BYTES = 255
MAX_JSON_BYTES = 2**20
JSON_LABELS = ("label", "cls", "class", "target")
"""Keys of a `.json` member under which the label is looked for, the first that is there."""


class Shards(EncodedSource):
    """The images in tar files, in order of file and place, found once and remembered.

    Members of one name up to the first dot are a sample. Its image is the member `image_key`, else
    the first of `EXTENSIONS` that it has; others, such as masks, are left alone, and so are arrays
    (`.npy`) where any sample has another image. Its label is in its member `.cls`, else
    under `label` in its member `.json` (or under another of `JSON_LABELS`): a whole number, or the
    name of a class; a negative number means that there is none. Members are read at their place in
    the shard: nothing is unpacked; links and devices are bad images.

    Args:
        shards: the tar files, uncompressed.
        image_key: which member of a sample is its image: what follows the first dot of its name.

    Raises:
        UserError: a shard cannot be read or has a member with a path that leads out of it, there is
            no image, some samples have other images only, or only some of the images have labels.
    """

    label_rule = "a member .cls, or .json with a label in it, for each image"

    def __init__(
        self, folder: Path, shards: list[Path], *, channels: int = 3, image_key: str | None = None
    ) -> None:
        super().__init__(channels)
        self._folder = os.path.abspath(folder)
        names = [shard.name for shard in shards]
        wanted = image_key.lower().lstrip(".") if image_key else None
        key = "\n".join(["tar", wanted or "", self._folder, *names])
        self._index = cached(key, partial(_build_index, self._folder, names, wanted))

    def __len__(self) -> int:
        return len(self._index["sizes"])

    def name(self, index: int) -> str:
        member = unpack(self._index["members"], self._index["member_ends"], index)
        return f"{self._shard(index)}/{member}"

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
        shard = os.path.join(self._folder, self._shard(index))
        return f"{file_stamp(shard)} {self.name(index)}"

    def encoded(self, index: int) -> bytes:
        size, offset = int(self._index["sizes"][index]), int(self._index["offsets"][index])
        if size in UNREADABLE:
            raise BadImage(self.path(index), UNREADABLE[size])
        refuse_large(self.path(index), size)
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
    """Find the folder of a split's tar files, and the files.

    They lie in a sub-folder of the split's name, or bear that name as a word, as in
    `set-train-0001.tar`. In a folder where none bears the name of a split, all belong to each.

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


class _Member(NamedTuple):
    """Where a file lies in a shard."""

    name: str
    offset: int
    size: int  # or one of UNREADABLE


class _Contents(NamedTuple):
    """The images in one shard."""

    members: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[str | None]
    unchosen: list[str]  # images of samples that have not the one that is looked for


def _build_index(folder: str, names: list[str], image_key: str | None, watch: Watch) -> Arrays:
    """List the images in the shards, with where they lie and their labels.

    Arrays: `shards` and `shard_ends`, packed names; `firsts`, the first image in each;
    `members` and `member_ends`; `offsets` and `sizes` in bytes; those of `read_labels`.
    """

    def contents_of(name: str) -> tuple[_Contents, _Contents]:
        return _read_shard(os.path.join(folder, name), image_key, watch)

    with ThreadPoolExecutor(THREADS) as pool:
        images, arrays = zip(*pool.map(contents_of, names), strict=True)
    has_images = image_key or any(found.members or found.unchosen for found in images)
    kind = images if has_images else arrays
    contents = dict(zip(names, kind, strict=True))
    _require_images(folder, image_key, kind)
    counts = np.array([len(found.members) for found in contents.values()], dtype=np.int64)
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
        **read_labels(known, lambda index: f"{folder}: {unpack(members, member_ends, index)}"),
    }


def _require_images(folder: str, image_key: str | None, contents: Sequence[_Contents]) -> None:
    """Refuse shards without images, or with samples that have images but not the wanted one."""
    images = sum(len(found.members) for found in contents)
    unchosen = [name for found in contents for name in found.unchosen]
    wanted = image_key or f"{', '.join(ending[1:] for ending in EXTENSIONS[:4])}, ..."
    if unchosen:
        raise UserError(
            f"{folder}: {len(unchosen)} of {images + len(unchosen)} samples in the tar files have"
            f" no image {wanted}, but others, the first {unchosen[0]}; set data.image_key to what"
            " follows the first dot of the name of each image, or rename the members"
        )
    if not images:
        raise UserError(f"{folder}: no images in the tar files (looked for {wanted})")


def _read_shard(path: str, image_key: str | None, watch: Watch) -> tuple[_Contents, _Contents]:
    """Find the images and the arrays in a shard, with their labels."""
    samples: dict[str, dict[str, _Member]] = {}
    labels: dict[str, str] = {}
    noted: dict[str, str | None] = {}
    try:
        if not stat.S_ISREG(watch(path).st_mode):
            raise OSError("not a regular file")
        for shard, member in members(path):
            _refuse_escape(path, member.name)
            name = os.path.basename(member.name).lower()
            parts = [part for part in member.name.split("/") if part != "."]
            if member.isdir() or any(map(is_left_alone, parts)):
                continue
            key, ending = _key(member.name), name.partition(".")[2]
            if name.endswith(EXTENSIONS) or ending == image_key:
                own = samples.setdefault(key, {})
                if ending in own:
                    raise UserError(
                        f"{path}: holds {member.name} twice; pack it again with one of them"
                    )
                own[ending] = _Member(member.name, member.offset_data, _size(member))
            elif not member.isreg():
                continue
            elif name.endswith(".cls"):
                labels[key] = _read_label(path, shard, member)
            elif name.endswith(".json"):
                noted[key] = _noted_label(path, shard, member)
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{path}: cannot be read as an uncompressed tar file ({error}; samples before that:"
            f" {len(samples)}); fetch or pack it again"
        ) from error
    known = noted | labels
    images = [image_key] if image_key else [e[1:] for e in EXTENSIONS if e != ARRAYS]
    return _chosen(samples, images, known), _chosen(samples, [ARRAYS[1:]], known)


def _chosen(
    samples: dict[str, dict[str, _Member]], endings: list[str], labels: Mapping[str, str | None]
) -> _Contents:
    """Choose each sample's member of the first ending that it has, in the order of the shard."""
    found, unchosen = [], []
    of_arrays = endings[-1].endswith(ARRAYS[1:])
    for key, own in samples.items():
        ending = next((ending for ending in endings if ending in own), None)
        if ending is not None:
            found.append((own[ending], labels.get(key)))
        else:
            unchosen += [own[e].name for e in own if of_arrays or not e.endswith(ARRAYS[1:])][:1]
    found.sort(key=lambda entry: entry[0].offset)
    chosen = [member for member, _ in found]
    return _Contents(
        [member.name for member in chosen],
        [member.offset for member in chosen],
        [member.size for member in chosen],
        [label for _, label in found],
        unchosen,
    )


def _size(member: tarfile.TarInfo) -> int:
    if not member.isreg():
        return LINK
    return SPARSE if member.issparse() else member.size


def _refuse_escape(path: str, member: str) -> None:
    if member.startswith("/") or ".." in member.split("/"):
        raise UserError(
            f"{path}: its member {member!r} leads out of it; do not trust this file, or pack it"
            " again with relative paths"
        )


def _key(member: str) -> str:
    """Give what the members of one sample share: the name up to the first dot."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".")[0])


def _read_label(path: str, shard: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = shard.extractfile(member)
    content = file.read(MAX_LABEL_BYTES + 1) if file else b""
    text = content.decode("utf-8", "replace").strip()
    if not text or not text.isprintable() or "\ufffd" in text or len(content) > MAX_LABEL_BYTES:
        raise UserError(
            f"{path}: {member.name} holds {content[:40]!r}; a label is a whole number or the name"
            f" of a class, of at most {MAX_LABEL_BYTES} bytes"
        )
    return text


def _noted_label(path: str, shard: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Read the label in a `.json` member; give None where it has none or is no JSON."""
    file = shard.extractfile(member)
    try:
        values = json.loads(file.read(MAX_JSON_BYTES)) if file else None
    except (ValueError, RecursionError):
        return None
    known = values if isinstance(values, dict) else {}
    label = next((known[key] for key in JSON_LABELS if key in known), None)
    if label is None:
        return None
    if type(label) not in (int, str) or not str(label).strip():
        raise UserError(
            f"{path}: {member.name} has the label {str(label)[:80]!r}; a label is a whole number or"
            " the name of a class"
        )
    return str(label).strip()
