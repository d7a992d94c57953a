"""ResNets from elsewhere: their size from shapes, and how transformers and timm describe them.

torchvision, timm and this project name the tensors alike; transformers does not.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from msn.config.sizes import RESNETS, ResNetSize
from msn.runtime.checkpoint import shown
from msn.runtime.errors import UserError

Tensors = dict[str, Tensor]
MODEL_TYPE = "resnet"  # of transformers
PREFIX = "resnet."
FIXED = {
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
"""What the plain family has; a folder of transformers with other values is of another model."""
FIRST = "layer1.0.conv1.weight"
MOST_BLOCKS = 1000
TIMM_WIDTH = 64  # of the stem, which timm has fixed

STEM = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
BLOCK = {
    "conv1": "layer.0.convolution",
    "bn1": "layer.0.normalization",
    "conv2": "layer.1.convolution",
    "bn2": "layer.1.normalization",
    "conv3": "layer.2.convolution",
    "bn3": "layer.2.normalization",
    "downsample.0": "shortcut.convolution",
    "downsample.1": "shortcut.normalization",
}
"""Names of torchvision and of transformers, of the stem and within a block."""


def is_resnet(tensors: Mapping[str, Any]) -> bool:
    """Tell whether tensors are of a ResNet under torchvision's names."""
    return FIRST in tensors


def infer_size(tensors: Tensors, path: Path) -> tuple[ResNetSize, int]:
    """Infer size and image channels from the shapes of a ResNet without its classifier.

    Only what the shapes of a few tensors say; that all others fit is for the caller to check.

    Raises:
        UserError: a tensor that every ResNet has is missing or of another form.
    """
    width, in_chans = _convolution(tensors, "conv1.weight", path)
    layers = (
        _blocks(tensors, 1, path),
        _blocks(tensors, 2, path),
        _blocks(tensors, 3, path),
        _blocks(tensors, 4, path),
    )
    if "layer1.0.conv3.weight" not in tensors:
        return ResNetSize("basic", layers, width), in_chans
    inner, group_inner = _convolution(tensors, "layer1.0.conv2.weight", path)
    groups = max(inner // group_inner, 1)
    group_width = -(-64 * (inner // groups) // width)
    return ResNetSize("bottleneck", layers, width, groups, group_width), in_chans


def to_huggingface(tensors: Tensors) -> Tensors:
    """Rename the tensors of a ResNet as transformers does."""
    return {_to_huggingface(name): tensor for name, tensor in tensors.items()}


def from_huggingface(tensors: Tensors) -> Tensors:
    """Rename tensors of transformers to torchvision's names; unknown names stay as they are."""
    return {_from_huggingface(name): tensor for name, tensor in tensors.items()}


def huggingface_config(size: ResNetSize, in_chans: int, path: Path) -> dict[str, Any]:
    """Describe a ResNet as `config.json` of transformers does.

    Raises:
        UserError: transformers has no such ResNet; `path` was to be written.
    """
    if (size.groups, size.group_width) != (1, 64):
        raise UserError(
            f"{path}: ResNetModel of Hugging Face has neither groups nor wider blocks, which this"
            " encoder has; export to timm, official or onnx"
        )
    expansion = size.embed_dim // (8 * size.width)
    return {
        "model_type": MODEL_TYPE,
        "num_channels": in_chans,
        "embedding_size": size.width,
        "hidden_sizes": [size.width * expansion * 2**stage for stage in range(4)],
        "depths": list(size.layers),
        "layer_type": size.block,
        **FIXED,
    }


def require_facts(config: dict[str, Any], size: ResNetSize, in_chans: int, path: Path) -> None:
    """Refuse a config of transformers that contradicts the tensors that it comes with.

    Raises:
        UserError: it does, or it is of a ResNet that computes something else.
    """
    expected = huggingface_config(size, in_chans, path)
    for key, fact in expected.items():
        said = config.get(key, fact)
        if said == fact:
            continue
        reason = (
            f"only {fact!r} can be imported"
            if key in FIXED
            else f"the tensors beside it are of {fact}; download the folder again"
        )
        raise UserError(f"{path}: {key} is {shown(repr(said))}, but {reason}")


def timm_model(size: ResNetSize, path: Path) -> tuple[str, dict[str, Any]]:
    """Give timm's name of a ResNet, and the arguments that make it of this size.

    Raises:
        UserError: timm has no such ResNet; `path` was to be written.
    """
    if size.width != TIMM_WIDTH:
        raise UserError(
            f"{path}: the stem of timm's ResNet has {TIMM_WIDTH} channels, that of this encoder"
            f" {size.width}; export to huggingface, official or onnx"
        )
    named = next((name for name, known in RESNETS.items() if known == size), None)
    if named:
        return named, {}
    arguments = {
        "layers": list(size.layers),
        "cardinality": size.groups,
        "base_width": size.group_width,
    }
    return ("resnet50" if size.block == "bottleneck" else "resnet18"), arguments


def _convolution(tensors: Tensors, name: str, path: Path) -> tuple[int, int]:
    """Give the channels of a convolution's output, and those of its input in a group."""
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != 4 or 0 in tensor.shape:
        found = "missing" if tensor is None else f"of the shape {tuple(tensor.shape)}"
        raise UserError(
            f"{path}: {name} is {found}, must be a convolution's weight of four axes; check that"
            " the file is whole and of a plain ResNet"
        )
    return tensor.shape[0], tensor.shape[1]


def _blocks(tensors: Tensors, stage: int, path: Path) -> int:
    """Count the blocks of a stage, which must be numbered from 0 without a gap."""
    found = (re.match(rf"layer{stage}\.(0|[1-9]\d{{0,3}})\.", name) for name in tensors)
    numbers = {int(match[1]) for match in found if match}
    count = len(numbers)
    if not numbers or max(numbers) >= count or count > MOST_BLOCKS:
        raise UserError(
            f"{path}: stage {stage} has {count} blocks; they must be numbered from 0 without a gap,"
            f" 1 to {MOST_BLOCKS}; check that the file is whole and of a ResNet"
        )
    return count


def _to_huggingface(name: str) -> str:
    if match := re.fullmatch(r"(conv1|bn1)\.(\w+)", name):
        return f"{STEM[match[1]]}.{match[2]}"
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)\.(\w+)", name)
    assert match, name
    stage, block, part, kind = match.groups()
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{BLOCK[part]}.{kind}"


def _from_huggingface(name: str) -> str:
    part, _, kind = name.rpartition(".")
    stem = {theirs: ours for ours, theirs in STEM.items()}
    if part in stem:
        return f"{stem[part]}.{kind}"
    match = re.fullmatch(r"encoder\.stages\.([0-3])\.layers\.(\d+)\.(.+)", part)
    inner = {theirs: ours for ours, theirs in BLOCK.items()}
    if match and match[3] in inner:
        return f"layer{int(match[1]) + 1}.{match[2]}.{inner[match[3]]}.{kind}"
    return name
