"""Flips, colors and blur for a whole batch at once, on the device.

The same operations as in `msn.data.views`, in floating point. What a sample gets is read from its
packed draw (`msn.data.draws`) on the host, so the host never waits for the device. Channels are
planes in 0 .. 255, images (N, C, H, W).
"""

import numpy as np
import torch
from torch import Tensor

from msn.data.draws import BLUR, FACTORS, FLIP, GRAYSCALE, OPERATIONS, Operation
from msn.data.views import BLUR_STEPS, half_kernels

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, of red, green and blue
_CUT_OFF = -0.5  # by which PIL, cutting off the fraction, darkens what it blends, on average


def augment(images: Tensor, draws: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """Flip, color-jitter, turn gray and blur cropped images, each as its packed draw says.

    Args:
        images: uint8 (N, H, W, C), cropped and resized, on the device.
        draws: (N, COLUMNS), packed, on the host.
        dtype: to compute in.

    Returns:
        (N, C, H, W) in 0 .. 255, contiguous.
    """
    flip = draws[:, FLIP] > 0
    if flip.any():
        images = torch.where(_to(flip, images)[:, None, None, None], images.flip(2), images)
    floats = images.movedim(-1, 1).to(dtype, memory_format=torch.contiguous_format)
    floats = jitter(floats, draws[:, OPERATIONS], draws[:, FACTORS])
    if floats.shape[1] == 3:
        for chosen in _chosen(draws[:, GRAYSCALE] > 0, floats):
            floats[chosen] = _luma(floats[chosen])
    blurred = draws[:, BLUR] > 0
    for chosen in _chosen(blurred, floats):
        floats[chosen] = gaussian_blur(floats[chosen], draws[blurred, BLUR])
    return floats


def jitter(images: Tensor, operations: np.ndarray, factors: np.ndarray) -> Tensor:
    """Jitter brightness, contrast, saturation and hue of each image, in its own order.

    The first three blend an image with a reference (black, its mean gray, its gray version), and
    are one computation for the whole batch; hue is between any of them. May write to the images.

    Args:
        images: (N, C, H, W).
        operations: (N, 4), the operation at each place.
        factors: (N, 4), of the operation at that place.
    """
    color = images.shape[1] == 3
    blends = operations < (Operation.HUE if color else Operation.SATURATION)
    kinds = operations[blends].reshape(len(images), -1)
    strengths = factors[blends].reshape(kinds.shape)
    is_hue = operations == Operation.HUE
    turns = np.trunc(factors[is_hue] * 255) / 255
    place = is_hue.argmax(axis=1)
    for step in range(kinds.shape[1] + 1):
        now = (place == step) & (turns != 0)
        for chosen in _chosen(now & color, images):
            images[chosen] = hue(images[chosen], _to(turns[now], images))
        if step < kinds.shape[1] and (strengths[:, step] != 1).any():
            images = _blend(images, kinds[:, step], strengths[:, step])
    return images


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of images (N, 3, H, W) by (N,) fractions of a full turn."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    scale = 1 / chroma.clamp(min=1e-6)
    # In sixths of a turn, from the two channels other than the largest.
    angle = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    angle = angle.add_(6 * turns[:, None, None])
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype)[:, None, None]
    share = (angle[:, None] + _to(offsets, images)).remainder_(6)
    share = torch.minimum(share, 4 - share).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], share, value=-1)


def gaussian_blur(images: Tensor, radii: np.ndarray) -> Tensor:
    """Blur square images (N, C, S, S), each with its own radius (N,), by matrix products."""
    half = _to(half_kernels()[np.rint(radii * BLUR_STEPS).astype(np.int64)], images)
    across, down = (
        _blur_matrices(half, side)[:, None] for side in (images.shape[3], images.shape[2])
    )
    return down @ images @ across.mT


def _blur_matrices(half: Tensor, side: int) -> Tensor:
    """Build matrices (N, side, side): row i holds the weights of pixel i, borders reflected."""
    table = torch.nn.functional.pad(half, (0, max(0, 2 * side - half.shape[1])))
    i = torch.arange(side, device=half.device)
    near = table[:, (i[:, None] - i).abs()]
    before = table[:, i[:, None] + i + 1]
    matrices = near + before + before.flip(1, 2)
    return matrices / matrices.sum(2, keepdim=True)  # views smaller than a kernel lose its tail


def _blend(images: Tensor, kinds: np.ndarray, strengths: np.ndarray) -> Tensor:
    """Blend each image, `strength * image + (1 - strength) * reference`, within 0 .. 255."""
    rest = 1 - strengths
    columns = (
        strengths,
        rest * (kinds == Operation.CONTRAST),
        rest * (kinds == Operation.SATURATION),
        np.where(rest == 0, 0, _CUT_OFF),
    )
    numbers = _to(np.stack(columns), images)[..., None, None, None]
    strength, of_mean, of_gray, offset = numbers
    gray = _luma(images)
    reference = torch.addcmul(of_mean * gray.mean((-2, -1), keepdim=True) + offset, of_gray, gray)
    return torch.addcmul(reference, strength, images).clamp_(0, 255)


def _luma(images: Tensor) -> Tensor:
    """Convert images (N, C, H, W) to gray, (N, 1, H, W)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    gray: Tensor = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return gray


def _chosen(mask: np.ndarray, images: Tensor) -> tuple[Tensor, ...]:
    """Give the indices where `mask` is true, on the images' device; no tensor if it never is."""
    (indices,) = mask.nonzero()
    return (_to(indices, images),) if len(indices) else ()


def _to(array: np.ndarray | Tensor, images: Tensor) -> Tensor:
    """Move an array to the device of the images without waiting, floats in the images' type."""
    tensor = torch.as_tensor(array)
    dtype = images.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(images.device, dtype, non_blocking=True)
