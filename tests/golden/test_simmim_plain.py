"""SimMIM with a plain ViT, as lightly wires it: fixed positions, mean L1 of masked patches."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msn.config.sizes import EncoderSize
from msn.methods.pixel_losses import masked_l1
from msn.methods.simmim import SimMIM
from msn.models.mask_token import MaskToken
from msn.models.mask_units import enlarged
from msn.models.vit import VisionTransformer, build_encoder
from tests.golden.record import DTYPES, Golden, assert_close
from tests.golden.simmim_models import golden

RENAMED = {
    "class_token": "cls_token",
    "conv_proj.": "patch_embed.proj.",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln.": "norm.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
}


def own_name(name: str) -> str:
    name = name.removeprefix("backbone.vit.")
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return f"backbone.{name}"


def in_order(weight: Tensor, side: int) -> Tensor:
    """Rows of a decoder of pixels (row, column, channel), as pixel shuffle wants them."""
    pixels: Tensor = weight.unflatten(0, (side, side, -1)).movedim(2, 0)
    return pixels.flatten(0, 2)


def rebuild(data: Golden) -> SimMIM:
    config: dict[str, Any] = data.meta["config"]
    ratio = config["mlp_dim"] / config["hidden_dim"]
    sizes = (config["hidden_dim"], config["num_layers"], config["num_heads"], ratio)
    encoder = build_encoder(
        EncoderSize(config["patch_size"], *sizes), image_size=config["image_size"]
    )
    model = SimMIM(encoder, MaskToken(encoder))
    state = {
        own_name(name): data.tensor(f"sd.{name}")
        for name in data.names("sd.")
        if name.startswith("backbone.vit.") and ".heads." not in name
    }
    state["backbone.pos_embed"] = data.tensor("pos_sincos")
    state["token.mask_token"] = data.tensor("sd.backbone.mask_token")
    for part in ("weight", "bias"):
        stored = in_order(data.tensor(f"sd.decoder.{part}"), config["patch_size"])
        state[f"decoder.0.{part}"] = stored.reshape(model.decoder.get_parameter(f"0.{part}").shape)
    model.load_state_dict(state)
    return model


@DTYPES
def test_forward_and_backward(dtype: torch.dtype) -> None:
    data = golden("lightly_plain_vit.npz")
    model, side = rebuild(data).to(dtype), data.meta["config"]["patch_size"]
    close = partial(assert_close, float64=dtype == torch.float64, tolerance=1e-6)
    images, masked = data.tensor("x", dtype), data.tensor("idx_mask")
    rows = images.shape[-1] // side
    mask = torch.zeros(len(images), rows**2, dtype=torch.bool).scatter_(1, masked - 1, value=True)
    encoder = model.backbone
    assert isinstance(encoder, VisionTransformer)
    tokens = encoder.tokens(images, mask=mask, mask_token=model.token.mask_token)
    close(tokens, data["encoded64"])
    units = mask.unflatten(1, (rows, rows))
    pixels = model.decoder(model.token.encode(encoder, images, units))
    loss = masked_l1(pixels, images, enlarged(units, side))
    assert loss.item() == pytest.approx(float(data["loss64"]), rel=1e-6)
    loss.backward()
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    for name in data.names("grad."):
        if name.startswith("backbone.vit."):
            gradient = parameters[own_name(name)].grad
            assert gradient is not None
            expected = data.tensor(f"grad.{name}")
            scale = float(expected.abs().max())
            assert_close(gradient, expected, float64=False, tolerance=1e-6 * scale, what=name)
    gradient = parameters["token.mask_token"].grad
    assert gradient is not None
    assert_close(gradient, data["grad.backbone.mask_token"], float64=False, tolerance=1e-8)
