"""Bicubic resizing, written as the loop that it is."""

import math

import numpy as np


def cubic(x: float, a: float = -0.75) -> float:
    """Keys' kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def weights(length: int, new_length: int) -> np.ndarray:
    """(new_length, length) matrix: each output sample reads four neighbors, borders repeated."""
    matrix = np.zeros((new_length, length))
    for i in range(new_length):
        center = (i + 0.5) * length / new_length - 0.5
        for j in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(j, 0), length - 1)] += cubic(center - j)
    return matrix


def resize(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(H, W, D) to (rows, columns, D), without antialiasing."""
    height, width, _ = grid.shape
    return np.einsum("rh,cw,hwd->rcd", weights(height, rows), weights(width, columns), grid)
