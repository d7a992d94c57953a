"""The golden numbers, from the folders that the environment names or from this one."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("MSN_GOLDEN_DIR", Path(__file__).parent))
MAE = Path(os.environ.get("MSN_GOLDEN_MAE_DIR", Path(__file__).parent / "mae"))
SIMMIM = Path(os.environ.get("MSN_GOLDEN_SIMMIM_DIR", Path(__file__).parent / "simmim"))
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
# What a float32 run may differ from the float64 truth: a few times what the original's own
# float32 run did, or a few units in the last place where that happened to be nothing.
SLACK = 4.0
ULPS = 16 * 2.0**-23


class Golden:
    """One .npz file and its entry in meta.json."""

    def __init__(self, name: str, folder: Path) -> None:
        self.arrays = np.load(folder / name, allow_pickle=False)
        self.meta: dict[str, Any] = golden_json("meta.json", folder)["files"][name]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def names(self, prefix: str) -> list[str]:
        """Names that start with a prefix, without it."""
        return [key.removeprefix(prefix) for key in self.arrays.files if key.startswith(prefix)]

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(self[key]).to(dtype)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        return {name: self.tensor(prefix + name) for name in self.names(prefix)}


@lru_cache
def golden(name: str, folder: Path = GOLDEN) -> Golden:
    return Golden(name, folder)


@lru_cache
def golden_json(name: str, folder: Path = GOLDEN) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def golden_files(pattern: str, folder: Path = GOLDEN) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def natural(entry: Any) -> float:
    """The recorded float32-versus-float64 difference of the original."""
    return float(entry[0] if isinstance(entry, list) else entry)


def assert_close(
    actual: Tensor | float,
    expected: Tensor | np.ndarray | float,
    *,
    float64: bool,
    tolerance: float = 0.0,
    what: str = "",
) -> None:
    """Agreement to 1e-9 of a float64 record, to rounding of one cast to float32; and of a
    float32 run to `tolerance`, the natural one.
    """
    got = torch.as_tensor(actual).detach().double()
    record = torch.as_tensor(expected)
    truth = record.double()
    assert got.shape == truth.shape, f"{what}: {tuple(got.shape)} for {tuple(truth.shape)}"
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    if float64 and record.dtype == torch.float64:
        allowed = 1e-9 * max(scale, 1.0)
    elif float64 and tolerance == 0:
        allowed = max(2.0**-23 * scale, 1e-15)
    else:
        allowed = max(SLACK * tolerance, ULPS * scale, 1e-15)
    worst = float((got - truth).abs().max()) if truth.numel() else 0.0
    assert worst <= allowed, f"{what}: off by {worst:.3g}, allowed {allowed:.3g}"
