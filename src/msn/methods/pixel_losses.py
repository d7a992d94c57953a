"""Losses of reconstructed pixels, on masked ones: SimMIM's L1, and those of A2MIM.

All take a reconstruction and normalized images, (B, C, H, W), and a mask (B, H, W) that is 1 at
masked pixels; all give a scalar.
"""

import torch
from torch import Tensor

from msn.runtime import collectives

FOCAL = 0.2
"""Slope of the sigmoid that weights the focal L1."""
UNMASKED = 1e-3
"""Weight of the reconstruction at unmasked pixels in the frequency loss."""


def masked_l1(reconstruction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Average |reconstruction - images| over the masked pixels of the whole batch.

    The divisor is as in the official code: (sum of the mask + 1e-5) * C, so that nothing masked
    gives 0.
    """
    return _masked_mean((reconstruction - images).abs(), mask)


def masked_focal_l1(reconstruction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Average d * (2 * sigmoid(.2 * d) - 1), d the absolute difference, over masked pixels."""
    difference = (reconstruction - images).abs()
    return _masked_mean(difference * (2 * (FOCAL * difference).sigmoid() - 1), mask)


def focal_frequency(reconstruction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Compare the spectra, averaged over the images of all processes, the harder the more.

    The mean of w * D^2 over channels and frequencies, where D is the absolute difference of the
    spectra (orthonormal), and w = log(D + 1), over its largest value, is a constant to the
    gradient. At unmasked pixels the reconstruction is half itself and half the image, without
    gradient, but for a share of 1e-3.
    """
    kept = torch.where(mask[:, None].bool(), 1.0, UNMASKED).to(images.dtype)
    mixed = 0.5 * (reconstruction.detach() + images) * (1 - kept)
    # The transform is linear: that of the mean difference is the difference of the mean spectra.
    difference = collectives.mean((reconstruction * kept + mixed - images).mean(dim=0))
    spectrum = torch.view_as_real(torch.fft.fft2(difference, norm="ortho"))
    squared = spectrum.square().sum(dim=-1)
    weight = (squared.detach().sqrt() + 1).log()
    largest = weight.max().clamp_min(torch.finfo(weight.dtype).tiny)  # of equal images: 0
    return (weight / largest * squared).mean()


def _masked_mean(difference: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(difference.dtype)
    total = (difference * mask[:, None]).sum()
    return total / (mask.sum() + 1e-5) / difference.shape[1]
