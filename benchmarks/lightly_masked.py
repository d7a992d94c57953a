"""lightly's MAE and SimMIM as training steps, for `benchmarks/masked_step.py`.

Put together as in lightly's own examples (timm's ViT in its masked wrapper, its decoder and
utilities), with the sizes and the optimizer of the recipes, and MAE's normalized target.
"""

import torch
from baseline import Settings
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from masked_baseline import Plain
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Lightly(Plain):
    """What both have in common; the step is that of the baseline."""

    def __init__(self, settings: Settings) -> None:
        nn.Module.__init__(self)
        self.settings = settings
        vit = VisionTransformer(
            img_size=settings.image_size,
            patch_size=settings.patch_size,
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            num_classes=0,
            global_pool="",
        )
        self.backbone = MaskedVisionTransformerTIMM(vit)

    def target(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The patches that are hidden, (B, n, P); `hidden` counts the class token."""
        patches = utils.patchify(images, self.settings.patch_size)
        target: Tensor = utils.get_at_index(patches, hidden - 1)
        return target


class LightlyMAE(Lightly):
    """Masks as those of `PlainMAE`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.decoder = MAEDecoderTIMM(
            num_patches=self.backbone.vit.patch_embed.num_patches,
            patch_size=settings.patch_size,
            embed_dim=settings.width,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        batch, patches = mask.shape
        order = mask.argsort(dim=1) + 1
        first = torch.zeros(batch, 1, dtype=order.dtype, device=order.device)
        kept, hidden = torch.cat([first, order[:, : patches // 4]], 1), order[:, patches // 4 :]
        encoded = self.decoder.embed(self.backbone.encode(images, idx_keep=kept))
        tokens = utils.repeat_token(self.decoder.mask_token, (batch, 1 + patches))
        tokens = utils.set_at_index(tokens, kept, encoded.type_as(tokens))
        decoded = utils.get_at_index(self.decoder.decode(tokens), hidden)
        target = utils.normalize_mean_var(self.target(images, hidden))
        return nn.functional.mse_loss(self.decoder.predict(decoded), target)


class LightlySimMIM(Lightly):
    """Masks as those of `PlainSimMIM`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.head = nn.Linear(settings.width, 3 * settings.patch_size**2)

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        hidden = 1 + mask.to(torch.uint8).argsort(dim=1, descending=True)[:, : int(mask[0].sum())]
        encoded = utils.get_at_index(self.backbone.encode(images, idx_mask=hidden), hidden)
        return nn.functional.l1_loss(self.head(encoded), self.target(images, hidden))
