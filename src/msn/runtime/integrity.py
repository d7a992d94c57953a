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
    """Compute a checksum of names, types, shapes and bytes of all tensors in a nested state."""
    value = 0
    for name, tensor in _tensors(state, ""):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        value = zlib.crc32(flat.view(torch.uint8).numpy(), value)
    return f"{_ALGORITHM}{value:08x}"


def has_its_digest(state: dict[Any, Any]) -> bool:
    """Tell whether a checkpoint's tensors match the digest that it carries; True without one."""
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
    """Tell whether all parts of a zip archive, as torch writes, match the checksums noted in it.

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
    """Count the bytes that tensors claim and those stored for them: fewer if values are repeated.

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
    """Tell whether a tensor holds all its numbers: it is not sparse, nested or without values."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


def unfit(value: Any, shape: Sequence[int], dtype: torch.dtype, *, finite: bool) -> str | None:
    """Say why a value cannot be a dense tensor of this shape and type; give None if it can."""
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
    """Tell whether all numbers are finite, from the extremes: NaN and infinity show in them."""
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
