"""An encoder with a classifier on top, all or part of it trained."""

from typing import Any

from torch import Tensor, nn

from msn.models.encoder import VisionTransformer

NOT_DECAYED = ("encoder.pos_embed", "encoder.cls_token")


class Classifier(nn.Module):
    """Encoder, norm, linear: images (B, C, H, W) to logits (B, classes).

    Args:
        encoder: pre-trained; its projection head is not used.
        classes: number of classes.
        pool: "cls" reads the class token through the encoder's norm, "patches" the mean patch
            token through a new norm, as MAE does.
        drop_path_rate: stochastic depth of the last block, linear from 0 at the first.
        trained_blocks: only so many last blocks, the norm and the linear layer are trained, and
            what comes before is as in evaluation; None trains all.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        classes: int,
        *,
        pool: str = "cls",
        drop_path_rate: float = 0.0,
        trained_blocks: int | None = None,
    ) -> None:
        from timm.layers import DropPath

        super().__init__()
        self.pool = pool
        self.norm: nn.LayerNorm = encoder.norm
        if pool == "patches":
            self.norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6)
        self.head = nn.Linear(encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        del encoder.norm, encoder.fc  # neither is used
        self.encoder = encoder
        depth = len(encoder.blocks)
        for i, block in enumerate(encoder.blocks):
            rate = drop_path_rate * i / max(depth - 1, 1)
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        self._frozen: list[nn.Module] = []
        if trained_blocks is not None:
            self._frozen = [encoder.patch_embed, *encoder.blocks[: depth - trained_blocks]]
            self.requires_grad_(False)
            for trained in (*encoder.blocks[depth - trained_blocks :], self.norm, self.head):
                trained.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        if self.pool == "cls":
            token = self.encoder.cls(images, norm=False)
        else:
            (tokens,) = self.encoder.block_outputs(images)
            token = tokens[:, 1:].mean(dim=1)
        logits: Tensor = self.head(self.norm(token))
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
            "stem": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None)],
        }
