"""BatchNorm over the batch of all processes, on any device.

torch.nn.SyncBatchNorm is for GPUs only; this one also runs on gloo.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msn.runtime import collectives

PLACES = (0, 2, 3)  # axes of maps (B, C, H, W) that a channel is normalized over


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, C), in training mode by the statistics of all processes' rows.

    All processes must hold equally many rows. A single process computes what `nn.BatchNorm1d` does.
    """

    def forward(self, input: Tensor) -> Tensor:
        if collectives.world_size() == 1 or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        x = input.to(self.running_mean.dtype)  # statistics are never taken in half precision
        mean = collectives.mean(x.mean(dim=0))
        centered = x - mean
        variance = collectives.mean(centered.square().mean(dim=0))
        _count(self, mean.detach(), variance.detach(), len(x) * collectives.world_size())
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centered * scale).to(input.dtype)
        return torch.addcmul(self.bias, centered, self.weight * scale).to(input.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` of (B, C, H, W), in training mode by the statistics of all processes' rows.

    All processes must hold maps of equal shape. A single process computes what `nn.BatchNorm2d`
    does. For the backward pass only the input is kept.
    """

    def forward(self, input: Tensor) -> Tensor:
        if collectives.world_size() == 1 or not self.training:
            return super().forward(input)
        x = input.to(self.weight.dtype)
        variance, mean = torch.var_mean(x.detach(), dim=PLACES, correction=0)
        means, variances = collectives.gather(torch.stack([mean, variance])[None]).unbind(1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        _count(self, mean, variance, x.numel() // x.shape[1] * collectives.world_size())
        scale = torch.rsqrt(variance + self.eps)
        normalized: Tensor = _Normalized.apply(x, self.weight, self.bias, mean, scale)
        return normalized.to(input.dtype)


class _Normalized(torch.autograd.Function):
    """(x - mean) * scale * weight + bias, where mean and scale are of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale)
        centered = x - _over_maps(mean)
        return torch.addcmul(_over_maps(bias), centered, _over_maps(weight * scale))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        (gradient,) = gradients
        normalized = (x - _over_maps(mean)) * _over_maps(scale)
        of_bias = gradient.sum(dim=PLACES)
        of_weight = (gradient * normalized).sum(dim=PLACES)
        count = x.numel() // x.shape[1]
        shift, slope = collectives.mean(torch.stack([of_bias, of_weight]) / count)
        of_x = gradient - _over_maps(shift) - normalized * _over_maps(slope)
        return of_x * _over_maps(weight * scale), of_weight, of_bias, None, None


@torch.no_grad()
def _count(norm: _BatchNorm, mean: Tensor, variance: Tensor, rows: int) -> None:
    """Update a norm's running statistics, with the unbiased variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (rows / max(rows - 1, 1)), norm.momentum)


def _over_maps(channels: Tensor) -> Tensor:
    return channels[:, None, None]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics unchanged, as a recomputation must not count twice."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
