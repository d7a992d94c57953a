"""Hugging Face folders: `config.json`, `model.safetensors`, `preprocessor_config.json`.

A ViT is written as ViTMSN, with MAE's decoder as ViTMAE, under the names of transformers 4, which
version 5 reads, too, and read under either, also as ViT, which DINO's are. A ResNet is one on both
sides. Neither needs transformers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from msn.config.sizes import EncoderSize, ResNetSize
from msn.data.normalization import Normalization
from msn.data.views import eval_short_side
from msn.interop import card, pixels, resnets, valid
from msn.interop import huggingface_names as names
from msn.interop.architecture import Architecture
from msn.interop.classifiers import without_unit_length
from msn.interop.pixels import Pixels
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
MASK_TOKEN = "embeddings.mask_token"
DECODER = "decoder."
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6}
"""What every MSN encoder has; a folder with other values is of another model."""
SMALL_EPS = 1e-12
"""Default of ViT and ViTMAE there; the trainings had 1e-6, as MSN. Beside the variance of a trained
token neither is anything that float32 keeps."""
LEFT_OUT = {
    MODEL_TYPE: (MASK_TOKEN,),  # its masking by replacement, not MSN's
    "vit": (MASK_TOKEN, "pooler.", DECODER),
    "vit_mae": (DECODER,),
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
MAE = {
    "decoder_hidden_size": "decoder_dim",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
}
"""Keys of ViTMAE's config about its decoder, and our names of them."""
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


def write(folder: Path, weights: Weights) -> None:
    """Write a folder that `from_pretrained` of ViTMSN, ResNet and the Auto classes read.

    With MAE's decoder it is one of `ViTMAEForPreTraining`, with SimMIM's token and decoder of
    `ViTForMaskedImageModeling`; a classifier comes before both.

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
        labels = [f"LABEL_{label}" for label in range(len(weights.classifier.bias))]
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / CONFIG, config)
        write_json(temporary / PREPROCESSOR, _preprocessor(weights))
        readme = card.huggingface(weights, config["architectures"][0])
        (temporary / "README.md").write_text(readme, encoding="utf-8")


def _of_vit(weights: Weights, size: EncoderSize, folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Give the tensors and the config of a folder of a ViT."""
    if size.patch_size is None:
        raise UserError(
            f"{folder}: ViTMSN of Hugging Face has no convolutional stem, which this encoder has;"
            " export to official or onnx"
        )
    tensors = names.to_huggingface(weights.encoder)
    config = _config(weights, size)
    if weights.classifier:
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()}
        tensors |= {f"classifier.{n}": t for n, t in weights.classifier.tensors().items()}
        config["architectures"] = ["ViTMSNForImageClassification"]
    elif weights.pixels:
        beside, more = _of_pixels(weights.pixels, size.patch_size)
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()} | beside
        config |= more
    return tensors, config


def _of_pixels(found: Pixels, patch_size: int) -> tuple[Tensors, dict[str, Any]]:
    """Give the tensors of what predicts pixels, and what it adds to the config."""
    decoder, mae = found.parts["decoder"], found.mae
    if mae is None:
        tensors = {PREFIX + MASK_TOKEN: found.parts["mask"]["mask_token"]}
        config: dict[str, Any] = {"model_type": "vit", "encoder_stride": patch_size}
        config["architectures"] = ["ViTForMaskedImageModeling"]
    else:
        tensors = {}
        config = {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]}
        config |= {theirs: getattr(mae, ours) for theirs, ours in MAE.items()}
        config["decoder_intermediate_size"] = len(decoder["blocks.0.mlp.fc1.bias"])
        decoder = names.to_huggingface(decoder, names.DECODER)
    return tensors | {DECODER + name: tensor for name, tensor in decoder.items()}, config


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
    weights = weights or _read_vit(named, config, folder)
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
        raise UserError(
            f"{folder}: its config is of a ResNet, its tensors are not; download it again"
        )
    resnets.require_facts(config, size, weights.architecture.in_chans, folder / CONFIG)
    return weights


def _read_vit(named: Tensors, config: dict[str, Any], folder: Path) -> Weights:
    """Read what a folder of a ViT holds, but for the parts that are left out."""
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    left_out = LEFT_OUT[config["model_type"]]
    tensors = {name: tensor for name, tensor in bare.items() if not name.startswith(left_out)}
    weight, bias = tensors.pop("classifier.weight", None), tensors.pop("classifier.bias", None)
    weights = weights_from(
        names.from_huggingface(tensors, folder),
        path=folder,
        num_heads=config.get("num_attention_heads", 12),
        classifier=Classifier(weight, bias) if weight is not None and bias is not None else None,
        normalization=_normalization(folder),
    )
    require_facts(weights, config, FACTS, folder / CONFIG)
    return replace(weights, pixels=_read_pixels(bare, config, weights.architecture, folder))


def _read_pixels(
    tensors: Tensors, config: dict[str, Any], architecture: Architecture, folder: Path
) -> Pixels | None:
    """Read what predicts pixels: the decoder of ViTMAE, or of ViTForMaskedImageModeling.

    Raises:
        UserError: ViTMAE's does not fit its encoder, or is not what the config says.
    """
    decoder = {n.removeprefix(DECODER): t for n, t in tensors.items() if n.startswith(DECODER)}
    if not decoder:
        return None
    if config["model_type"] != "vit_mae":
        parts = {"decoder": decoder, "mask": {"mask_token": tensors.get(MASK_TOKEN)}}
        return pixels.find(parts, architecture, {}, folder) if MASK_TOKEN in tensors else None
    parts = {"decoder": names.from_huggingface(decoder, folder, names.DECODER)}
    said = {"norm_pix_loss": False, **{ours: config[k] for k, ours in MAE.items() if k in config}}
    found = pixels.find(parts, architecture, said, folder)
    if found is None or found.mae is None:
        raise UserError(
            f"{folder}: its decoder.* do not fit its encoder; download the folder again"
        )
    for key, ours in MAE.items():
        fact = getattr(found.mae, ours)
        if ours not in pixels.UNSEEN and config.get(key, fact) != fact:
            raise UserError(
                f"{folder / CONFIG}: {key} is {shown(config[key])}, but the tensors beside it are"
                f" of {fact}; download the folder again"
            )
    return found


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
