"""SimMIM with the official ViT: maps, reconstructions, loss and every gradient."""

from functools import partial
from typing import Any

import pytest
import torch

from msn.models.beit import Beit
from tests.golden import record
from tests.golden.record import DTYPES, SIMMIM, assert_close, golden_files, natural
from tests.golden.simmim_models import golden, official_names, simmim_of, units_of

FILES = pytest.mark.parametrize("name", golden_files("vit_*.npz", SIMMIM))
FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "products"])
# The official mask is an integer tensor: sum + 1e-5 is float32 there, which costs 6e-9 and less.
MASK_IN_FLOAT32 = 1e-7


@DTYPES
@FUSED
@FILES
def test_forward_and_backward(name: str, fused: bool, dtype: torch.dtype) -> None:
    data, float64 = golden(name), dtype == torch.float64
    model = simmim_of(data, dtype)
    encoder = model.encoder
    assert isinstance(encoder, Beit)
    encoder.use_fused_attention(fused)
    config: dict[str, Any] = data.meta["config"]
    images, mask = data.tensor("x", dtype), data.tensor("mask")
    units = units_of(mask, config["mask_patch_size"] // config["patch_size"])
    limits = data.meta["maxabs_f32_vs_f64"]
    tokens = encoder.embed(images, mask=mask.flatten(1).bool(), mask_token=model.token.mask_token)
    before = tokens - encoder.resized_pos_embed(*mask.shape[1:])
    assert_close(before[:, 1:], data["tok64"], float64=float64, tolerance=natural(limits["z"]))
    maps = model.token.encode(encoder, images, units)
    assert_close(maps, data["z64"], float64=float64, tolerance=natural(limits["z"]))
    pixels, _ = model.reconstruct(images, units)
    assert_close(pixels, data["rec64"], float64=float64, tolerance=natural(limits["rec"]))
    loss = model.loss_of(pixels, images, units)
    noise = max(MASK_IN_FLOAT32 / record.SLACK, 0.0 if float64 else natural(limits["loss"]))
    close = partial(assert_close, float64=False, tolerance=noise)
    close(loss, data["loss64"])
    check_gradients(name, model, loss, float64)
    every = torch.ones_like(units)
    close(model.loss_of(model.reconstruct(images, every)[0], images, every), data["loss_allone"])


def check_gradients(name: str, model: Any, loss: torch.Tensor, float64: bool) -> None:
    data = golden(name)
    loss.backward()
    noise = natural(data.meta["maxabs_f32_vs_f64"]["grad"])
    parameters = official_names(model)
    for key, parameter in parameters.items():
        stored = f"grad64.{key}" if f"grad64.{key}" in data else f"grad.{key}"
        # In float64 to what the float32 sum of the mask costs.
        scale = float(data.tensor(stored).abs().max())
        tolerance = (MASK_IN_FLOAT32 if float64 else 2.0**-23) * scale / record.SLACK
        tolerance = tolerance if float64 else max(tolerance, noise)
        assert parameter.grad is not None
        assert_close(
            parameter.grad, data.tensor(stored), float64=False, tolerance=tolerance, what=key
        )
    left_out = set(data.names("sd.")) - parameters.keys()
    assert all("relative_position_index" in key or "fc_norm" in key for key in left_out)
