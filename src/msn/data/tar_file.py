"""Read tar files to their end; Python's reader takes a damaged header for the end."""

import os
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

_CHUNK = 2**20
_Result = TypeVar("_Result")


class DamagedTar(tarfile.ReadError):
    """A tar file that is not whole: the text says what is wrong, in a few words."""


def members(path: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of an uncompressed tar file in order, each with the open file.

    Raises:
        OSError, tarfile.TarError: the file cannot be read, a header is damaged or claims more than
            there is, or the end is missing.
    """
    with open(path, "rb") as file, _tried(lambda: tarfile.open(fileobj=file, mode="r:")) as tar:
        size = os.fstat(file.fileno()).st_size
        for member in checked(tar):
            tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
            if tar.offset > size:
                raise _claim(member)
            yield tar, member


def checked(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Check and yield the members of an open tar file, compressed or not, in order.

    Raises:
        OSError, tarfile.TarError: as for `members`, but a claim of more than there is goes through.
    """
    end = 0
    while (member := _tried(tar.next)) is not None:
        # Links may state the size of what they link to, and hold nothing.
        stored = member.size if member.isreg() and not member.issparse() else 0
        if member.size < 0 or not end < member.offset_data + stored <= tar.offset:
            raise _claim(member)
        end = tar.offset
        yield member
    _require_end(tar.fileobj, tar.offset)  # type: ignore[arg-type]


def _claim(member: tarfile.TarInfo) -> DamagedTar:
    return DamagedTar(f"{member.name[:80]!r} claims {str(member.size)[:30]} bytes")


def _require_end(file: IO[bytes], offset: int) -> None:
    """Check that a tar file ends where its headers do: with a block of zeros, and nothing else.

    Raises:
        DamagedTar: there is more, or there is no such end.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DamagedTar(f"no header and no end at byte {offset}")
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise DamagedTar(f"zeros at byte {offset}, and more behind them")


def _tried(read: Callable[[], _Result]) -> _Result:
    try:
        return read()
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:  # damaged headers make it raise errors of many kinds
        raise DamagedTar(f"a header is damaged: {error or type(error).__name__}"[:80]) from error
