"""Keyed draws: every part of the key counts, and no two keys share draws."""

from itertools import product

import pytest

from msn.runtime.keyed import Stream, generator, seed64

KEYS = [
    (seed, stream, counters)
    for seed in (0, 1, 2**64 - 1)
    for stream in Stream
    for counters in product((0, 1, 2, 1000), repeat=3)
]


def test_no_two_keys_share_a_draw() -> None:
    """Nor at another place of their sequences, as they would if draws advanced a counter."""
    draws = [
        int(draw)
        for seed, stream, counters in KEYS
        for draw in generator(seed, stream, *counters).integers(2**64, size=32, dtype="u8")
    ]
    assert len(set(draws)) == len(KEYS) * 32


def test_every_key_has_a_seed_of_its_own() -> None:
    assert len({seed64(seed, stream, *counters) for seed, stream, counters in KEYS}) == len(KEYS)


def test_streams_are_told_apart() -> None:
    assert len(set(Stream)) == len(Stream.__members__)


def test_missing_counters_are_0_and_a_fourth_is_refused() -> None:
    assert seed64(7, Stream.VIEW, 3) == seed64(7, Stream.VIEW, 3, 0, 0)
    with pytest.raises(ValueError, match="at most 3 counters, got 4"):
        generator(0, Stream.VIEW, 1, 2, 3, 4)
