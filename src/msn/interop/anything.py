"""Weights from a file or folder of any known kind, told by what it holds."""

from pathlib import Path

from msn.interop import classifiers, huggingface, official, release, timm_vit
from msn.interop.official import Which
from msn.interop.tensorfile import read_file, read_json
from msn.interop.weights import Weights
from msn.runtime import checkpoint
from msn.runtime.checkpoint import CLASSIFIER
from msn.runtime.errors import UserError


def read(path: Path, *, which: Which = "target", num_heads: int | None = None) -> Weights:
    """Read an encoder from whatever is at `path`.

    That is a checkpoint of the official code or of this project, also of a fine-tuning; a folder
    for transformers or timm, or a release of a run; or a file of the plain tensors of a timm ViT.

    Args:
        path: a file or folder.
        which: target or anchor, where there are both.
        num_heads: attention heads, where nothing at `path` tells.

    Raises:
        UserError: nothing there, or of no known kind, or damaged.
    """
    if path.is_dir():
        return _read_folder(path, which=which, num_heads=num_heads)
    if path.suffix == ".safetensors":
        tensors = read_file(path)
        if any(name.endswith("embeddings.cls_token") for name in tensors):
            raise UserError(f"{path}: is of a folder for transformers; give that folder")
        return timm_vit.from_tensors(tensors, path=path, num_heads=num_heads)
    state = checkpoint.load(path, None)
    if "target_encoder" in state:
        return official.from_state(state, path=path, which=which, num_heads=num_heads)
    if CLASSIFIER in state:
        return classifiers.finetuned(state, path=path, num_heads=num_heads)
    tensors = checkpoint.state_dict(state, f"{path}: has no 'target_encoder', and what it holds")
    return timm_vit.from_tensors(tensors, path=path, num_heads=num_heads)


def _read_folder(folder: Path, *, which: Which, num_heads: int | None) -> Weights:
    if (folder / release.SUMS).exists():
        return official.read(release.checkpoint_in(folder), which=which, num_heads=num_heads)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: neither a folder for transformers or timm (no config.json) nor a release"
            f" (no {release.SUMS}); give a checkpoint file or such a folder"
        )
    if "architecture" in read_json(folder / "config.json"):
        return timm_vit.read(folder)
    return huggingface.read(folder)
