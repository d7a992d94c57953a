"""SimMIM's networks with recorded weights."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from msn.config.sizes import EncoderSize
from msn.methods.simmim import PixelLoss, SimMIM, UnitMasking
from msn.models.beit import Beit, BeitForm
from msn.models.mask_token import MaskToken
from tests.golden import record
from tests.golden.record import SIMMIM, Golden

golden = partial(record.golden, folder=SIMMIM)


def vit_of(config: dict[str, Any]) -> Beit:
    """The official ViT of a recorded configuration."""
    keys = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    return Beit(
        EncoderSize(**{key: config[key] for key in keys}),
        BeitForm(
            shared_bias=config["use_shared_rel_pos_bias"],
            block_bias=config["use_rel_pos_bias"],
            absolute=config["use_abs_pos_emb"],
            layer_scale=config["init_values"],
            qkv_bias=config["qkv_bias"],
            final_norm=not config["use_mean_pooling"],
        ),
        image_size=config["img_size"],
        drop_path_rate=config["drop_path_rate"],
    )


def simmim_of(data: Golden, dtype: torch.dtype) -> SimMIM:
    """SimMIM with a ViT at the recorded weights."""
    encoder = vit_of(data.meta["config"])
    masking = UnitMasking(data.meta["config"]["mask_patch_size"])
    model = SimMIM(encoder, MaskToken(encoder), masking=masking, loss=PixelLoss()).to(dtype)
    named = official_names(model)
    state = {name: data.tensor(f"sd.{name}") for name in named}
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(state[name])
    return model


def official_names(model: SimMIM) -> dict[str, nn.Parameter]:
    """The parameters by their names in the official code."""
    renamed = {"backbone.": "encoder.", "token.": "encoder.", "decoder.": "decoder."}
    names: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        own = next(prefix for prefix in renamed if name.startswith(prefix))
        names[renamed[own] + name.removeprefix(own)] = parameter
    return names


def units_of(mask: Tensor, cells: int) -> Tensor:
    """The units (B, rows, columns) of a mask whose units are `cells` wide and high."""
    return mask[..., ::cells, ::cells].bool()
