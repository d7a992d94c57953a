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
HEAD = "fc."  # of MSN, in files of weights


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

    def load_weights(self, found: checkpoint.Found) -> list[str]:
        """Load all of a run, or an encoder alone, beside which the rest stays as drawn.

        So does what is of another method; a projection head is left out.
        """
        path, state = found
        drawn = []
        for key, name in self.CHECKPOINT.items():
            own, given = getattr(self, name), state.get(key)
            if key != "target_encoder":
                if not isinstance(given, dict) or own.state_dict().keys().isdisjoint(given):
                    drawn.append(key)
                    continue
            elif isinstance(given, dict):
                given = {n: tensor for n, tensor in given.items() if not n.startswith(HEAD)}
            checkpoint.load_weights(own, given, path=path, key=key)
        return drawn
