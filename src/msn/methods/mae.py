"""Masked Autoencoders (MAE, arXiv 2111.06377)."""

from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint as recomputed

from msn.config.load import Config, MAEConfig
from msn.config.sections.mae import MAEOptimization
from msn.config.sizes import ENCODERS, EncoderSize
from msn.data.batch import Views
from msn.data.draws import ViewKind
from msn.methods import health
from msn.methods.base import Fact, Method, Output
from msn.methods.schedules import Schedules, mae_schedules
from msn.models.encoder import Encoder
from msn.models.mae_decoder import Decoder, init_encoder
from msn.models.masking import Kept, keep_lowest, keyed_noise
from msn.models.patches import patchify
from msn.models.vit import PatchEmbed, VisionTransformer, build_encoder
from msn.runtime import checkpoint, collectives
from msn.runtime.keyed import Stream, seed64

IMAGE = "image"
VARIANCE_EPS = 1e-6
BETAS = (0.9, 0.95)  # of AdamW


class MAEDetails(NamedTuple):
    """What a forward pass computed beside the loss.

    Attributes:
        features: (B, D) mean of the kept patches' tokens.
        masked: share of the patches that the encoder did not see.
    """

    features: Tensor
    masked: Tensor


class MAE(Method):
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
    METRICS = ("masked", "feature_std", "rankme")
    PHASES = ("encoder forward", "decoder forward", "loss")

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
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        assert isinstance(config, MAEConfig)
        return (ViewKind(IMAGE, 1, config.data.image_size, config.data.crop_scale),)

    @classmethod
    def build(cls, config: Config, channels: int, steps_per_epoch: int) -> "MAE":
        assert isinstance(config, MAEConfig)
        meta, criterion = config.meta, config.criterion
        size = EncoderSize(**meta.encoder.model_dump()) if meta.encoder else None
        encoder = build_encoder(
            size or ENCODERS[str(meta.model_name)],
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
        kept = int(patches * (1 - model.mask_ratio))
        counts = [
            sum(parameter.numel() for parameter in part.parameters())
            for part in (model.backbone, model.decoder)
        ]
        fact = f"{patches} patches, {kept} kept, {patches - kept} masked"
        return [
            ("image", f"1 x {rows * model.patch_size} px: {fact}"),
            ("parameters", "encoder {:,}, decoder {:,}".format(*counts)),
        ]

    def forward(self, views: Views, *, step: int) -> Output:
        (images,) = views[IMAGE]
        kept = self.draw_kept(images, step)
        compute = self.loss_of
        if self.accumulate > 1:  # activations of one part at a time
            compute = partial(recomputed, compute, use_reentrant=False)
        parts = zip(images.chunk(self.accumulate), kept.chunk(self.accumulate), strict=True)
        losses, features = zip(*(compute(*part) for part in parts), strict=True)
        details = MAEDetails(torch.cat(features), kept.masked.float().mean())
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

    @torch.no_grad()
    def metrics(self, output: Output) -> dict[str, Tensor]:
        features = collectives.gather(output.details.features.float())
        return {
            "loss": collectives.mean(output.loss.detach()),
            "masked": output.details.masked,
            "feature_std": health.feature_std(features),
            "rankme": health.rankme(features),
        }

    @staticmethod
    def probed(encoder: Encoder, images: Tensor) -> Tensor:
        """Average the patch tokens: the class token has no part in the loss."""
        return encoder.patch_tokens(images).mean(dim=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{**group, "betas": BETAS} for group in super().parameter_groups()]

    def load_weights(self, found: checkpoint.Found) -> None:
        """Load all of a run, or an encoder alone, beside which the decoder stays as drawn."""
        path, state = found
        for key, name in self.CHECKPOINT.items():
            if key == "target_encoder" or key in state:
                checkpoint.load_weights(getattr(self, name), state[key], path=path, key=key)

    @property
    def encoder(self) -> VisionTransformer:
        return self.backbone

    def target(self, images: Tensor) -> Tensor:
        """Compute what is to be predicted of images: (B, N, values of a patch)."""
        patches = patchify(images, self.patch_size)
        return normalized(patches) if self.norm_pix_loss else patches

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
