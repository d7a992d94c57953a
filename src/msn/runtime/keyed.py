"""Keyed randomness: each draw is a pure function of what it is for, not of earlier draws.

So a run does not depend on the number of workers, and a resumed run draws what the unbroken one
would have drawn.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. Streams of one seed never overlap."""

    VIEW = 1
    ORDER = 2
    MASK = 3
    STEP = 4
    INIT = 5
    SPLIT = 6
    DRAW = 7
    REPLACEMENT = 8


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """Build a generator whose draws depend on nothing but its arguments.

    Args:
        seed: the seed of the run, 0 <= seed < 2**64.
        stream: what the draws are for.
        counters: up to three non-negative integers, e.g. (epoch, sample, view).
    """
    if len(counters) > 3:
        raise ValueError(f"at most 3 counters, got {len(counters)}")
    padded = (*counters, 0, 0, 0)[:3]
    # The low counter word is the one that advances while drawing: leave it to the draws.
    bits = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64),
        counter=np.array([0, *padded], dtype=np.uint64),
    )
    return np.random.Generator(bits)


def seed64(seed: int, stream: Stream, *counters: int) -> int:
    """Draw a 63-bit seed for a `torch.Generator`, keyed as in `generator`."""
    return int(generator(seed, stream, *counters).integers(2**63))
