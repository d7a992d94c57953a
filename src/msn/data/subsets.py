"""Read, write and download lists of labeled images in the official format.

One file name on each line. `n01440764_10026.JPEG` is the file of that name in the class folder
`n01440764`; a name with its folder (`dogs/rex.png`), or any other name that the source gives an
image, is taken as it stands.
"""

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msn.data.sources import Source
from msn.runtime.errors import UserError
from msn.runtime.files import open_regular, prepare_place, replacing

FOLDER = "imagenet_subsets"
SHOWN = 3  # bad lines in a message
TIMEOUT = 30.0  # seconds


class Listed(NamedTuple):
    """An official list: `name` is its path below the folder of all lists."""

    name: str
    images_per_class: int | str
    lines: int
    bytes: int
    sha256: str


def read_subset(path: Path, source: Source) -> np.ndarray:
    """Read a list of images as indices (N,) in `source`, in the list's order; skip blank lines.

    Raises:
        UserError: no such list, it is empty, or lines that name no image of the source, an unknown
            class, or an image a second time.
    """
    lines = list(_lines(path))
    if not lines:
        raise UserError(f"{path}: lists no images; give a file with a file name on each line")
    # Only what is listed is looked up: a source may have millions of names.
    wanted: dict[str, int] = {}
    for _, text in lines:
        wanted.update(dict.fromkeys(_candidates(text), -1))
    classes = set()
    for index in range(len(source)):
        name = source.name(index)
        classes.add(name.partition("/")[0])
        if name in wanted:
            wanted[name] = index
    found, problems = [], []
    seen: dict[str, int] = {}
    for number, text in lines:
        names = [name for name in _candidates(text) if wanted[name] >= 0]
        if not names:
            known = any(name.partition("/")[0] in classes for name in _candidates(text)[1:])
            what = "no such file" if known or "/" in text else "its class is unknown"
            problems.append(f"line {number} '{text}': {what}")
        elif names[0] in seen:
            problems.append(f"line {number} '{text}': is on line {seen[names[0]]} too")
        else:
            seen[names[0]] = number
            found.append(wanted[names[0]])
    if problems:
        more = len(problems) - SHOWN
        text = "; ".join(problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"{path}: {text}; give the list of these training images (data.root_path,"
            " data.image_folder), or restore the files"
        )
    return np.array(found, dtype=np.int64)


def find_list(path: Path) -> Path:
    """Find a list: at its path or, for an official one, where `subsets fetch` puts it.

    The official command lines have `imagenet_subsets1/5imgs_class.txt`, or, in other versions,
    `imagenet_subsets/5imgs_class.txt`, which is the first of the three of that size.

    Raises:
        UserError: it is in neither place.
    """
    if path.exists():
        return path
    lists = [entry.name for entry in official_lists()]
    if path.parent.name == FOLDER:
        folder = path.parent
        name = next((name for name in lists if name.endswith(f"/{path.name}")), "")
    else:
        above, name = path.parent.parent, "/".join(path.parts[-2:])
        folder = above if above.name == FOLDER else above / FOLDER
    fetched = folder / name
    if name not in lists:
        raise UserError(f"{path.absolute()}: no such list of images; check --subset-path")
    if not fetched.exists():
        there = "" if fetched == path else f", nor is it at {fetched.absolute()}"
        where = "" if folder == Path(FOLDER) else f" --folder {folder}"
        raise UserError(
            f"{path.absolute()}: no such list of images{there};"
            f" get it with: python -m msn subsets fetch{where}"
        )
    return fetched


def write_subset(path: Path, source: Source, indices: np.ndarray) -> None:
    """Write a list that `read_subset` reads back, with bare file names where they tell the class.

    Raises:
        UserError: it cannot be written.
    """
    names = []
    for index in indices:
        name = source.name(int(index))
        _, slash, base = name.partition("/")
        names.append(base if slash and name in _candidates(base)[1:] else name)
    prepare_place(path)
    with replacing(path) as temporary:
        text = "".join(f"{name}\n" for name in names)
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def official_lists() -> list[Listed]:
    """Read the manifest of the ten official lists: name, images per class, lines and SHA-256."""
    return [Listed(**entry) for entry in _manifest()["files"]]


def official_url() -> str:
    """Give the URL of the official lists, at the commit that the manifest was made from."""
    manifest = _manifest()
    repository = manifest["repository"].replace("//github.com", "//raw.githubusercontent.com")
    return f"{repository}/{manifest['commit']}"


def fetch(folder: Path, url: str) -> list[Path]:
    """Download the official lists below `url` that `folder` lacks: all of them, or none.

    Returns:
        Those that were written. If all were there, nothing is asked of the network.

    Raises:
        UserError: no connection, a file that is not that of the manifest, or no room.
    """
    missing = [listed for listed in official_lists() if not _is_there(folder / listed.name, listed)]
    contents = {
        folder / listed.name: _download(f"{url.rstrip('/')}/{listed.name}", listed)
        for listed in missing
    }
    for path, content in contents.items():
        prepare_place(path)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return list(contents)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    path = find_list(path)
    try:
        # A byte that is no UTF-8 may be in the name of a file.
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read as a list of file names ({error.strerror}); check it"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: is no text; give a file with a file name on each line")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _candidates(text: str) -> list[str]:
    """List the names a line may stand for: itself, or in the folder of any part before a `_`."""
    ends = [at for at, letter in enumerate(text) if letter == "_" and at]
    return [text, *(f"{text[:end]}/{text}" for end in ends)]


def _manifest() -> dict[str, Any]:
    text = resources.files("msn.data").joinpath("imagenet_subsets.json").read_text("utf-8")
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def _is_there(path: Path, listed: Listed) -> bool:
    """Tell whether a file is the official list, to the byte."""
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read(listed.bytes + 1)).hexdigest() == listed.sha256
    except OSError:
        return False


def _download(address: str, listed: Listed) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            content: bytes = answer.read(listed.bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{address}: cannot be fetched ({reason}); check the connection, or copy the folders"
            f" imagenet_subsets1 to 3 of the official repository into {FOLDER}/"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != listed.sha256:
        raise UserError(
            f"{address}: SHA-256 is {digest}, the manifest has {listed.sha256}; nothing was"
            " installed; try again, or another --url"
        )
    return content
