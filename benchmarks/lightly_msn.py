"""lightly's MSN as a training step, for `benchmarks/train_step.py`.

Put together as in lightly's own example for MSN (timm's ViT in its masked wrapper, its head, loss
and moving average), with the sizes, optimizer and clipping of the recipe. One difference stays: in
lightly's example the loss gets `prototypes.data`, so the prototypes never learn.
"""

import copy
from typing import Any

import torch
from baseline import Settings
from lightly.loss import MSNLoss
from lightly.models.modules.heads import MSNProjectionHead
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from lightly.models.utils import update_momentum
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from msn.data.batch import normalize


class LightlyMSN:
    """Backbone and head, their moving average, prototypes and optimizer."""

    def __init__(
        self, settings: Settings, *, lr: float, weight_decay: float, device: torch.device
    ) -> None:
        self.settings = settings
        vit = VisionTransformer(
            img_size=settings.image_size,
            patch_size=settings.patch_size,
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            num_classes=0,
            dynamic_img_size=True,
        )
        hidden, out = settings.head_hidden, settings.head_out
        self.anchor = nn.ModuleList(
            [MaskedVisionTransformerTIMM(vit), MSNProjectionHead(settings.width, hidden, out)]
        ).to(device)
        self.target = copy.deepcopy(self.anchor).requires_grad_(False)
        self.prototypes = nn.Linear(out, settings.prototypes, bias=False).weight.to(device)
        self.criterion = MSNLoss(settings.temperature, settings.sinkhorn_iterations)
        trained = [p for p in self.anchor.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=lr,
        )
        self.mean, self.std = (
            torch.tensor(values, device=device) for values in (settings.mean, settings.std)
        )

    def step(
        self, target: Tensor, random: Tensor, focal: Tensor, keep: Tensor, momentum: float
    ) -> float:
        """One update; arguments as of `Baseline.step`."""
        update_momentum(self.anchor, self.target, m=momentum)
        anchors = torch.cat(
            [
                self._features(self.anchor, random.flatten(0, 1), keep),
                self._features(self.anchor, focal.flatten(0, 1)),
            ]
        )
        with torch.no_grad():
            targets = self._features(self.target, target)
        loss = self.criterion(anchors, targets, self.prototypes.data, self.settings.sharpening)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.anchor.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        return float(loss)

    def _features(
        self, network: nn.ModuleList, images: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        backbone: Any
        head: Any
        backbone, head = network
        if keep is not None:  # lightly counts the class token, and wants indices for each image
            class_token = torch.zeros(1, dtype=keep.dtype, device=keep.device)
            keep = torch.cat([class_token, keep + 1]).expand(len(images), -1)
        tokens = backbone.encode(normalize(images, self.mean, self.std), idx_keep=keep)
        out: Tensor = head(tokens[:, 0])
        return out
