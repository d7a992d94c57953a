"""What MAE and SimMIM share: one view of each image, whose masked pixels are predicted."""

from typing import NamedTuple

import torch
from torch import Tensor

from msn.config.kinds import Config, MAEConfig, SimMIMConfig
from msn.data.draws import ViewKind
from msn.methods import health
from msn.methods.base import Method, Output
from msn.models.encoder import Encoder
from msn.runtime import checkpoint, collectives

IMAGE = "image"


class ImageDetails(NamedTuple):
    """What a forward pass computed beside the loss.

    Attributes:
        features: (B, D) mean of the tokens that the encoder gave.
        masked: whether each place is masked, (B, ...) bool.
    """

    features: Tensor
    masked: Tensor


class ImageMethod(Method):
    """A method with one view of each image; its forward pass gives `ImageDetails`."""

    METRICS = ("masked", "feature_std", "rankme")
    PHASES = ("encoder forward", "decoder forward", "loss")

    @classmethod
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        assert isinstance(config, MAEConfig | SimMIMConfig)
        return (ViewKind(IMAGE, 1, config.data.image_size, config.data.crop_scale),)

    @torch.no_grad()
    def metrics(self, output: Output) -> dict[str, Tensor]:
        details: ImageDetails = output.details
        features = collectives.gather(details.features.float())
        return {
            "loss": collectives.mean(output.loss.detach()),
            "masked": details.masked.float().mean(),
            "feature_std": health.feature_std(features),
            "rankme": health.rankme(features),
        }

    @staticmethod
    def probed(encoder: Encoder, images: Tensor) -> Tensor:
        """Average the last tokens: a class token has no part in the loss."""
        return encoder.patch_tokens(images).mean(dim=1)

    def load_weights(self, found: checkpoint.Found) -> None:
        """Load all of a run, or an encoder alone, beside which the rest stays as drawn."""
        path, state = found
        for key, name in self.CHECKPOINT.items():
            if key == "target_encoder" or key in state:
                checkpoint.load_weights(getattr(self, name), state[key], path=path, key=key)
