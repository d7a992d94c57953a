"""Plain training steps of MAE and SimMIM in fp32, the yardsticks of `benchmarks/masked_step.py`.

Written from the papers (arXiv 2111.06377 and 2111.09886) as one would first write them in ordinary
eager PyTorch, on the blocks of `baseline.py`. It imports nothing of `msn`.

Shapes: B images, N patches, D width, P values of a patch.
"""

import torch
from baseline import Block, PatchEmbed, Settings
from torch import Tensor, nn


class Encoder(nn.Module):
    """A plain ViT without a head; parameters carry the names that ViTs usually have."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        grid = s.image_size // s.patch_size
        self.patch_embed = PatchEmbed(s.patch_size, s.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, s.width))
        self.blocks = nn.ModuleList(Block(s.width, s.heads) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width, eps=1e-6)

    def patches(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.patch_embed(images).flatten(2).transpose(1, 2)
        return tokens

    def encode(self, patches: Tensor) -> Tensor:
        """Patch tokens with their positions (B, n, D) to tokens (B, 1 + n, D)."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat([cls, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class Decoder(nn.Module):
    """MAE's decoder: 512 wide, 8 blocks, 16 heads."""

    def __init__(self, s: Settings, width: int = 512, depth: int = 8, heads: int = 16) -> None:
        super().__init__()
        patches = (s.image_size // s.patch_size) ** 2
        self.embed = nn.Linear(s.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, 3 * s.patch_size**2)

    def forward(self, latent: Tensor, ranks: Tensor) -> Tensor:
        tokens = self.embed(latent)
        batch, patches = ranks.shape
        missing = self.mask_token.expand(batch, 1 + patches - tokens.shape[1], -1)
        shuffled = torch.cat([tokens[:, 1:], missing], dim=1)
        whole = shuffled.gather(1, ranks.unsqueeze(-1).expand(-1, -1, shuffled.shape[-1]))
        x = torch.cat([tokens[:, :1], whole], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.pred(self.norm(x))[:, 1:]
        return out


def patchify(images: Tensor, size: int) -> Tensor:
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


class Plain(nn.Module):
    """An encoder with what predicts pixels, and AdamW; `step` trains on one batch."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)

    def prepare(self, lr: float, weight_decay: float, device: torch.device) -> None:
        """Move to the device, and make the optimizer."""
        self.to(device)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=lr,
        )

    def step(self, images: Tensor, mask: Tensor) -> float:
        """One update on uint8 images (B, H, W, 3); returns the loss before it."""
        loss = self.loss(self.normalize(images), mask)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), float("inf"))  # for the log
        self.optimizer.step()
        return loss.item()

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def normalize(self, images: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=images.device)
            for values in (self.settings.mean, self.settings.std)
        )
        return ((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class PlainMAE(Plain):
    """The mask of MAE is the rank of each patch (B, N): the lowest quarter is seen."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(settings)

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        patches = self.encoder.patches(images) + self.encoder.pos_embed[:, 1:]
        kept = mask.argsort(dim=1)[:, : patches.shape[1] // 4]
        seen = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        predicted = self.decoder(self.encoder.encode(seen), mask)
        target = patchify(images, self.settings.patch_size)
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        errors = ((predicted - (target - mean) / (variance + 1e-6).sqrt()) ** 2).mean(dim=-1)
        masked = (mask >= kept.shape[1]).float()
        loss: Tensor = (errors * masked).sum() / masked.sum()
        return loss


class PlainSimMIM(Plain):
    """The mask of SimMIM says of each patch (B, N) whether it is hidden."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.head = nn.Conv2d(settings.width, 3 * settings.patch_size**2, 1)

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        patches = self.encoder.patches(images)
        hidden = mask.unsqueeze(-1).to(patches.dtype)
        patches = patches * (1 - hidden) + self.mask_token * hidden
        tokens = self.encoder.encode(patches + self.encoder.pos_embed[:, 1:])[:, 1:]
        side = self.settings.image_size // self.settings.patch_size
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        predicted = nn.functional.pixel_shuffle(self.head(maps), self.settings.patch_size)
        size = self.settings.patch_size
        pixels = mask.reshape(-1, 1, side, side).repeat_interleave(size, 2)
        pixels = pixels.repeat_interleave(size, 3).to(images.dtype)
        errors = (predicted - images).abs() * pixels
        return errors.sum() / (pixels.sum() + 1e-5) / 3
