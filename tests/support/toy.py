"""A method of a dozen lines: what a third party would write from the interface alone."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from msn.config.kinds import Config
from msn.config.sizes import EncoderSize
from msn.data.batch import Views
from msn.data.draws import ViewKind
from msn.methods import Method, Output
from msn.models.vit import VisionTransformer, build_encoder


class Toy(Method):
    """Pulls the features of two views of an image together, and their variance to one."""

    CHECKPOINT: ClassVar[Mapping[str, str]] = MappingProxyType({"target_encoder": "backbone"})
    METRICS = ("variance",)

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.backbone = encoder

    @property
    def encoder(self) -> VisionTransformer:
        return self.backbone

    @classmethod
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        return (ViewKind("pair", 2, config.image_size, (0.5, 1.0)),)

    @classmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "Toy":
        assert config.meta.encoder
        size = EncoderSize(**config.meta.encoder.model_dump())
        return cls(build_encoder(size, image_size=config.image_size, in_chans=channels))

    def forward(self, views: Views, *, step: int) -> Output:
        first, second = (self.backbone(pixels) for pixels in views["pair"])
        spread = torch.cat([first, second]).std(dim=0)
        return Output(F.mse_loss(first, second) + F.relu(1 - spread).mean(), spread)

    def metrics(self, output: Output) -> dict[str, Tensor]:
        return {**super().metrics(output), "variance": output.details.mean()}
