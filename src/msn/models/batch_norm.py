"""BatchNorm over the batch of all processes, on any device.

torch.nn.SyncBatchNorm is for GPUs only; this one also runs on gloo.
"""

import torch
from torch import Tensor, nn

from msn.runtime import collectives


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, C), in training mode by the statistics of all processes' rows.

    All processes must hold equally many rows. A single process computes what `nn.BatchNorm1d` does.
    """

    def forward(self, input: Tensor) -> Tensor:
        if collectives.world_size() == 1 or not self.training:
            return super().forward(input)
        x = input.to(self.weight.dtype)  # statistics are never taken in half precision
        mean = collectives.mean(x.mean(dim=0))
        centered = x - mean
        variance = collectives.mean(centered.square().mean(dim=0))
        self._count(mean.detach(), variance.detach(), len(x) * collectives.world_size())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, centered, scale).to(input.dtype)

    @torch.no_grad()
    def _count(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        """Update the running statistics, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (rows / max(rows - 1, 1)), self.momentum)
