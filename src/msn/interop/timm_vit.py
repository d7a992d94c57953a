"""timm folders of a Vision Transformer: `config.json` and `model.safetensors`.

timm names the tensors as the official code does. Written without building a model of timm's.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from msn.data.normalization import Normalization
from msn.data.views import eval_short_side
from msn.interop import card
from msn.interop.architecture import section
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
from msn.runtime.errors import UserError
from msn.runtime.files import new_folder, write_json

CONFIG = "config.json"
NAMES = {
    (192, 16): "vit_tiny_patch16_224",
    (384, 16): "vit_small_patch16_224",
    (384, 8): "vit_small_patch8_224",
    (768, 16): "vit_base_patch16_224",
    (768, 8): "vit_base_patch8_224",
    (1024, 16): "vit_large_patch16_224",
}
"""timm's architectures by width and patch; any other size is the first, with arguments."""

FACTS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "channels",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
}
"""Its arguments by our names of what they say."""


def write(folder: Path, weights: Weights) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER")` builds and loads.

    Its `model.safetensors` is also the `checkpoint_path` of the architecture that the config names.

    Raises:
        UserError: the encoder has a convolutional stem, which timm's ViT has not; or the folder
            exists or cannot be written.
    """
    require_plain(weights, "timm's VisionTransformer")
    if weights.architecture.size.patch_size is None:
        raise UserError(
            f"{folder}: timm's VisionTransformer has no convolutional stem, which this encoder has;"
            " export to official or onnx"
        )
    weights = without_unit_length(weights, folder)
    tensors = dict(weights.encoder)
    if weights.classifier:
        tensors |= {f"head.{name}": t for name, t in weights.classifier.tensors().items()}
    config = _config(weights)
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / CONFIG, config)
        readme = card.timm(weights, config["architecture"])
        (temporary / "README.md").write_text(readme, encoding="utf-8")


def read(folder: Path, *, num_heads: int | None = None) -> Weights:
    """Read a folder of a plain timm ViT: class token, no pooling norm, no extra tokens.

    Raises:
        UserError: not such a folder, or of a ViT with other parts, which are listed, or its tensors
            are not those that its config says.
    """
    path = folder / CONFIG
    config = read_json(path)
    arguments = section(config, "model_args", path)
    cfg = section(config, "pretrained_cfg", path) or config
    if not isinstance(config["architecture"], str):
        raise UserError(f"{path}: architecture is {config['architecture']}, must be text")
    statistics: list[Any] = [cfg.get("mean"), cfg.get("std")]
    weights = from_tensors(
        read_tensors(folder),
        path=folder,
        num_heads=arguments.get("num_heads", num_heads),
        normalization=None if statistics == [None, None] else Normalization(*statistics),
    )
    require_facts(weights, arguments, FACTS, path)
    require_facts(weights, config, {"num_classes": "classes"}, path)
    return weights


def from_tensors(
    tensors: Tensors,
    *,
    path: Path,
    num_heads: int | None = None,
    normalization: Normalization | None = None,
) -> Weights:
    """Build weights from the state dict of a plain timm ViT, or of MAE without its decoder."""
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in ("head.weight", "head.bias", "mask_token")
        and not name.startswith("decoder_")
    }
    classifier = None
    if {"head.weight", "head.bias"} <= tensors.keys():
        classifier = Classifier(tensors["head.weight"], tensors["head.bias"])
    return weights_from(
        rest,
        path=path,
        num_heads=num_heads,
        classifier=classifier,
        normalization=normalization,
    )


def _config(weights: Weights) -> dict[str, Any]:
    size = weights.architecture.size
    side, channels = weights.architecture.image_size, weights.architecture.in_chans
    assert size.patch_size is not None
    name = NAMES.get((size.embed_dim, size.patch_size), next(iter(NAMES.values())))
    classes = len(weights.classifier.bias) if weights.classifier else 0
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": size.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": side,
            "patch_size": size.patch_size,
            "in_chans": channels,
            "embed_dim": size.embed_dim,
            "depth": size.depth,
            "num_heads": size.num_heads,
            "mlp_ratio": size.mlp_ratio,
        },
        "pretrained_cfg": {
            "tag": "msn",
            "architecture": name,
            "custom_load": False,
            "input_size": [channels, side, side],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": side / eval_short_side(side),
            "crop_mode": "center",
            "mean": list(weights.normalization.mean),
            "std": list(weights.normalization.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
