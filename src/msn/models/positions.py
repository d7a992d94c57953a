"""Fixed two-dimensional sine-cosine position embeddings, as MAE has them (arXiv 2111.06377)."""

import torch
from torch import Tensor

BASE = 10_000.0


def sincos_positions(
    width: int, rows: int, columns: int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Tabulate the positions of a grid of patches: (1, 1 + rows * columns, width).

    The first half of a position tells its column, the second its row, each by sines and then
    cosines of width / 4 frequencies. The class token, which comes first, has the position 0. All
    is computed in float64.

    Args:
        width: of a token, a multiple of 4.
        rows, columns: of the grid, whose patches are numbered row by row.
        dtype: of the table.
    """
    if width % 4:
        raise ValueError(f"a width of {width} is no multiple of 4")
    row = sincos(torch.arange(rows), width // 2)[:, None].expand(-1, columns, -1)
    column = sincos(torch.arange(columns), width // 2)[None].expand(rows, -1, -1)
    patches = torch.cat([column, row], dim=-1).flatten(0, 1)
    return torch.cat([patches.new_zeros(1, width), patches])[None].to(dtype)


def sincos(positions: Tensor, width: int) -> Tensor:
    """Encode numbers (N,) by sines and cosines: float64 (N, width), `width` even."""
    powers = torch.arange(width // 2, dtype=torch.float64) / (width // 2)
    angles = positions.double()[:, None] * BASE**-powers
    return torch.cat([angles.sin(), angles.cos()], dim=1)
