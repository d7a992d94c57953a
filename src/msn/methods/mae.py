"""Masked Autoencoders (MAE, arXiv 2111.06377)."""

from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.flop_counter import FlopCounterMode

from msn.config.kinds import Config, MAEConfig
from msn.config.sections.mae import MAEOptimization
from msn.data.batch import Views
from msn.methods.base import Cost, Fact, Output, Reconstruction, activation_bytes
from msn.methods.image_method import IMAGE, ImageDetails, ImageMethod
from msn.methods.schedules import Schedules, mae_schedules
from msn.models.mae_decoder import Decoder, init_encoder
from msn.models.mask_units import enlarged
from msn.models.masking import Kept, keep_lowest, kept_patches, keyed_noise
from msn.models.patches import patchify, unpatchify
from msn.models.stack import BlockStack
from msn.models.vit import PatchEmbed, VisionTransformer, build_encoder
from msn.runtime import collectives
from msn.runtime.keyed import Stream, seed64

VARIANCE_EPS = 1e-6
BETAS = (0.9, 0.95)  # of AdamW


class MAE(ImageMethod):
    """Encode a few patches of an image, and predict the pixels of all others.

    Args:
        encoder: to train, with fixed positions and without a head.
        decoder: of its width and grid.
        mask_ratio: share of the patches that is masked, drawn for each image.
        norm_pix_loss: predict pixels relative to mean and deviation of their patch.
        seed: of the masks.
        accumulate: parts that a batch is computed in, one after another.
    """

    CHECKPOINT = MappingProxyType({"target_encoder": "backbone", "decoder": "decoder"})

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder: Decoder,
        *,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        assert isinstance(encoder.patch_embed, PatchEmbed)
        self.patch_size = encoder.patch_embed.patch_size
        self.backbone, self.decoder = encoder, decoder
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss
        self.seed, self.accumulate = seed, accumulate

    @classmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "MAE":
        assert isinstance(config, MAEConfig)
        meta, criterion = config.meta, config.criterion
        encoder = build_encoder(
            meta.vit_size,
            image_size=config.data.image_size,
            in_chans=channels,
            drop_path_rate=meta.drop_path_rate,
            positions="sincos",
        )
        init_encoder(encoder)
        decoder = Decoder(
            encoder.embed_dim,
            encoder.grid_size,
            meta.patch_size**2 * channels,
            embed_dim=criterion.decoder_dim,
            depth=criterion.decoder_depth,
            num_heads=criterion.decoder_heads,
        )
        return cls(
            encoder,
            decoder,
            mask_ratio=criterion.mask_ratio,
            norm_pix_loss=criterion.norm_pix_loss,
            seed=meta.seed,
            accumulate=config.optimization.accumulate,
        )

    @classmethod
    def schedules(cls, config: Config, steps_per_epoch: int, images: int) -> Schedules:
        opt = config.optimization
        assert isinstance(opt, MAEOptimization)
        return mae_schedules(opt, steps_per_epoch, images / opt.lr_batch if opt.lr_batch else 1.0)

    @classmethod
    def plan(cls, config: Config, channels: int, steps_per_epoch: int) -> list[Fact]:
        with torch.device("meta"):
            model = cls.build(config, channels, steps_per_epoch)
        rows, columns = model.backbone.grid_size
        patches = rows * columns
        kept = kept_patches(patches, model.mask_ratio)
        counts = [
            sum(parameter.numel() for parameter in part.parameters())
            for part in (model.backbone, model.decoder)
        ]
        fact = f"{patches} patches, {kept} kept, {patches - kept} masked"
        return [
            ("image", f"1 x {rows * model.patch_size} px: {fact}"),
            ("parameters", "encoder {:,}, decoder {:,}".format(*counts)),
        ]

    @classmethod
    def cost(cls, config: Config, channels: int, *, bf16: bool) -> Cost:
        assert isinstance(config, MAEConfig)
        side = config.data.image_size
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = cls.build(config, channels, 1)
            image = torch.empty(1, channels, side, side)
            kept = model.draw_kept(image, 0)
            latent = model.backbone.tokens(image, kept.indices)
            model.decoder(latent, kept).sum().backward()
        held = activation_bytes(model.backbone.blocks, latent.shape[1], bf16=bf16)
        held += activation_bytes(model.decoder.blocks, 1 + kept.ranks.shape[1], bf16=bf16)
        return Cost(counter.get_total_flops(), held)

    def forward(self, views: Views, *, step: int) -> Output:
        (images,) = views[IMAGE]
        kept = self.draw_kept(images, step)
        compute = self.loss_of
        if self.accumulate > 1:  # activations of one part at a time
            compute = partial(recomputed, compute, use_reentrant=False)
        parts = zip(images.chunk(self.accumulate), kept.chunk(self.accumulate), strict=True)
        losses, features = zip(*(compute(*part) for part in parts), strict=True)
        details = ImageDetails(torch.cat(features), kept.masked)
        # A mean of means: as many patches are masked in one image as in any other.
        return Output(torch.stack(losses).mean(), details)

    def loss_of(self, images: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
        """Compute the loss of images (B, C, H, W) and their features (B, D)."""
        with record_function("encoder forward"):
            latent = self.backbone.tokens(images, kept.indices)
        with record_function("decoder forward"):
            prediction = self.decoder(latent, kept)
        with record_function("loss"), torch.autocast(images.device.type, enabled=False):
            target = self.target(images)
            loss = masked_error(prediction.to(target.dtype), target, kept.masked)
        return loss, latent[:, 1:].detach().mean(dim=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{**group, "betas": BETAS} for group in super().parameter_groups()]

    @property
    def encoder(self) -> VisionTransformer:
        return self.backbone

    def networks(self) -> list[BlockStack]:
        return [self.backbone, self.decoder]

    def target(self, images: Tensor) -> Tensor:
        """Compute what is to be predicted of images: (B, N, values of a patch)."""
        patches = patchify(images, self.patch_size)
        return normalized(patches) if self.norm_pix_loss else patches

    def reconstruction(self, images: Tensor, step: int) -> Reconstruction:
        kept, grid = self.draw_kept(images, step), self.backbone.grid(*images.shape[-2:])
        patches = self.decoder(self.backbone.tokens(images, kept.indices), kept).to(images.dtype)
        if self.norm_pix_loss:
            patches = denormalized(patches, patchify(images, self.patch_size))
        return Reconstruction(
            enlarged(kept.masked.unflatten(1, grid), self.patch_size),
            unpatchify(patches, self.patch_size, grid),
            "mean and deviation of each patch" if self.norm_pix_loss else "",
        )

    def draw_kept(self, images: Tensor, step: int) -> Kept:
        """Draw the patches that stay, for each image of this process by its place in the step."""
        rows, columns = self.backbone.grid(*images.shape[-2:])
        noise = keyed_noise(
            rows * columns,
            seed=seed64(self.seed, Stream.MASK, step),
            images=len(images),
            first=collectives.rank() * len(images),
        )
        return keep_lowest(noise, self.mask_ratio).to(images.device)


def normalized(patches: Tensor) -> Tensor:
    """Bring each patch to mean 0 and variance 1 over all its values: (..., values)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + VARIANCE_EPS).sqrt()


def denormalized(patches: Tensor, original: Tensor) -> Tensor:
    """Give normalized patches mean and deviation of the original ones: (..., values)."""
    variance, mean = torch.var_mean(original, dim=-1, keepdim=True)
    return patches * (variance + VARIANCE_EPS).sqrt() + mean


def masked_error(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Compute the mean squared error of the masked patches.

    Args:
        prediction, target: (B, N, values of a patch).
        masked: (B, N), which count.
    """
    errors = patch_errors(prediction, target) * masked
    return errors.sum() / masked.sum()


def patch_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of each patch: (B, N, values) -> (B, N)."""
    return F.mse_loss(prediction, target, reduction="none").mean(dim=-1)


METHOD = MAE
