"""An encoder with a classifier on top, all or part of it trained."""

from typing import Any

from torch import Tensor, nn

from msn.models.encoder import MSN_TAPS, Encoder, Taps

POOLS = {"cls": MSN_TAPS, "patches": Taps(blocks=0, patch_average=True)}
NOT_DECAYED = ("encoder.pos_embed", "encoder.cls_token")


class Classifier(nn.Module):
    """Encoder, norm, linear: images (B, C, H, W) to logits (B, classes).

    Args:
        encoder: pre-trained; its projection head is not used.
        classes: number of classes.
        pool: "cls" reads the class token through the encoder's norm, "patches" the mean patch
            token through a new norm, as MAE does. A ResNet has neither: its classifier reads the
            mean of the last map.
        drop_path_rate: stochastic depth of the last block, linear from 0 at the first.
        trained_blocks: only so many last blocks, the norm and the linear layer are trained, and
            what comes before is as in evaluation; None trains all.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        pool: str = "cls",
        drop_path_rate: float = 0.0,
        trained_blocks: int | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.norm = encoder.give_norm(pool)
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.encoder = encoder
        encoder.unshare()  # each layer has a learning rate of its own
        encoder.set_drop_path(drop_path_rate)
        self._frozen: list[nn.Module] = []
        if trained_blocks is not None:
            stages = list(encoder.stages())
            first = len(stages) - trained_blocks
            self._frozen = stages[:first]
            self.requires_grad_(False)
            for trained in (*stages[first:], self.norm, self.head):
                trained.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder.features(images, POOLS[self.pool])
        logits: Tensor = self.head(self.norm(features))
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode as of any module, but leave frozen parts in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell which layer a parameter belongs to, for timm's layer-wise learning rates.

        What matches neither, norm and head, is a last layer of its own, as in MAE.
        """
        return {
            "stem": rf"^encoder\.(?:{self.encoder.STEM})",
            "blocks": [(rf"^encoder\.{self.encoder.BLOCKS}", None)],
        }
