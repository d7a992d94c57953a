"""BatchNorm of maps over the batch of all processes."""

import pytest
import torch
from torch import Tensor, nn

from msn.models.batch_norm import BatchNorm2d
from msn.runtime import collectives
from tests.support.processes import run_on

pytestmark = pytest.mark.processes


def norm_of(maps: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers on this process's share of the images."""
    norm = BatchNorm2d(maps.shape[1]).to(weights.dtype)
    with torch.no_grad():
        norm.weight.copy_(weights)
    images = maps.chunk(collectives.world_size())[collectives.rank()].clone().requires_grad_()
    output = norm(images)
    numbers = torch.arange(maps.numel(), dtype=weights.dtype).reshape(maps.shape) / maps.numel()
    part = numbers.chunk(collectives.world_size())[collectives.rank()]
    (output.square() * part).sum().backward()
    assert images.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    gradients = torch.stack([norm.weight.grad, norm.bias.grad])
    return {
        "output": output.detach(),
        "gradient": images.grad,
        "weights": collectives.mean(gradients) * collectives.world_size(),
        "evaluated": norm.eval()(images).detach(),
        **dict(norm.named_buffers()),
    }


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_maps_are_normalized_by_the_batch_of_all_processes(offset: float) -> None:
    """Also where the mean is far larger than the spread."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 5, 3, 4, generator=generator, dtype=torch.float64) + offset
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    whole = norm_of(maps, weights)
    reference = nn.BatchNorm2d(5).double()
    with torch.no_grad():
        reference.weight.copy_(weights)
    torch.testing.assert_close(whole["output"], reference(maps).detach())
    found = run_on(3, norm_of, maps, weights)
    for key in ("output", "gradient", "evaluated"):
        joined = torch.cat([own[key] for own in found])
        torch.testing.assert_close(joined, whole[key], rtol=1e-9, atol=1e-8)
    for own in found:
        for key in ("weights", "running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(own[key], whole[key], rtol=1e-9, atol=1e-8)


def half_norm_of(maps: Tensor) -> Tensor:
    return BatchNorm2d(maps.shape[1])(maps.chunk(collectives.world_size())[collectives.rank()])


def test_no_statistics_in_half_precision() -> None:
    maps = 100 + torch.randn(8, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = torch.cat(run_on(2, half_norm_of, maps.bfloat16()))
    assert found.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(5)(maps.bfloat16().float())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)
