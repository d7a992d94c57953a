"""A plain MSN training step in fp32, the yardstick of `benchmarks/train_step.py`.

Written from the paper (Assran et al. 2022, section 3 and appendix A.1) as one would first write it
in ordinary eager PyTorch: attention as softmax(q k^T) v, probabilities with softmax and log,
`torch.optim.AdamW` with its defaults, the moving average in a loop over the parameters. Views of
one size go through the encoder together. It is self-contained: it imports nothing of `msn`.

Shapes: B images, R random and F focal views, N tokens, D width, K prototypes.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Settings:
    """Sizes and hyperparameters: ViT-S/16 and the published recipe."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    head_hidden: int = 2048
    head_out: int = 256
    prototypes: int = 1024
    temperature: float = 0.1
    sharpening: float = 0.25
    sinkhorn_iterations: int = 3
    prior_weight: float = 1.0
    clip_grad: float = 3.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        mixed = scores.softmax(dim=-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        tokens: Tensor = x + self.mlp(self.norm2(x))
        return tokens


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images)
        return patches


class Head(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.fc3 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.bn1(self.fc1(x)))
        out: Tensor = self.fc3(F.gelu(self.bn2(self.fc2(x))))
        return out


class Network(nn.Module):
    """ViT with a projection head; parameters carry the names that ViTs usually have."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.grid = s.image_size // s.patch_size
        self.patch_embed = PatchEmbed(s.patch_size, s.width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, s.width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, s.width))
        self.blocks = nn.ModuleList(Block(s.width, s.heads) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width, eps=1e-6)
        self.fc = Head(s.width, s.head_hidden, s.head_out)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, head_out); `keep` holds the indices of the patches that stay."""
        patches = self.patch_embed(images)
        rows, columns = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2) + self.patch_positions(rows, columns)
        if keep is not None:
            tokens = tokens[:, keep]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        x = torch.cat([cls, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.fc(self.norm(x)[:, 0])
        return out

    def patch_positions(self, rows: int, columns: int) -> Tensor:
        positions = self.pos_embed[:, 1:]
        if rows == columns == self.grid:
            return positions
        square = positions.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=(rows, columns), mode="bicubic")
        return resized.flatten(2).transpose(1, 2)


def sinkhorn(p: Tensor, iterations: int) -> Tensor:
    """(B, K) assignments -> (B, K) whose columns have equal mass."""
    q = (p / p.sum()).T
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q / q.sum(dim=0, keepdim=True)).T


class Baseline:
    """Anchor and target network, prototypes and optimizer; `step` trains on one batch."""

    def __init__(
        self,
        settings: Settings,
        *,
        lr: float,
        weight_decay: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.anchor = Network(settings).to(device)
        self.target = copy.deepcopy(self.anchor)
        bound = 1 / math.sqrt(settings.head_out)
        initial = torch.empty(settings.prototypes, settings.head_out).uniform_(-bound, bound)
        self.prototypes = nn.Parameter(initial.to(device))
        matrices = [p for p in self.anchor.parameters() if p.ndim > 1]
        vectors = [p for p in self.anchor.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": [*vectors, self.prototypes], "weight_decay": 0.0},
            ],
            lr=lr,
        )

    def step(
        self, target: Tensor, random: Tensor, focal: Tensor, keep: Tensor, momentum: float
    ) -> float:
        """One update; returns the loss before it.

        Args:
            target: (B, H, W, 3) uint8.
            random: (R, B, H, W, 3) uint8, of which the encoder sees the patches `keep`.
            focal: (F, B, h, w, 3) uint8.
            keep: indices of the patches of a random view that stay.
            momentum: of the moving average.
        """
        loss = self.loss(target, random, focal, keep)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.anchor.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.anchor.parameters(), strict=True)
            for average, parameter in pairs:
                average.mul_(momentum).add_((1 - momentum) * parameter)
        return loss.item()

    def loss(self, target: Tensor, random: Tensor, focal: Tensor, keep: Tensor) -> Tensor:
        s = self.settings
        z_random = self.anchor(self.normalize(random.flatten(0, 1)), keep)
        z_focal = self.anchor(self.normalize(focal.flatten(0, 1)))
        p = self.assign(torch.cat([z_random, z_focal]))
        with torch.no_grad():
            sharp = self.assign(self.target(self.normalize(target))) ** (1 / s.sharpening)
            sharp = sinkhorn(sharp / sharp.sum(dim=1, keepdim=True), s.sinkhorn_iterations)
            sharp = sharp.repeat(len(random) + len(focal), 1)
        cross_entropy = -(sharp * p.log()).sum(dim=1).mean()
        mean = p.mean(dim=0)
        return cross_entropy + s.prior_weight * (math.log(len(mean)) + (mean * mean.log()).sum())

    def assign(self, z: Tensor) -> Tensor:
        """(B, head_out) -> (B, K) probabilities from cosine similarities."""
        similarity = F.normalize(z) @ F.normalize(self.prototypes).T
        return (similarity / self.settings.temperature).softmax(dim=1)

    def normalize(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float."""
        mean, std = (
            torch.tensor(values, device=images.device)
            for values in (self.settings.mean, self.settings.std)
        )
        return ((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
