"""SimMIM (arXiv 2111.09886) with a ViT or a ResNet, and A2MIM's variant of it (2205.13943)."""

from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint as recomputed

from msn.config.kinds import Config, SimMIMConfig
from msn.config.sections.simmim import SimMIMOptimization
from msn.data.batch import Views
from msn.methods.base import Cost, Fact, Output, Reconstruction
from msn.methods.image_method import IMAGE, ImageDetails, ImageMethod
from msn.methods.pixel_losses import focal_frequency, masked_focal_l1, masked_l1
from msn.methods.schedules import Schedules, simmim_rate
from msn.methods.simmim_parts import build_encoder_of, cost, plan_lines, simmim_groups
from msn.models.batch_norm import statistics_kept
from msn.models.mask_token import Maskable, MaskToken
from msn.models.mask_units import draw_orders, enlarged, masked_units, unit_masks
from msn.models.resnet import ResNet
from msn.runtime import collectives
from msn.runtime.keyed import Stream, seed64


class UnitMasking(NamedTuple):
    """Which pixels are masked, and what the encoder sees there.

    Attributes:
        unit: side of a square in pixels that is masked as a whole.
        ratio: share of the units of each image, rounded up.
        fill: what takes the place of masked pixels: themselves, the mean of the data set, or the
            mean of the image by channel.
        seed: of the draws.
    """

    unit: int = 32
    ratio: float = 0.6
    fill: Literal["none", "zero", "mean"] = "none"
    seed: int = 0


class PixelLoss(NamedTuple):
    """What is minimized.

    Attributes:
        kind: of the differences of masked pixels.
        frequency_weight: of the focal frequency loss.
    """

    kind: Literal["l1", "focal_l1"] = "l1"
    frequency_weight: float = 0.0


UNITS, L1 = UnitMasking(), PixelLoss()  # of SimMIM with a ViT


class SimMIM(ImageMethod):
    """Mask squares of an image, and predict their pixels by a linear layer on the last map.

    Args:
        encoder: to train, without a head.
        token: of this encoder, for what is masked.
        channels: of the images.
        masking: which pixels are masked.
        loss: what is minimized.
        accumulate: parts that a batch is computed in, one after another.
    """

    CHECKPOINT = MappingProxyType(
        {"target_encoder": "backbone", "mask": "token", "decoder": "decoder"}
    )

    def __init__(
        self,
        encoder: Maskable,
        token: MaskToken,
        channels: int = 3,
        *,
        masking: UnitMasking = UNITS,
        loss: PixelLoss = L1,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.token = encoder, token
        stride = encoder.size.stride if isinstance(encoder, ResNet) else token.stride
        self.decoder = nn.Sequential(
            nn.Conv2d(encoder.embed_dim, channels * stride**2, 1), nn.PixelShuffle(stride)
        )
        self.masking, self.loss, self.accumulate = masking, loss, accumulate

    @classmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "SimMIM":
        assert isinstance(config, SimMIMConfig)
        criterion, encoder = config.criterion, build_encoder_of(config, channels)
        resnet, added = isinstance(encoder, ResNet), criterion.variant == "a2mim"
        token = MaskToken(
            encoder,
            stage=criterion.stage if resnet else 0,
            add=added,
            gate=criterion.token_gate if added else None,
        )
        fill = criterion.fill or "mean" if resnet else "none"
        return cls(
            encoder,
            token,
            channels,
            masking=UnitMasking(criterion.mask_unit, criterion.mask_ratio, fill, config.meta.seed),
            loss=PixelLoss(*criterion.pixel_loss),
            accumulate=config.optimization.accumulate,
        )

    @classmethod
    def schedules(cls, config: Config, steps_per_epoch: int, images: int) -> Schedules:
        opt = config.optimization
        assert isinstance(opt, SimMIMOptimization)
        scale = images / opt.lr_batch if opt.lr_batch else 1.0
        decay = super().schedules(config, steps_per_epoch, images).weight_decay
        return Schedules(simmim_rate(opt, steps_per_epoch, scale), decay)

    @classmethod
    def plan(cls, config: Config, channels: int, steps_per_epoch: int) -> list[Fact]:
        assert isinstance(config, SimMIMConfig)
        return plan_lines(cls._without_data(config, channels), config)

    @classmethod
    def cost(cls, config: Config, channels: int, *, bf16: bool) -> Cost:
        assert isinstance(config, SimMIMConfig)
        return cost(cls._without_data(config, channels), config.data.image_size, bf16=bf16)

    @classmethod
    def _without_data(cls, config: SimMIMConfig, channels: int) -> "SimMIM":
        with torch.device("meta"):
            return cls.build(config, channels, 1)

    def forward(self, views: Views, *, step: int) -> Output:
        """Compute the loss of a batch of normalized images at a global step.

        With `accumulate` = k the batch is encoded in k parts whose activations are recomputed
        during the backward pass; the loss is always that of the whole batch.
        """
        (images,) = views[IMAGE]
        units = self.draw_units(images, step)
        compute = self.reconstruct
        if self.accumulate > 1:
            compute = partial(
                recomputed,
                compute,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), statistics_kept(self.backbone)),
            )
        parts = zip(images.chunk(self.accumulate), units.chunk(self.accumulate), strict=True)
        pixels, features = zip(*(compute(*part) for part in parts), strict=True)
        with record_function("loss"), torch.autocast(images.device.type, enabled=False):
            loss = self.loss_of(torch.cat(pixels).to(images.dtype), images, units)
        return Output(loss, ImageDetails(torch.cat(features), units))

    def reconstruct(self, images: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Predict all pixels of images (B, C, H, W) from the unmasked; and features (B, D)."""
        with record_function("encoder forward"):
            maps = self.token.encode(self.backbone, self.filled(images, units), units)
        with record_function("decoder forward"):
            pixels = self.decoder(maps)
        return pixels, maps.detach().mean(dim=(2, 3))

    def reconstruction(self, images: Tensor, step: int) -> Reconstruction:
        units = self.draw_units(images, step)
        pixels, _ = self.reconstruct(images, units)
        return Reconstruction(enlarged(units, self.masking.unit), pixels.to(images.dtype))

    def loss_of(self, pixels: Tensor, images: Tensor, units: Tensor) -> Tensor:
        """Compute the loss of reconstructed pixels (B, C, H, W)."""
        mask = enlarged(units, self.masking.unit)
        differences = masked_l1 if self.loss.kind == "l1" else masked_focal_l1
        loss = differences(pixels, images, mask)
        if self.loss.frequency_weight:
            loss = loss + self.loss.frequency_weight * focal_frequency(pixels, images, mask)
        return loss

    def filled(self, images: Tensor, units: Tensor) -> Tensor:
        """Fill the masked pixels of normalized images as `masking.fill` says."""
        if self.masking.fill == "none":
            return images
        mask = enlarged(units, self.masking.unit)[:, None]
        if self.masking.fill == "zero":
            return images.masked_fill(mask, 0.0)
        return torch.where(mask, images.mean(dim=(2, 3), keepdim=True), images)

    def draw_units(self, images: Tensor, step: int) -> Tensor:
        """Draw the units to mask of each image, by its place in the step: (B, rows, columns)."""
        rows, columns = (side // self.masking.unit for side in images.shape[-2:])
        orders = draw_orders(
            rows * columns,
            seed=seed64(self.masking.seed, Stream.MASK, step),
            images=len(images),
            first=collectives.rank() * len(images),
        )
        count = masked_units(rows * columns, self.masking.ratio)
        return unit_masks(orders, count, columns).to(images.device, non_blocking=True)

    @property
    def encoder(self) -> Maskable:
        return self.backbone

    def parameter_groups(self) -> list[dict[str, Any]]:
        return simmim_groups(self, resnet=isinstance(self.backbone, ResNet))


METHOD = SimMIM
