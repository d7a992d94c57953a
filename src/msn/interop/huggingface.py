"""Hugging Face folders: `config.json`, `model.safetensors`, `preprocessor_config.json`.

A ViT is written as ViTMSN, under the parameter names of transformers 4, which version 5 reads, too,
and read under either, also as ViT (which DINO's are, too) or ViTMAE. A ResNet is one on both sides.
Neither needs transformers.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from msn.config.sizes import EncoderSize, ResNetSize
from msn.data.normalization import Normalization
from msn.data.views import eval_short_side
from msn.interop import card, resnets, valid
from msn.interop.classifiers import without_unit_length
from msn.interop.tensorfile import read_json, read_tensors
from msn.interop.weights import (
    Classifier,
    Tensors,
    Weights,
    require_facts,
    require_plain,
    weights_from,
)
from msn.runtime.checkpoint import shown
from msn.runtime.errors import UserError
from msn.runtime.files import new_folder, write_json

MODEL_TYPE = "vit_msn"
PREFIX = "vit."
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PIXELS = {"mask_token": "vit.embeddings.mask_token"}
"""Names of what reconstructs pixels, where they differ there."""
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6}
"""What every MSN encoder has; a folder with other values is of another model."""
SMALL_EPS = 1e-12
"""Default of ViT and ViTMAE there; the trainings had 1e-6, as MSN. Beside the variance of a trained
token neither is anything that float32 keeps."""
LEFT_OUT = {
    MODEL_TYPE: ("embeddings.mask_token",),  # its masking by replacement, not MSN's
    "vit": ("embeddings.mask_token", "pooler.", "decoder."),
    "vit_mae": ("decoder.",),
    resnets.MODEL_TYPE: (),
}
"""Parts beside the encoder by `model_type` of folders that can be read."""
OTHERS = {
    "dinov2": "scales each branch of a block (LayerScale)",
    "dinov2_with_registers": "has register tokens and LayerScale",
    "dinov3_vit": "has rotary positions, register tokens and LayerScale",
    "deit": "has a distillation token",
    "ijepa": "has no class token",
    "beit": "has relative positions and LayerScale",
    "data2vec-vision": "has relative positions and LayerScale",
    "swin": "has windows of attention",
}
"""Models alike, and how they differ."""
FACTS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "hidden",
}
"""Keys of the config by our names of what they say."""

OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
BLOCK_4 = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
BLOCK_5 = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Official names and those of a layer of transformers, by major version; it splits q, k, v."""


def write(folder: Path, weights: Weights) -> None:
    """Write a folder that `from_pretrained` of ViTMSN, ResNet and the Auto classes read.

    With SimMIM's token and decoder, and without classifier, it is one of
    `ViTForMaskedImageModeling`.

    Raises:
        UserError: the encoder has a convolutional stem, which ViTMSN has not, or groups or wider
            blocks, which ResNet has not; or the folder exists or cannot be written.
    """
    require_plain(weights, "ViTMSN")
    size = weights.architecture.size
    weights = without_unit_length(weights, folder)
    if isinstance(size, ResNetSize):
        tensors, config = _of_resnet(weights, size, folder)
    else:
        tensors, config = _of_vit(weights, size, folder)
    if weights.classifier:
        names = [f"LABEL_{label}" for label in range(len(weights.classifier.bias))]
        config["id2label"] = {str(label): name for label, name in enumerate(names)}
        config["label2id"] = {name: label for label, name in enumerate(names)}
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / CONFIG, config)
        write_json(temporary / PREPROCESSOR, _preprocessor(weights))
        (temporary / "README.md").write_text(card.huggingface(weights), encoding="utf-8")


def _of_vit(weights: Weights, size: EncoderSize, folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Give the tensors and the config of a folder of a ViT."""
    if size.patch_size is None:
        raise UserError(
            f"{folder}: ViTMSN of Hugging Face has no convolutional stem, which this encoder has;"
            " export to official or onnx"
        )
    tensors = to_huggingface(weights.encoder)
    config = _config(weights, size)
    if weights.classifier:
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()}
        tensors |= {f"classifier.{n}": t for n, t in weights.classifier.tensors().items()}
        config["architectures"] = ["ViTMSNForImageClassification"]
    elif weights.pixels:
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()}
        tensors |= {PIXELS.get(name, name): tensor for name, tensor in weights.pixels.items()}
        config["architectures"] = ["ViTForMaskedImageModeling"]
        config |= {"model_type": "vit", "encoder_stride": size.patch_size}
    return tensors, config


def _of_resnet(weights: Weights, size: ResNetSize, folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Give the tensors and the config of a folder of a ResNet."""
    tensors = resnets.to_huggingface(weights.encoder)
    config = resnets.huggingface_config(size, weights.architecture.in_chans, folder)
    config["architectures"] = ["ResNetModel"]
    if weights.classifier:
        tensors = {resnets.PREFIX + name: tensor for name, tensor in tensors.items()}
        tensors |= {f"classifier.1.{n}": t for n, t in weights.classifier.tensors().items()}
        config["architectures"] = ["ResNetForImageClassification"]
    return tensors, config


def read(folder: Path) -> Weights:
    """Read a folder of ViTMSN, ViT, ViTMAE or ResNet, with or without classifier, sharded or not.

    Raises:
        UserError: not such a folder, or its tensors are not those that its config says.
    """
    path = folder / CONFIG
    config = read_json(path)
    kind = _model_type(config, path)
    named = valid.dense(dict(read_tensors(folder)), str(folder))
    weights = _read_resnet(named, config, folder) if kind == resnets.MODEL_TYPE else None
    weights = weights or _read_vit(named, config, LEFT_OUT[kind], folder)
    labels = config.get("id2label")
    if weights.classifier and isinstance(labels, dict):
        require_facts(weights, {"id2label": len(labels)}, {"id2label": "classes"}, path)
    return weights


def _read_resnet(named: Tensors, config: dict[str, Any], folder: Path) -> Weights:
    """Read what a folder of a ResNet holds."""
    tensors = {name.removeprefix(resnets.PREFIX): tensor for name, tensor in named.items()}
    weight, bias = tensors.pop("classifier.1.weight", None), tensors.pop("classifier.1.bias", None)
    weights = weights_from(
        resnets.from_huggingface(tensors),
        path=folder,
        classifier=Classifier(weight, bias) if weight is not None and bias is not None else None,
        normalization=_normalization(folder),
        image_size=_image_size(folder),
    )
    size = weights.architecture.size
    if not isinstance(size, ResNetSize):
        raise UserError(f"{folder}: its config is of a ResNet, its tensors are not; get it anew")
    resnets.require_facts(config, size, weights.architecture.in_chans, folder / CONFIG)
    return weights


def _read_vit(
    named: Tensors, config: dict[str, Any], left_out: tuple[str, ...], folder: Path
) -> Weights:
    """Read what a folder of a ViT holds, but for the parts that are left out."""
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    tensors = {name: t for name, t in tensors.items() if not name.startswith(left_out)}
    weight, bias = tensors.pop("classifier.weight", None), tensors.pop("classifier.bias", None)
    weights = weights_from(
        from_huggingface(tensors, folder),
        path=folder,
        num_heads=config.get("num_attention_heads", 12),
        classifier=Classifier(weight, bias) if weight is not None and bias is not None else None,
        normalization=_normalization(folder),
    )
    require_facts(weights, config, FACTS, folder / CONFIG)
    return weights


def _model_type(config: dict[str, Any], path: Path) -> str:
    """Read the type of the model from its config, and refuse one whose encoder is not MSN's."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in LEFT_OUT:
        reason = OTHERS.get(kind) if isinstance(kind, str) else None
        raise UserError(
            f"{path}: model_type is {shown(repr(kind))}"
            f"{f', which {reason}, as MSN has not' if reason else ''};"
            f" only {', '.join(map(repr, LEFT_OUT))} can be imported"
        )
    for key, value in FIXED.items() if kind != resnets.MODEL_TYPE else ():
        eps_alike = key == "layer_norm_eps" and kind != MODEL_TYPE and config.get(key) == SMALL_EPS
        if config.get(key, value) != value and not eps_alike:
            raise UserError(f"{path}: {key} {shown(repr(config[key]))} is not MSN's {value!r}")
    return kind


def to_huggingface(encoder: Tensors) -> Tensors:
    """Rename the tensors of an encoder without head as transformers 4 does."""
    renamed: Tensors = {}
    for name, tensor in encoder.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+?)(?:\.(weight|bias))?", name)
        if not block:
            renamed[_outer(name, OUTER)] = tensor
            continue
        number, part, kind = block.groups()
        if part == "attn.qkv":
            for third, values in zip("qkv", tensor.chunk(3), strict=True):
                theirs = f"encoder.layer.{number}.{BLOCK_4[f'attn.{third}']}.{kind}"
                renamed[theirs] = values.contiguous()
        else:
            renamed[f"encoder.layer.{number}.{BLOCK_4[part]}.{kind}"] = tensor
    return renamed


def from_huggingface(tensors: Tensors, path: Path) -> Tensors:
    """Rename tensors of transformers 4 or 5 to the official names.

    Unknown names stay as they are.

    Raises:
        UserError: queries, keys and values of a block are not of one shape; `path` is named.
    """
    renamed: Tensors = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    outer = {theirs: ours for ours, theirs in OUTER.items()}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"(encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)", name)
        if not block:
            renamed[_outer(name, outer)] = tensor
            continue
        stack, number, part, kind = block.groups()
        names = {
            theirs: ours for ours, theirs in (BLOCK_5 if stack == "layers" else BLOCK_4).items()
        }
        ours = names.get(part)
        if ours is None:
            renamed[name] = tensor
        elif ours in ("attn.q", "attn.k", "attn.v"):
            thirds.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[ours] = tensor
        else:
            renamed[f"blocks.{number}.{ours}.{kind}"] = tensor
    for name, parts in thirds.items():
        shapes = {(tuple(part.shape), part.dtype) for part in parts.values()}
        if len(shapes) > 1 or () in dict(shapes):
            raise UserError(
                f"{path}: {name}: query, key and value have the shapes"
                f" {', '.join(str(shape) for shape, _ in shapes)}, must be one; get the folder anew"
            )
        if len(parts) == 3:  # else it is missing, and said to be
            renamed[name] = torch.cat([parts[f"attn.{third}"] for third in "qkv"])
    return renamed


def _outer(name: str, names: dict[str, str]) -> str:
    """Translate a name outside the blocks: all of it, or what is before `.weight` or `.bias`."""
    stem, _, kind = name.rpartition(".")
    return names.get(name) or (f"{names[stem]}.{kind}" if stem in names else name)


def _config(weights: Weights, size: EncoderSize) -> dict[str, Any]:
    return {
        "architectures": ["ViTMSNModel"],
        "model_type": MODEL_TYPE,
        "hidden_size": size.embed_dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "intermediate_size": int(size.embed_dim * size.mlp_ratio),
        "image_size": weights.architecture.image_size,
        "patch_size": size.patch_size,
        "num_channels": weights.architecture.in_chans,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        **FIXED,
    }


def _preprocessor(weights: Weights) -> dict[str, Any]:
    """Describe the evaluation view for transformers, as a resize and a center crop."""
    image_size, channels = weights.architecture.image_size, weights.architecture.in_chans
    return {
        # ViT's own processor cannot crop; this one of transformers can, under all versions.
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": eval_short_side(image_size)},
        "resample": {"bilinear": 2, "bicubic": 3}[weights.interpolation],  # as Pillow counts them
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(weights.normalization.mean),
        "image_std": list(weights.normalization.std),
    }


def _normalization(folder: Path) -> Normalization | None:
    """Read the normalization of images that the folder states; give None if it states none."""
    if not (folder / PREPROCESSOR).exists():
        return None
    values = read_json(folder / PREPROCESSOR)
    mean, std = values.get("image_mean"), values.get("image_std")
    return None if mean is None or std is None else Normalization(mean, std)


def _image_size(folder: Path) -> Any:
    """Read the side of the images that the folder states, unchecked; None if it states none."""
    path = folder / PREPROCESSOR
    values = read_json(path) if path.exists() else {}
    for key in ("crop_size", "size"):
        found = values.get(key)
        sides = found if isinstance(found, dict) else {"height": found}
        for side in (sides.get("height"), sides.get("shortest_edge")):
            if side is not None:
                return side
    return None
