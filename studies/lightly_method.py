"""lightly's MSN as a method: its head, loss and masks on the encoder and views of this project.

As in lightly's example: prototypes that never learn (the loss gets `prototypes.data`), masks for
each view of each image, also of focal ones, a target that follows at a constant 0.996, AdamW at a
constant 1.5e-4 without a warm-up, and no clipping. Needs the extra `benchmarks`.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from lightly.loss import MSNLoss
from lightly.models.modules.heads import MSNProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from msn.config.kinds import Config, MSNConfig
from msn.data.batch import Views
from msn.data.draws import ViewKind
from msn.methods.base import Method, Output
from msn.methods.msn.model import FOCAL, RANDOM, TARGET, view_kinds
from msn.methods.schedules import Schedules
from msn.models.masking import random_keep
from msn.models.vit import VisionTransformer, build_encoder
from msn.runtime.keyed import Stream, seed64

MOMENTUM, LEARNING_RATE, WEIGHT_DECAY = 0.996, 1.5e-4, 0.01


class LightlyMSN(Method):
    """Encoder and head, their moving average, and prototypes as they were drawn."""

    CHECKPOINT: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **{"target_encoder": "target", "encoder": "anchor", "prototypes": "prototypes"},
            **{"head": "head", "target_head": "target_head"},
        }
    )

    def __init__(self, anchor: VisionTransformer, config: MSNConfig) -> None:
        super().__init__()
        meta, criterion = config.meta, config.criterion
        self.anchor = anchor
        self.head = MSNProjectionHead(anchor.embed_dim, meta.hidden_dim, meta.output_dim)
        self.target, self.target_head = (
            copy.deepcopy(part).requires_grad_(False) for part in (self.anchor, self.head)
        )
        prototypes = nn.Linear(meta.output_dim, criterion.num_proto, bias=False).weight.data
        self.register_buffer("prototypes", prototypes)
        self.prototypes: Tensor
        self.drop, self.seed = config.data.patch_drop, meta.seed
        self.loss: Any = MSNLoss()

    @property
    def encoder(self) -> VisionTransformer:
        return self.target

    @classmethod
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        assert isinstance(config, MSNConfig)
        return view_kinds(config.data)

    @classmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "LightlyMSN":
        assert isinstance(config, MSNConfig)
        size, side = config.meta.vit_size, config.data.rand_size
        return cls(build_encoder(size, image_size=side, in_chans=channels), config)

    @classmethod
    def schedules(cls, config: Config, steps_per_epoch: int, images: int) -> Schedules:
        return Schedules(lambda step: LEARNING_RATE, lambda step: WEIGHT_DECAY)

    def forward(self, views: Views, *, step: int) -> Output:
        with torch.no_grad():  # the order of lightly's example: the target moves first
            update_momentum(self.anchor, self.target, m=MOMENTUM)
            update_momentum(self.head, self.target_head, m=MOMENTUM)
            targets = self.target_head(self.target(views[TARGET][0]))
        anchors = torch.cat([self._anchors(views[kind], step) for kind in (RANDOM, FOCAL)])
        return Output(self.loss(anchors, targets, self.prototypes))

    def _anchors(self, images: Tensor, step: int) -> Tensor:
        flat = images.flatten(0, 1)
        rows, columns = self.anchor.patch_embed.grid(*flat.shape[-2:])
        seed = seed64(self.seed, Stream.MASK, step, flat.shape[-1])
        keep = random_keep(rows * columns, self.drop, seed=seed, images=len(flat), scope="image")
        features: Tensor = self.head(self.anchor(flat, keep))
        return features
