"""Load a pre-trained method with all its parts, to look at what it does."""

from pathlib import Path
from typing import NamedTuple

import torch

from msn.config.kinds import Config
from msn.config.load import stated_config
from msn.data.normalization import Normalization
from msn.interop import reading
from msn.methods import Method, method_of
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.build import build_model


class Loaded(NamedTuple):
    """A pre-trained method in evaluation mode, on the CPU.

    Attributes:
        method: with its weights.
        config: that it was built from.
        normalization: of its images.
        channels: of its images.
    """

    method: Method
    config: Config
    normalization: Normalization
    channels: int


def load_method(path: Path, config: Config | None = None) -> Loaded:
    """Load the method of a run from its checkpoint, or from weights and a config.

    Args:
        path: of a checkpoint, or of weights with all parts of the method.
        config: of their training; None takes the one that the file states.

    Raises:
        UserError: the file cannot be read, states no config, or lacks a part of the method.
    """
    heads = None
    if config:
        with torch.device("meta"):
            heads = method_of(config).build(config, config.data.channels or 3, 1).encoder.num_heads
    weights = reading.read(path, num_heads=heads)
    if not config and not weights.config:
        raise UserError(
            f"{path}: does not say how it was trained; give the config file of its training"
        )
    config = config or stated_config(weights.config, f"{path}, config")
    method, state = method_of(config), reading.read_start(path, num_heads=heads, exact=True)
    missing = ", ".join(f"'{key}'" for key in method.CHECKPOINT if key not in state)
    if missing:
        raise UserError(
            f"{path}: lacks {missing}, a part of what {config.meta.method} trains; give the"
            " checkpoint of the pre-training"
        )
    model = build_model(method, config, weights.architecture.in_chans, 1)
    model.load_weights(checkpoint.Found(path, state))
    return Loaded(model.eval(), config, weights.normalization, weights.architecture.in_chans)
