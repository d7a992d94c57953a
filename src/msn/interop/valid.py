"""Checks of weights from elsewhere, none of which trusts a size.

A file may claim more than it holds, by tensors that repeat a few numbers. Nothing here asks for
memory in proportion to what is claimed until `dense` has bounded it.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msn.data.normalization import Normalization
from msn.runtime import checkpoint, integrity
from msn.runtime.checkpoint import shown
from msn.runtime.errors import UserError
from msn.runtime.wording import counted

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dense(value: Any, where: str) -> dict[str, Tensor]:
    """Check that `value` is a state dict of dense tensors; give it without wrappers' prefixes.

    Raises:
        UserError: it is not, or claims far more than it holds; `where` says what was looked at.
    """
    tensors = checkpoint.state_dict(value, where)
    for name, tensor in tensors.items():
        if not integrity.is_dense(tensor):
            kind = "without values" if tensor.is_meta else "sparse or nested"
            raise UserError(f"{where}: {shown(name)} is {kind}; save it as a dense tensor")
    claimed, stored = integrity.sizes(tensors.values())
    if claimed > stored + integrity.MOST_REPEATED:
        raise UserError(
            f"{where} claims {claimed:,} bytes and holds {stored:,}: its tensors repeat values;"
            " save contiguous ones"
        )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def unlike(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List how tensors differ from a model's: in names, shapes or type, or by not being finite."""
    return checkpoint.differences(given, expected) or [*_unfit(given, expected)]


def _unfit(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in given.items():
        if not expected[name].is_floating_point():
            if tensor.dtype != expected[name].dtype:
                yield f"{name} is of {tensor.dtype}, must be of {expected[name].dtype}"
        elif tensor.dtype not in FLOATS:
            yield f"{name} is of {tensor.dtype}, must be of floating-point numbers"
        elif not integrity.all_finite(tensor):
            yield f"{name} has values that are not finite"


def matrix(name: str, tensor: Any, width: int | None, path: Path) -> Tensor:
    """Check that a tensor is a matrix (N, width) of finite numbers; None allows any width.

    Raises:
        UserError: it is not.
    """
    if not torch.is_tensor(tensor):
        raise UserError(f"{path}: '{name}' is not a matrix; check the file")
    tensors = dense({name: tensor}, str(path))
    rows, columns = tensor.shape if tensor.ndim == 2 else (0, 0)
    like = torch.empty(max(rows, 1), width or max(columns, 1), device="meta")
    if problems := unlike(tensors, {name: like}):
        raise UserError(f"{path}: '{name}' is not a matrix that fits: {problems[0]}")
    return tensors[name]


def normalization(values: Normalization, channels: int, path: Path) -> Normalization:
    """Check that mean and standard deviation are finite numbers, one for each channel.

    Raises:
        UserError: they are not.
    """
    for name, numbers in zip(("mean", "std"), values, strict=True):
        fit = isinstance(numbers, list | tuple) and all(type(n) in (int, float) for n in numbers)
        least = 0 if name == "std" else -math.inf
        if not fit or len(numbers) != channels or not all(least < n < math.inf for n in numbers):
            raise UserError(
                f"{path}: {name} is {shown(numbers)}, must be"
                f" {counted(channels, 'finite number')}{' above 0' * (name == 'std')}, one for each"
                " channel"
            )
    return Normalization(*(tuple(map(float, numbers)) for numbers in values))
