"""The work of the commands from Python: `msn.pretrain` and `msn.evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from msn.config.kinds import Config, FinetuneConfig, LinearConfig, RunFile
from msn.config.load import load
from msn.data.inputs import images_or_views
from msn.data.views import eval_view
from msn.evaluation.accuracy import Result
from msn.methods import Method
from msn.runtime import checkpoint
from msn.runtime.devices import choose_device
from msn.runtime.errors import UserError
from msn.train import learning, pretraining
from msn.train.loading import Loaded, load_method
from msn.visualize import reconstruction

File = TypeVar("File", bound=RunFile)


def pretrain(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    method: type[Method] | None = None,
) -> Path:
    """Pre-train in this process, or resume a run that was interrupted.

    What it says goes to the logger "msn": `logging.basicConfig(level="INFO")` shows it.

    Args:
        config: a config, or the YAML file of one.
        overrides: `section.key=value` texts, for a file.
        device: as `--devices` of the command: auto, cpu, cuda, cuda:1 ...
        method: a method of one's own; None takes the one that `meta.method` names.

    Returns:
        The checkpoint, which `msn.load_encoder` takes.

    Raises:
        UserError, RunError, Interrupted: of `msn.runtime.errors`, as the command says them.
    """
    chosen = _loaded(Config, config, overrides)
    pretraining.pretrain(chosen, choose_device(device, 0), method)
    return checkpoint.latest_path(Path(chosen.logging.folder), chosen.logging.write_tag)


def evaluate(config: LinearConfig | FinetuneConfig, *, device: str = "auto") -> Result:
    """Train what a config of linear evaluation or fine-tuning describes, and measure it.

    Args:
        config: such as `msn.config.load.load(LinearConfig, "linear.yaml")` gives.
        device: as for `pretrain`.

    Returns:
        Top-1 and top-5 accuracy of each classifier, in percent, in the last and the best epoch.

    Raises:
        UserError, RunError, Interrupted: as `pretrain`.
    """
    place = choose_device(device, 0)
    if isinstance(config, LinearConfig):
        return learning.linear_evaluation(config, place)
    return learning.finetune(config, place)


def reconstruct(
    weights: str | Path | Loaded,
    images: Any,
    *,
    config: Config | str | Path | None = None,
    step: int = 0,
    device: str = "auto",
) -> reconstruction.Reconstructions:
    """Let a method that predicts pixels (MAE, SimMIM) fill in what is masked of images.

    Args:
        weights: checkpoint of the pre-training, or a method that was loaded from one.
        images: one or several of Pillow or uint8 arrays (H, W, C), of which the evaluation views
            are taken, or finished views, a uint8 tensor (N, S, S, C) or (N, C, S, S).
        config: of the training, or its YAML file, where `weights` do not state it.
        step: draws the masks, as at this step of a run.
        device: as for `pretrain`.

    Returns:
        Arrays uint8 (N, S, S, C) of originals, masked images and reconstructions, and errors.

    Raises:
        UserError: the method predicts no pixels, or the weights or images are of another kind.
    """
    if not isinstance(weights, Loaded):
        chosen = None if config is None else _loaded(Config, config, ())
        weights = load_method(Path(weights), chosen)
    config, place = weights.config, choose_device(device, 0)
    views = images_or_views(images, weights.channels, weights.normalization)
    if not isinstance(views, Tensor):
        made = [eval_view(pixels, config.image_size, config.data.interpolation) for pixels in views]
        views = torch.from_numpy(np.stack(made))
    if views.is_floating_point() or tuple(views.shape[1:3]) != (config.image_size,) * 2:
        raise UserError(
            f"images: a tensor of shape {tuple(views.shape)} and type {views.dtype}; must be uint8,"
            f" {config.image_size} x {config.image_size} px as in the training, or give arrays"
        )
    mean, std = torch.tensor(weights.normalization, device=place)
    found = reconstruction.reconstruct(weights.method.to(place), views, mean, std, step=step)
    if found is None:
        raise UserError(f"{config.meta.method} predicts no pixels; give weights of MAE or SimMIM")
    return found


def _loaded(kind: type[File], config: File | str | Path, overrides: Sequence[str]) -> File:
    return config if isinstance(config, kind) else load(kind, Path(str(config)), overrides)
