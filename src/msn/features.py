"""Images -> frozen features: evaluation images made once, encoded as often as needed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from msn.data.image import BadImage
from msn.data.sources import Source
from msn.data.views import eval_view
from msn.errors import UserError

Encode = Callable[[Tensor], Tensor]
Normalise = Callable[[Tensor], Tensor]


class EvalSet(NamedTuple):
    """Evaluation images of a labelled split, ready to be encoded again and again."""

    images: Tensor  # uint8 (N, S, S, C), CPU
    labels: Tensor  # int64 (N,), CPU


class Features(NamedTuple):
    """What an encoder makes of a labelled split."""

    features: Tensor  # float32 (N, D), CPU
    labels: Tensor  # int64 (N,), CPU


def evaluation_images(source: Source, *, image_size: int, max_images: int | None = None) -> EvalSet:
    """The deterministic evaluation views of `source`, in its order.

    Args:
        source: where the images come from; it must be labelled.
        image_size: side S of the square views, in pixels.
        max_images: at most this many, evenly spaced over the source, so that a source sorted by
            class stays balanced. None takes all.

    Raises:
        UserError: the source has no labels, or an image cannot be read.
    """
    labels = _labels(source)
    chosen = _evenly_spaced(len(source), max_images)
    return EvalSet(_views(source, chosen, image_size), torch.from_numpy(labels[chosen]))


@torch.no_grad()
def encode_all(
    encode: Encode,
    images: Tensor,
    *,
    normalise: Normalise,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Features of uint8 `images` (N, S, S, C): float32 (N, D) on the CPU.

    Args:
        encode: float (B, C, S, S) -> (B, D), with the module already in eval mode.
        images: as in `EvalSet.images`.
        normalise: uint8 (B, S, S, C) on `device` -> float (B, C, S, S).
        batch_size: images per call of `encode`.
        device: where `encode` computes.
    """
    batches = (batch.to(device, non_blocking=True) for batch in images.split(batch_size))
    return torch.cat([encode(normalise(batch)).float().cpu() for batch in batches])


def extract(
    encode: Encode,
    source: Source,
    *,
    image_size: int,
    normalise: Normalise,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    max_images: int | None = None,
) -> Features:
    """Features of a labelled source in one pass, never holding more than a batch of images.

    Arguments as in `evaluation_images` and `encode_all`.

    Raises:
        UserError: the source has no labels, or an image cannot be read.
    """
    labels = _labels(source)
    chosen = _evenly_spaced(len(source), max_images)
    features = [
        encode_all(
            encode,
            _views(source, chosen[start : start + batch_size], image_size),
            normalise=normalise,
            batch_size=batch_size,
            device=device,
        )
        for start in range(0, len(chosen), batch_size)
    ]
    return Features(torch.cat(features), torch.from_numpy(labels[chosen]))


def raw_pixels(images: Tensor) -> Tensor:
    """The baseline representation: uint8 (N, S, S, C) -> float32 (N, S*S*C) in [0, 1]."""
    return images.flatten(1).float() / 255


def _labels(source: Source) -> np.ndarray:
    labels = source.labels()
    if labels is None:
        raise UserError(
            "evaluation needs labelled images, but the source has no labels: "
            "give one with a sub-folder per class (logging.probe.root_path, .image_folder)"
        )
    return np.asarray(labels, dtype=np.int64)


def _evenly_spaced(length: int, limit: int | None) -> np.ndarray:
    count = length if limit is None else min(limit, length)
    return np.arange(count) * length // max(count, 1)


def _views(source: Source, indices: Sequence[int] | np.ndarray, size: int) -> Tensor:
    try:
        images = (source.read(int(index)).image.pixels() for index in indices)
        return torch.from_numpy(np.stack([eval_view(image, size) for image in images]))
    except BadImage as bad:  # a score without it would be another score
        raise UserError(f"{bad}; replace or remove it") from bad
