"""timm folders of a Vision Transformer or ResNet: `config.json` and `model.safetensors`.

timm names the tensors as the official code and torchvision do. Written without building a model of
timm's.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from msn.config.sizes import EncoderSize, ResNetSize
from msn.data.normalization import Normalization
from msn.data.views import eval_short_side
from msn.interop import card, resnets
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
        UserError: timm has no such encoder: no ViT with a convolutional stem, no ResNet with
            another stem than of 64 channels; or the folder exists or cannot be written.
    """
    require_plain(weights, "timm's VisionTransformer")
    weights = without_unit_length(weights, folder)
    tensors = dict(weights.encoder)
    config = _config(weights, folder)
    if weights.classifier:
        name = config["pretrained_cfg"]["classifier"]
        tensors |= {f"{name}.{part}": t for part, t in weights.classifier.tensors().items()}
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / CONFIG, config)
        readme = card.timm(weights, config["architecture"])
        (temporary / "README.md").write_text(readme, encoding="utf-8")


def read(folder: Path, *, num_heads: int | None = None) -> Weights:
    """Read a folder of a plain timm ViT (class token, no pooling norm or extra tokens) or ResNet.

    Raises:
        UserError: not such a folder, or of a model with other parts, which are listed, or its
            tensors are not those that its config says.
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
        image_size=_side(cfg.get("input_size")),
    )
    if isinstance(weights.architecture.size, EncoderSize):
        require_facts(weights, arguments, FACTS, path)
    require_facts(weights, config, {"num_classes": "classes"}, path)
    return weights


def from_tensors(
    tensors: Tensors,
    *,
    path: Path,
    num_heads: int | None = None,
    normalization: Normalization | None = None,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> Weights:
    """Build weights from the state dict of a ViT of timm, MAE or SimMIM, or of a ResNet."""
    head = "fc" if resnets.is_resnet(tensors) else "head"
    ends = [f"{head}.weight", f"{head}.bias"]
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in (*ends, "mask_token")
        and not name.startswith("decoder_")
        and not name.endswith(".relative_position_index")  # of SimMIM: tells what sizes tell
    }
    classifier = None
    if tensors.keys() >= set(ends):
        classifier = Classifier(tensors[ends[0]], tensors[ends[1]])
    return weights_from(
        rest,
        path=path,
        num_heads=num_heads,
        classifier=classifier,
        normalization=normalization,
        config=config,
        image_size=image_size,
    )


def _vit_model(size: EncoderSize, side: int, folder: Path) -> tuple[str, dict[str, Any]]:
    """Give timm's name of a ViT, and the arguments that make it of this size."""
    if size.patch_size is None:
        raise UserError(
            f"{folder}: timm's VisionTransformer has no convolutional stem, which this encoder has;"
            " export to official or onnx"
        )
    name = NAMES.get((size.embed_dim, size.patch_size), next(iter(NAMES.values())))
    return name, {
        "img_size": side,
        "patch_size": size.patch_size,
        "embed_dim": size.embed_dim,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mlp_ratio": size.mlp_ratio,
    }


def _config(weights: Weights, folder: Path) -> dict[str, Any]:
    size = weights.architecture.size
    side, channels = weights.architecture.image_size, weights.architecture.in_chans
    if isinstance(size, ResNetSize):
        name, arguments = resnets.timm_model(size, folder)
        ends = ("conv1", "fc")
    else:
        name, arguments = _vit_model(size, side, folder)
        ends = ("patch_embed.proj", "head")
    pool = "avg" if isinstance(size, ResNetSize) else "token"
    classes = len(weights.classifier.bias) if weights.classifier else 0
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": size.embed_dim,
        "global_pool": pool,
        "model_args": arguments | {"in_chans": channels},
        "pretrained_cfg": {
            "tag": "msn",
            "architecture": name,
            "custom_load": False,
            "input_size": [channels, side, side],
            "fixed_input_size": isinstance(size, EncoderSize),
            "interpolation": weights.interpolation,
            "crop_pct": side / eval_short_side(side),
            "crop_mode": "center",
            "mean": list(weights.normalization.mean),
            "std": list(weights.normalization.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": ends[0],
            "classifier": ends[1],
        },
    }


def _side(input_size: Any) -> Any:
    """Give the side of the images that timm's `input_size` (C, H, W) states, unchecked."""
    return input_size[-1] if isinstance(input_size, list) and len(input_size) == 3 else None
