"""The encoders that the authors of the paper released, downloaded once into a cache."""

import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from msn.data.mapped import cache_folder
from msn.interop.release import sha256
from msn.runtime.errors import UserError
from msn.runtime.files import replacing, writing

ADDRESS = "https://dl.fbaipublicfiles.com/msn/"
LICENCE = "CC BY-NC 4.0 (no commercial use), https://creativecommons.org/licenses/by-nc/4.0/"
MODELS = {
    "vits16_800ep": "deit_small",
    "vitb16_600ep": "deit_base",
    "vitl16_600ep": "deit_large",
    "vitb4_300ep": "deit_base_p4",
    "vitl7_200ep": "deit_large_p7",
}
"""Name and official model of each released file, `NAME.pth.tar`."""
TIMEOUT = 60.0
CHUNK = 2**20


def released_folder() -> Path:
    """Give the folder where released files are kept, in the user's cache folder."""
    return cache_folder() / "released"


def cached_path(name: str) -> Path:
    """Give the path of a released file in the cache.

    Raises:
        UserError: there is no such model.
    """
    if name not in MODELS:
        raise UserError(f"official:{name}: no such model; there are {', '.join(MODELS)}")
    return released_folder() / f"{name}.pth.tar"


def fetch(
    name: str, *, given: Path | None = None, expected: str | None = None, address: str | None = None
) -> Path:
    """Give the path of a released file in the cache, downloading it if it is not there yet.

    An interrupted download is resumed where it stopped.

    Args:
        name: one of `MODELS`.
        given: a copy of the file to put into the cache in place of a download.
        expected: SHA-256 that the file must have, where it is known.
        address: of the folder of the files, in place of the official one.

    Raises:
        UserError: no such model, no connection, a file cut short or of another hash. What was in
            the cache is as it was.
    """
    path = cached_path(name)
    if given is not None or not path.exists():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        if given is not None:
            _copy(given, part)
        else:
            download(f"{address or ADDRESS}{path.name}", part)
        require_hash(part, expected, remove=True)
        digest = sha256(part)
        with replacing(_record(path)) as record:
            record.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
        with writing(path):
            os.replace(part, path)
    else:
        require_hash(path, _recorded(path), remove=False)
        require_hash(path, expected, remove=False)
    return path


def download(url: str, part: Path) -> None:
    """Download a URL to the file `part`, going on from where an earlier attempt ended.

    Raises:
        UserError: it could not be had whole; what there is stays, to go on from.
    """
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            resumed = response.status == 206
            total = int(response.headers.get("Content-Length") or 0) + (done if resumed else 0)
            received = _receive(response, part, done if resumed else 0, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # there is nothing after what is there
            return
        raise UserError(
            f"{url}: the server says {error.code} {error.reason}; {_offline()}"
        ) from None
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url}: cannot be downloaded ({reason}); {_offline()}") from None
    if received < total:
        raise UserError(
            f"{url}: ended after {received:,} of {total:,} bytes; the same command resumes it"
        )


def require_hash(path: Path, expected: str | None, *, remove: bool) -> None:
    """Check a file against its expected SHA-256, if one is given.

    Raises:
        UserError: they differ; with `remove` the file is gone.
    """
    if expected is None or (found := sha256(path)) == expected.lower():
        return
    if remove:
        path.unlink()
    remedy = "download it again" if remove else "remove it to download it again"
    raise UserError(f"{path}: its SHA-256 is {found}, must be {expected.lower()}; {remedy}")


def _receive(response: http.client.HTTPResponse, part: Path, done: int, total: int) -> int:
    """Append a response to the first `done` bytes of the file, and give the file's new length."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        writing(part),
        part.open("r+b" if done else "wb") as file,
        Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress,
    ):
        file.truncate(done)
        file.seek(done)
        task = progress.add_task("", total=total or None, completed=done)
        while block := response.read(CHUNK):
            file.write(block)
            done += len(block)
            progress.update(task, completed=done)
    return done


def _copy(given: Path, part: Path) -> None:
    if not given.is_file():
        raise UserError(f"{given}: no such file; give a copy of the released one")
    with writing(part):
        shutil.copyfile(given, part)


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    """Read the hash that a file had when it came into the cache; give None if it is not known."""
    try:
        return _record(path).read_text("utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return None


def _offline() -> str:
    return "try again to resume, or download it elsewhere and give it with --from FILE"
