"""SimMIM's encoder from a config, and its part of the dry run."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msn.config.kinds import SimMIMConfig
from msn.config.sections.resnet import ResNetSize as ResNetSection
from msn.config.sizes import RESNETS, ResNetSize
from msn.methods.base import Cost, Fact, activation_bytes
from msn.models.beit import Beit, BeitForm, init_as_simmim
from msn.models.mask_token import Maskable
from msn.models.mask_units import masked_units
from msn.models.resnet import ResNet
from msn.models.vit import build_encoder

if TYPE_CHECKING:
    from msn.methods.simmim import SimMIM


def build_encoder_of(config: SimMIMConfig, channels: int) -> Maskable:
    """Build the ViT or ResNet that the `meta` section describes."""
    meta, rate = config.meta, config.meta.drop_path_rate
    if meta.is_resnet:
        return ResNet(_resnet_size(config), in_chans=channels, drop_path_rate=rate)
    size, side = meta.vit_size, config.data.image_size
    if meta.positions == "learned":
        vit = build_encoder(size, image_size=side, in_chans=channels, drop_path_rate=rate)
        init_as_simmim(vit)
        return vit
    form = BeitForm(
        shared_bias=meta.positions == "shared",
        block_bias=meta.positions == "block",
        layer_scale=meta.layer_scale,
    )
    return Beit(size, form, image_size=side, in_chans=channels, drop_path_rate=rate)


def _resnet_size(config: SimMIMConfig) -> ResNetSize:
    own = config.meta.encoder
    if isinstance(own, ResNetSection):
        return own.size
    assert config.meta.model_name
    return RESNETS[config.meta.model_name]


def simmim_groups(method: nn.Module, *, resnet: bool) -> list[dict[str, Any]]:
    """Group parameters as the official code does: the token of a ViT is decayed, too.

    That of a ResNet is not, as in the public implementation.
    """
    of_resnet = ("mask_token", "mask_gamma") * resnet
    kept = (".bias", "cls_token", "pos_embed", *of_resnet)
    decayed: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            small = parameter.ndim == 1 or name.endswith(kept)
            (excluded if small else decayed).append(parameter)
    return [
        {"params": decayed, "decayed": True},
        {"params": excluded, "decayed": False, "weight_decay": 0.0},
    ]


def plan_lines(model: "SimMIM", config: SimMIMConfig) -> list[Fact]:
    """List the facts about the mask and the parameters of a model without data."""
    size, unit, token = config.data.image_size, model.masking.unit, model.token
    units = (size // unit) ** 2
    masked = masked_units(units, model.masking.ratio)
    where = f"the input of stage {token.stage}" if isinstance(model.backbone, ResNet) else "patches"
    places = (size // token.stride) ** 2
    fill = {"none": "kept", "zero": "the data set's mean", "mean": "the image's mean"}
    weights = " + ".join(
        [model.loss.kind]
        + [f"{model.loss.frequency_weight:g} x frequency"] * bool(model.loss.frequency_weight)
    )
    counts = [
        sum(parameter.numel() for parameter in part.parameters())
        for part in (model.backbone, model.token, model.decoder)
    ]
    return [
        ("image", f"1 x {size} px, {places} places of {token.stride} px at {where}"),
        (
            "mask",
            f"{masked} of {units} squares of {unit} px: {masked / units:.1%}; pixels there:"
            f" {fill[model.masking.fill]}",
        ),
        ("loss", weights),
        ("parameters", "encoder {:,}, token {:,}, decoder {:,}".format(*counts)),
    ]


def cost(model: "SimMIM", size: int, *, bf16: bool) -> Cost:
    """Count what one image costs in a step, on a model without data."""
    encoder, kept = model.backbone, [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[0] += inputs[0].numel()

    # Two images, as BatchNorm wants more than one row.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(2, encoder.in_chans, size, size)
        units = torch.zeros(2, *(2 * [size // model.masking.unit]), dtype=torch.bool)
        hooks = [
            module.register_forward_pre_hook(count)
            for module in encoder.modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        ]
        pixels, _ = model.reconstruct(images, units)
        pixels.sum().backward()
    for hook in hooks:
        hook.remove()
    if isinstance(encoder, ResNet):
        held = kept[0] / 2 * (2 if bf16 else 4)
    else:
        held = activation_bytes(encoder.blocks, 1 + (size // model.token.stride) ** 2, bf16=bf16)
    return Cost(counter.get_total_flops() / 2, held)
