"""Read weights of any known format, recognized by content."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msn.interop import (
    classifiers,
    huggingface,
    official,
    pixels,
    release,
    resnets,
    timm_vit,
    valid,
)
from msn.interop.architecture import require_model, section
from msn.interop.official import Which
from msn.interop.tensorfile import read_file, read_json, require_file
from msn.interop.weights import Tensors, Weights
from msn.runtime import checkpoint
from msn.runtime.checkpoint import CLASSIFIER, State
from msn.runtime.errors import UserError

# Where files keep their weights: MSN and I-JEPA, DINO, averages of timm, MAE, timm, Lightning.
AVERAGED = ("target_encoder", "teacher", "state_dict_ema", "model_ema")
TRAINED = ("encoder", "student")
EITHER = ("model", "state_dict")
PLACES: dict[Which, tuple[str, ...]] = {
    "target": (*AVERAGED, *EITHER, *TRAINED),
    "anchor": (*TRAINED, *EITHER),
}
MOST_NESTED = 8


def read(
    path: str | Path,
    *,
    which: Which = "target",
    num_heads: int | None = None,
    model_name: str | None = None,
) -> Weights:
    """Read an encoder from whatever is at `path`.

    That is a checkpoint of this project, also of a fine-tuning, or of the official code; one of
    DINO, MAE, SimMIM, timm or Lightning with a ViT; a folder for transformers or timm, or a release
    of a run; or a file of the plain tensors of a ViT. Or, of all but MSN and DINO, a ResNet under
    torchvision's names.

    Args:
        path: a file or folder.
        which: target or anchor (teacher or student, average or not), where there are both.
        num_heads: attention heads, where nothing at `path` tells.
        model_name: of the official model that it has to be; None takes what it is.

    Raises:
        UserError: nothing there, or of no known kind, or damaged, or of another model.
    """
    path = Path(path)
    if path.is_dir():
        weights = _read_folder(path, which, num_heads)
    else:
        weights = _from_state(_contents(path), path, which, num_heads)
    if model_name:
        require_model(weights.architecture.size, model_name, path)
    return weights


def read_start(path: Path, *, num_heads: int | None, exact: bool) -> State:
    """Read the state that a run resumes or warm-starts from.

    That is a target encoder, an anchor if there is one, and what predicts pixels if there is any.

    Args:
        path: as for `read`.
        num_heads: of the run; None where its encoder has no attention.
        exact: give a checkpoint that holds the state of an optimizer as it is.

    Raises:
        UserError: as `read`.
    """
    contents: State = {} if path.is_dir() else _contents(path)
    if exact and "opt" in contents:
        return contents
    target = read(path, num_heads=num_heads) if path.is_dir() else None
    target = target or _from_state(contents, path, "target", num_heads)
    state: State = {**contents, "target_encoder": target.encoder | target.head}
    if target.pixels:
        state |= target.pixels.parts
    if {*official.KEYS.values()} <= contents.keys():
        anchor = official.from_state(contents, path=path, which="anchor", num_heads=num_heads)
        state["encoder"] = anchor.encoder | anchor.head
    elif "encoder" in contents:  # the only one, which was read
        state["encoder"] = state["target_encoder"]
    return state if target.prototypes is None else state | {"prototypes": target.prototypes}


def _contents(path: Path) -> State:
    """Read what a file holds: tensors by name, or all values of a checkpoint."""
    require_file(path)
    if path.suffix == ".safetensors":
        return dict(read_file(path))
    return checkpoint.load(path, None)


def _from_state(state: State, path: Path, which: Which, num_heads: int | None) -> Weights:
    if "target_encoder" in state:
        return official.from_state(state, path=path, which=which, num_heads=num_heads)
    if CLASSIFIER in state:
        return classifiers.finetuned(state, path=path, num_heads=num_heads)
    whole = _tensors(state, path, which)
    tensors = _bare(whole, path, which)
    ours = isinstance(state.get("mean"), list)  # said by no other trainer's files
    weights = timm_vit.from_tensors(
        tensors,
        path=path,
        num_heads=state.get("num_heads") if ours and num_heads is None else num_heads,
        normalization=official.normalization_of(state, path) if ours else None,
        config=section(state, "config", path) if ours else None,
    )
    parts, said = pixels.from_official(whole | tensors), pixels.said_of(state, path)
    return replace(weights, pixels=pixels.find(parts, weights.architecture, said, path))


def _tensors(state: State, path: Path, which: Which) -> Tensors:
    """Find the tensors of a file, at its top level or under one of the known keys."""
    found: Any = state
    for _ in range(MOST_NESTED):
        place = next((key for key in PLACES[which] if isinstance(found.get(key), dict)), None)
        if place is None:
            break
        found = found[place]
    known = ", ".join(f"'{key}'" for key in PLACES[which])
    where = str(path) if found is not state else f"{path}: has no {known}, and what it holds"
    return valid.dense(found, where)


def _bare(tensors: Tensors, path: Path, which: Which) -> Tensors:
    """Pick the tensors of the encoder, without the prefixes of the model that it is a part of.

    What stands beside it, such as the projection head of another method, is left out.
    """
    if any(name.endswith("embeddings.cls_token") for name in tensors):
        raise UserError(f"{path}: is of a folder for transformers; give that folder")
    prefixes = (*PLACES[which], "backbone")
    for _ in range(MOST_NESTED):
        if "cls_token" in tensors or resnets.is_resnet(tensors):
            break
        parts: Mapping[str, Tensors] = {prefix: {} for prefix in prefixes}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(".")
            if rest and prefix in parts:
                parts[prefix][rest] = tensor
        tensors = next((part for part in parts.values() if part), tensors)
    return tensors


def _read_folder(folder: Path, which: Which, num_heads: int | None) -> Weights:
    if (folder / release.SUMS).exists():
        file = release.checkpoint_in(folder)
        return _from_state(_contents(file), file, which, num_heads)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: neither a folder for transformers or timm (no config.json) nor a release"
            f" (no {release.SUMS}); give a checkpoint file or such a folder"
        )
    if "architecture" in read_json(folder / "config.json"):
        return timm_vit.read(folder, num_heads=num_heads)
    return huggingface.read(folder)
