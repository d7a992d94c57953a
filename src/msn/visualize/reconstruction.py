"""Pictures of what a method predicts of the pixels that its encoder did not see."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msn.data.batch import normalize
from msn.methods import Method
from msn.visualize.sheet import sheet

HIDDEN = 128  # gray level of what the encoder does not see
PICTURED = 8  # images, if nothing else is asked for


class Reconstructions(NamedTuple):
    """Images before and after: uint8 (N, S, S, C), and what the predictions are worth.

    Errors are means of squared differences of masked pixels, in the scale 0 to 1, (N,).

    Attributes:
        original: what was given.
        seen: the same, with masked pixels gray.
        predicted: the same, with masked pixels as predicted.
        masked: share of the pixels of each image that is masked, (N,).
        errors: of the predictions.
        plain_errors: of the mean color of the pixels seen in place of a prediction.
        given: what of the original went into the predictions; empty for nothing.
    """

    original: np.ndarray
    seen: np.ndarray
    predicted: np.ndarray
    masked: np.ndarray
    errors: np.ndarray
    plain_errors: np.ndarray
    given: str

    def picture(self) -> np.ndarray:
        """Draw original, masked image and reconstruction side by side, a row for each image."""
        columns = self.original, self.seen, self.predicted
        return sheet(dict(zip(("original", "masked", "reconstruction"), columns, strict=True)))

    def numbers(self) -> dict[str, Any]:
        """List the numbers of the picture, as JSON values."""
        columns = {
            "masked": self.masked,
            "masked_mse": self.errors,
            "masked_mse_of_mean_color": self.plain_errors,
        }
        means = {name: float(values.mean()) for name, values in columns.items()}
        each = {name: values.tolist() for name, values in columns.items()}
        about = {"unit": "squared difference of pixels of 0 to 1", "given": self.given}
        return {**means, **about, "images": each}


@torch.no_grad()
def reconstruct(
    method: Method, images: Tensor, mean: Tensor, std: Tensor, *, step: int = 0
) -> Reconstructions | None:
    """Let a method predict the pixels of images, masked as at a step of its run.

    Args:
        method: that predicts; its mode is as before afterwards.
        images: uint8 (N, S, S, C), evaluation views.
        mean, std: (C,) that images are normalized with, on the method's device.
        step: draws the masks.

    Returns:
        None of a method that predicts no pixels.
    """
    was_training = method.training
    method.eval()
    found = method.reconstruction(normalize(images, mean, std), step)
    method.train(was_training)
    if found is None:
        return None
    masked = found.masked.cpu().numpy()[..., None]
    predicted = (found.pixels.movedim(1, -1) * std + mean).double().cpu().numpy()
    original = images.numpy()
    truth = original / 255
    seen = (truth * ~masked).sum(axis=(1, 2), keepdims=True)
    mean_color = seen / np.maximum((~masked).sum(axis=(1, 2), keepdims=True), 1)
    levels = (predicted * 255).round().clip(0, 255).astype(np.uint8)
    return Reconstructions(
        original=original,
        seen=np.where(masked, np.uint8(HIDDEN), original),
        predicted=np.where(masked, levels, original),
        masked=masked.mean(axis=(1, 2, 3)),
        errors=_errors(predicted, truth, masked),
        plain_errors=_errors(mean_color, truth, masked),
        given=found.given,
    )


def _errors(guess: np.ndarray, truth: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Average the squared differences of the masked pixels of each image: (N, S, S, C) -> (N,)."""
    squares = ((guess - truth) ** 2 * masked).mean(axis=(1, 2, 3))
    mean: np.ndarray = squares / masked.mean(axis=(1, 2, 3))
    return mean
