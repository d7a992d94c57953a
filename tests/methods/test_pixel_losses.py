"""Losses of reconstructed pixels against their formulas."""

import torch
from torch import Tensor

from msn.methods.pixel_losses import focal_frequency, masked_focal_l1, masked_l1


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    images, reconstruction = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    return reconstruction.requires_grad_(), images, torch.rand(4, 8, 8) < 0.6


def test_only_masked_pixels_count() -> None:
    reconstruction, images, mask = drawn()
    for loss in (masked_l1, masked_focal_l1):
        (gradient,) = torch.autograd.grad(loss(reconstruction, images, mask), reconstruction)
        assert (gradient.ne(0) == mask[:, None]).all()


def test_masked_l1_is_the_mean_of_the_masked() -> None:
    reconstruction, images, mask = drawn()
    chosen = mask[:, None].expand_as(images)
    mean = (reconstruction - images)[chosen].abs().mean()
    torch.testing.assert_close(masked_l1(reconstruction, images, mask), mean, rtol=1e-6, atol=0)


def test_frequencies_one_by_one() -> None:
    reconstruction, images, mask = drawn()
    # At unmasked pixels half of the reconstruction stays, without gradient.
    kept = torch.where(mask[:, None], reconstruction, 0.5 * (reconstruction + images))
    spectrum = torch.fft.fft2(kept, norm="ortho").mean(0) - torch.fft.fft2(
        images, norm="ortho"
    ).mean(0)
    weight = (spectrum.abs() + 1).log()
    own = focal_frequency(reconstruction, images, mask)
    torch.testing.assert_close(
        own, (weight / weight.max() * spectrum.abs() ** 2).mean(), rtol=5e-3, atol=0
    )
    (gradient,) = torch.autograd.grad(own, reconstruction)
    assert gradient[~mask[:, None].expand_as(images)].abs().max() < 2e-3 * gradient.abs().max()


def test_equal_images_lose_nothing() -> None:
    _, images, mask = drawn()
    for loss in (masked_l1, masked_focal_l1, focal_frequency):
        assert loss(images, images, mask) == 0
