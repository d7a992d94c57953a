"""Forward and backward of the whole MAE, from recorded weights, images and noise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from msn.methods.mae import MAE, masked_error, normalized, patch_errors
from msn.models.masking import Kept, keep_lowest, select
from msn.models.patches import patchify, unpatchify
from tests.golden.mae_models import golden, join, mae_of
from tests.golden.record import DTYPES, Golden, assert_close

RATIOS = sorted({float(name.split(".npl")[0]) for name in golden("forward.npz").names("loss.r")})
NORMALIZED = pytest.mark.parametrize("norm_pix_loss", [False, True])


def tolerance(data: Golden, key: str) -> float:
    """What the original's float32 run differed by; for parts that were not compared, the most."""
    limits: dict[str, Any] = data.meta["maxabs_f32_vs_f64"]
    if key in limits:
        return float(limits[key][0])
    return max(float(limit[0]) for name, limit in limits.items() if "const" not in name)


def whole_model(norm_pix_loss: bool, dtype: torch.dtype) -> tuple[Golden, MAE, Tensor, Tensor]:
    data = golden("forward.npz")
    model = mae_of(data, dtype, norm_pix_loss=norm_pix_loss)
    return data, model, data.tensor("imgs", dtype), data.tensor("noise", dtype)


def recorded(data: Golden, name: str, case: str) -> Tensor:
    """The float64 record of a number; where there is none, the float32 one."""
    return data.tensor(f"{name}64.{case}" if f"{name}64.{case}" in data else f"{name}.{case}")


@DTYPES
@pytest.mark.parametrize("ratio", RATIOS)
def test_outputs(ratio: float, dtype: torch.dtype) -> None:
    data, model, images, noise = whole_model(True, dtype)
    float64, case = dtype == torch.float64, f"r{ratio}"
    kept = keep_lowest(noise, ratio)
    latent = model.backbone.tokens(images, kept.indices)
    prediction = model.decoder(latent, kept)
    for name, value in (("latent", latent), ("pred", prediction)):
        limit = tolerance(data, f"{name}.{case}")
        expected = recorded(data, name, case)
        limit = limit if not float64 or expected.dtype == torch.float32 else 0.0
        assert_close(value, expected, float64=float64, tolerance=limit, what=name)
    assert torch.equal(kept.ranks, data.tensor("ids_restore"))
    assert torch.equal(kept.masked, data.tensor(f"mask.{case}").bool())


@DTYPES
@NORMALIZED
@pytest.mark.parametrize("ratio", RATIOS)
def test_loss(ratio: float, norm_pix_loss: bool, dtype: torch.dtype) -> None:
    data, model, images, noise = whole_model(norm_pix_loss, dtype)
    loss, _ = model.loss_of(images, keep_lowest(noise, ratio))
    case = f"r{ratio}.npl{int(norm_pix_loss)}"
    expected = recorded(data, "loss", case)
    if expected.isnan():  # nothing is masked: 0 / 0
        assert loss.isnan()
        return
    limit = tolerance(data, f"loss.{case}")
    assert_close(loss, expected, float64=dtype == torch.float64, tolerance=limit, what=case)


def details(data: Golden) -> tuple[str, float]:
    """The masking that gradients and parts of the forward pass were recorded for."""
    (case,) = {name.split(".npl")[0] for name in data.names("loss_patch.")}
    return case, float(case[1:])


@DTYPES
@NORMALIZED
def test_loss_of_each_patch(norm_pix_loss: bool, dtype: torch.dtype) -> None:
    data, model, images, noise = whole_model(norm_pix_loss, dtype)
    case, ratio = details(data)
    kept, float64 = keep_lowest(noise, ratio), dtype == torch.float64
    prediction = model.decoder(model.backbone.tokens(images, kept.indices), kept)
    own = patch_errors(prediction, model.target(images))
    key = f"{case}.npl{int(norm_pix_loss)}"
    limit = tolerance(data, f"loss_patch.{key}")
    assert_close(own, recorded(data, "loss_patch", key), float64=float64, tolerance=limit)
    mean = (own * kept.masked).sum() / kept.masked.sum()
    assert torch.equal(mean, masked_error(prediction, model.target(images), kept.masked))


@DTYPES
@NORMALIZED
def test_gradients(norm_pix_loss: bool, dtype: torch.dtype) -> None:
    data, model, images, noise = whole_model(norm_pix_loss, dtype)
    float64 = dtype == torch.float64
    loss, _ = model.loss_of(images, keep_lowest(noise, details(data)[1]))
    loss.backward()
    halves: list[dict[str, Any]] = [
        {name: parameter.grad for name, parameter in half.named_parameters()}
        for half in (model.backbone, model.decoder)
    ]
    gradients = join(*halves)
    prefix = f"grad64.npl{int(norm_pix_loss)}."
    expected = data.tensors(prefix)
    trained = {name for name, gradient in gradients.items() if gradient is not None}
    assert trained == expected.keys()
    for name, gradient in expected.items():
        limit = tolerance(data, f"grad.npl{int(norm_pix_loss)}.{name}")
        value = gradients[name]
        assert_close(value, gradient, float64=float64, tolerance=limit, what=name)


@DTYPES
def test_targets(dtype: torch.dtype) -> None:
    data, model, images, _ = whole_model(True, dtype)
    assert_close(patchify(images, model.patch_size), data["target_raw"], float64=False)
    limit = tolerance(data, "target_norm")
    float64 = dtype == torch.float64
    assert_close(model.target(images), data["target_norm64"], float64=float64, tolerance=limit)


@DTYPES
def test_targets_of_constant_patches(dtype: torch.dtype) -> None:
    """In float32 the rounding error of a patch of variance 0 is divided by 1e-3."""
    data, float64 = golden("forward.npz"), dtype == torch.float64
    images = data.tensor("imgs_const", dtype)
    own = normalized(patchify(images, data.meta["config"]["patch"]))
    limit = 1e3 * 16 * 2.0**-23 * float(images.abs().max())
    assert_close(own, data["target_norm_const64"], float64=float64, tolerance=limit)


def test_what_enters_and_leaves_the_blocks() -> None:
    data, model, images, noise = whole_model(True, torch.float64)
    case, ratio = details(data)
    kept = keep_lowest(noise, ratio)
    encoder, decoder = model.backbone, model.decoder
    assert_close(encoder.embed(images)[:, 1:], data["embed64"], float64=True)
    tokens = encoder.embed(images, kept.indices)
    assert_close(tokens, data[f"enc_in64.{case}"], float64=True)
    for i, block in enumerate(encoder.blocks):
        tokens = block(tokens)
        assert_close(tokens, data[f"enc_block{i}_64.{case}"], float64=True, what=f"block {i}")
    own = decoder.embed_tokens(encoder.norm(tokens), kept)
    assert_close(own, data[f"dec_in64.{case}"], float64=True)


def test_pictures() -> None:
    data, model, images, noise = whole_model(True, torch.float64)
    case, ratio = details(data)
    kept = keep_lowest(noise, ratio)
    grid, size = model.backbone.grid_size, model.patch_size
    prediction = model.decoder(model.backbone.tokens(images, kept.indices), kept)
    drawn = unpatchify(prediction, size, grid)
    close = {"vis_pred64": drawn}
    hidden = kept.masked[..., None].expand_as(prediction)
    pixels = unpatchify(hidden.to(images.dtype), size, grid)
    close |= {"vis_masked64": images * (1 - pixels)}
    close |= {"vis_paste64": images * (1 - pixels) + drawn * pixels}
    assert torch.equal(pixels.float(), data.tensor(f"vis_mask.{case}"))
    for name, value in close.items():
        assert_close(value, data[f"{name}.{case}"], float64=True, what=name)


def test_a_mask_that_keeps_nothing_leaves_the_class_token() -> None:
    _, model, images, noise = whole_model(True, torch.float64)
    kept = keep_lowest(noise, 1 - 0.5 / noise.shape[1])
    latent = model.backbone.tokens(images, kept.indices)
    assert latent.shape[1] == 1
    assert model.decoder(latent, kept).shape == model.target(images).shape
    assert isinstance(kept, Kept)
    assert select(latent, kept.indices).shape[1] == 0
