"""Check that a checkpoint is what was written, bit for bit."""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEY = "digest"
"""Of a checkpoint, under which it carries the digest of its tensors. Older files have none."""

MOST_REPEATED = 2**31
"""Bytes that the tensors of a file may claim beyond those that are stored for them."""
_ALGORITHM = "crc32:"
_UNREADABLE = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)


def digest(state: Any) -> str:
    """Checksum of the names, types, shapes and bytes of all tensors in a nested state."""
    value = 0
    for name, tensor in _tensors(state, ""):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        value = zlib.crc32(flat.view(torch.uint8).numpy(), value)
    return f"{_ALGORITHM}{value:08x}"


def has_its_digest(state: dict[Any, Any]) -> bool:
    """Whether the tensors are those that the digest among them is of; True if there is none."""
    expected = state.get(KEY)
    if not isinstance(expected, str) or not expected.startswith(_ALGORITHM):
        return True
    claimed, stored = sizes(tensor for _, tensor in _tensors(state, ""))
    if claimed > stored + MOST_REPEATED:
        return False
    try:
        return digest({key: value for key, value in state.items() if key != KEY}) == expected
    except (RuntimeError, NotImplementedError):  # no such tensors were written
        return False


def has_its_sums(path: Path) -> bool:
    """Whether all parts of a zip archive, as torch writes, have the sums that are noted in it.

    torch itself does not look at them. True for what is no archive.
    """
    try:
        if not zipfile.is_zipfile(path):
            return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except _UNREADABLE:
        return False


def sizes(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Bytes that tensors claim, and that are stored for them: fewer, where values are repeated.

    Tensors that are not dense count for nothing.
    """
    claimed, stored = 0, {}
    for tensor in tensors:
        if is_dense(tensor):
            storage = tensor.untyped_storage()
            stored[storage.data_ptr()] = storage.nbytes()
            claimed += tensor.numel() * tensor.element_size()
    return claimed, sum(stored.values())


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor holds all its numbers: it is not sparse, nested or without values."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


def unfit(value: Any, shape: Sequence[int], dtype: torch.dtype, *, finite: bool) -> str | None:
    """Why something cannot be a dense tensor of this shape and type, None if it can."""
    if not isinstance(value, Tensor):
        return f"is {value!r:.40} and must be a tensor"
    if value.layout != torch.strided or value.device.type != "cpu":
        return "holds no plain numbers"
    if value.shape != torch.Size(shape):
        return f"is {tuple(value.shape)} and must be {tuple(shape)}"
    if value.dtype != dtype:
        return f"is {value.dtype} and must be {dtype}"
    if finite and not all_finite(value):
        return "is not finite"
    return None


def all_finite(tensor: Tensor) -> bool:
    """Whether each number is: NaN and infinity show in the extremes, which are found quickly."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")
