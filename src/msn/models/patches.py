"""Images as sequences of square patches of pixels, and back."""

from torch import Tensor


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut images into patches, row by row: (B, C, H, W) -> (B, N, size * size * C).

    The pixels of a patch follow row by row, the channels of a pixel together (MAE's order). A
    border that holds no whole patch is dropped.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    whole = images[:, :, : rows * size, : columns * size]
    grid = whole.reshape(batch, channels, rows, size, columns, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Put patches back: (B, rows * columns, size * size * C) -> (B, C, rows * size, ...)."""
    rows, columns = grid
    cut = patches.reshape(len(patches), rows, columns, size, size, -1)
    images: Tensor = cut.permute(0, 5, 1, 3, 2, 4)
    return images.reshape(len(patches), -1, rows * size, columns * size)
