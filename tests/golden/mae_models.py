"""Models of the golden numbers of MAE."""

from functools import partial
from typing import Any

import torch

from msn.config.sizes import EncoderSize
from msn.interop.weights import Tensors
from msn.methods.mae import MAE
from msn.models.mae_decoder import Decoder
from msn.models.vit import VisionTransformer, build_encoder
from tests.golden import record

golden = partial(record.golden, folder=record.MAE)

PREFIX = "decoder_"
MASK_TOKEN = "mask_token"


def split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Part official tensors into the encoder's and the decoder's, each by its own names."""
    decoder = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX) or name == MASK_TOKEN
    }
    encoder = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(PREFIX) and name != MASK_TOKEN
    }
    return encoder, decoder


def join(encoder: Tensors, decoder: Tensors) -> Tensors:
    """Name the tensors of both halves as the official code does."""
    named = {
        name if name == MASK_TOKEN else PREFIX + name: tensor for name, tensor in decoder.items()
    }
    return {**encoder, **named}


def encoder_of(config: dict[str, Any]) -> VisionTransformer:
    """An encoder of recorded sizes."""
    size = EncoderSize(config["patch"], config["dim"], config["depth"], config["heads"])
    return build_encoder(size, image_size=config["img"], positions="sincos")


def mae_of(data: record.Golden, dtype: torch.dtype, **settings: Any) -> MAE:
    """The recorded model with the recorded weights."""
    config: dict[str, Any] = data.meta["config"]
    encoder = encoder_of(config)
    values = config["patch"] ** 2 * encoder.in_chans
    decoder = Decoder(
        config["dim"],
        encoder.grid_size,
        values,
        embed_dim=config["dec_dim"],
        depth=config["dec_depth"],
        num_heads=config["dec_heads"],
    )
    halves = split(data.tensors("sd."))
    for module, tensors in zip((encoder, decoder), halves, strict=True):
        module.load_state_dict(tensors)
    return MAE(encoder, decoder, **settings).to(dtype)
