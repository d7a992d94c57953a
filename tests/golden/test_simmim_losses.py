"""SimMIM's and A2MIM's losses of recorded reconstructions."""

import ast
from functools import partial
from typing import Any

import pytest
import torch

from msn.methods.pixel_losses import focal_frequency, masked_focal_l1, masked_l1
from msn.models.mask_units import enlarged
from tests.golden import record
from tests.golden.record import DTYPES, SIMMIM, assert_close, golden_files, natural

golden = partial(record.golden, folder=SIMMIM)
CASES: dict[str, Any] = golden("simmim_resnet.npz").meta["cases"]
# The official mask is an integer tensor: sum + 1e-5 is float32 there, which costs 6e-9 and less.
MASK_IN_FLOAT32 = 1e-7 / record.SLACK


@DTYPES
@pytest.mark.parametrize("name", golden_files("vit_*.npz", SIMMIM))
def test_masked_l1(name: str, dtype: torch.dtype) -> None:
    data = golden(name)
    images, rec = data.tensor("x", dtype), data.tensor("rec64", dtype)
    mask = enlarged(data.tensor("mask"), data.meta["config"]["patch_size"])
    noise = max(natural(data.meta["maxabs_f32_vs_f64"]["loss"]), MASK_IN_FLOAT32)
    close = partial(assert_close, float64=False, tolerance=noise)
    close(masked_l1(rec, images, mask), data["loss64"])
    assert masked_l1(rec, images, torch.zeros_like(mask)) == data["loss_allzero"] == 0


@DTYPES
@pytest.mark.parametrize("case", CASES)
def test_losses_of_a_convolutional_network(case: str, dtype: torch.dtype) -> None:
    data, settings = golden("simmim_resnet.npz"), CASES[case]
    stored = next((f"{case}.{key}" for key in ("rec64", "rec") if f"{case}.{key}" in data), None)
    if stored is None:
        pytest.skip("the reconstruction was left out of this folder")
    rec, images = data.tensor(stored, dtype), data.tensor("x", dtype)
    mask = enlarged(data.tensor(f"{case}.mask"), settings["stride_at_mask"])
    if settings["head"] == "simmim":
        loss = masked_l1(rec, images, mask)
    else:
        _, weight = ast.literal_eval(settings["head"])
        loss = masked_focal_l1(rec, images, mask) + weight * focal_frequency(rec, images, mask)
    tolerance = max(MASK_IN_FLOAT32, record.ULPS / record.SLACK * float(settings["loss64"]))
    assert_close(loss, settings["loss64"], float64=False, tolerance=tolerance)
