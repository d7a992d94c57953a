from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msn.data.order import ROUNDS, Order, permuted
from msn.runtime import keyed


def one_by_one(position: int, *, length: int, seed: int, epoch: int) -> int:
    """The Feistel network with cycle walking, in Python's own integers."""
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    generator = keyed.generator(seed, keyed.Stream.ORDER, epoch)
    keys = generator.integers(2**64, size=ROUNDS, dtype=np.uint64).tolist()
    while True:
        left, right = position >> half, position % 2**half
        for key in keys:
            x = key ^ right
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                x = (x ^ x >> 33) * factor % 2**64
            left, right = right, left ^ ((x ^ x >> 33) >> (64 - half))
        position = left * 2**half + right
        if position < length:
            return position


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 2**62),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    share=st.floats(0, 1),
)
def test_a_batch_of_positions_goes_where_each_alone_would(
    length: int, seed: int, epoch: int, share: float
) -> None:
    inside = min(int(share * (length - 1)), length - 1)  # the product is rounded, up as well
    positions = [inside, 0, length - 1]
    where = permuted(np.array(positions), length=length, seed=seed, epoch=epoch)
    expected = [one_by_one(i, length=length, seed=seed, epoch=epoch) for i in positions]
    assert where.tolist() == expected


@pytest.mark.parametrize("length", range(1, 301))
def test_permutation_is_one(length: int) -> None:
    order = permuted(np.arange(length), length=length, seed=3, epoch=length)
    assert sorted(order) == list(range(length))


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_permutation_is_one_for_any_key(length: int, seed: int, epoch: int) -> None:
    order = permuted(np.arange(length), length=length, seed=seed, epoch=epoch)
    assert set(order) == set(range(length))


def test_permutation_reaches_far() -> None:
    length = 10**8 + 7
    where = permuted(np.arange(500), length=length, seed=0, epoch=0)
    assert len(set(where)) == 500
    assert max(where) < length
    assert np.mean(where) == pytest.approx(length / 2, rel=4.5 / (3 * 500) ** 0.5)


@pytest.mark.parametrize("position", [-1, 5])
def test_position_outside_is_refused(position: int) -> None:
    with pytest.raises(IndexError):
        permuted(np.array([2, position]), length=5, seed=0, epoch=0)


def test_permutation_differs_by_seed_and_epoch() -> None:
    orders = {
        tuple(permuted(np.arange(50), length=50, seed=seed, epoch=epoch))
        for seed in range(5)
        for epoch in range(20)
    }
    assert len(orders) == 100


@pytest.mark.parametrize(("length", "orders"), [(3, 6), (4, 24), (5, 120)])
@pytest.mark.slow
def test_all_orders_are_about_equally_frequent(length: int, orders: int) -> None:
    draws = 60 * orders
    counts = Counter(
        tuple(permuted(np.arange(length), length=length, seed=1, epoch=epoch))
        for epoch in range(draws)
    )
    assert len(counts) == orders
    chi_square = sum((count - 60) ** 2 / 60 for count in counts.values())
    freedom = orders - 1
    assert chi_square < freedom + 4.5 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("length", [7, 16, 40])
@pytest.mark.slow
def test_every_place_is_about_equally_frequent(length: int) -> None:
    draws = 2000
    counts = np.zeros((length, length))
    for epoch in range(draws):
        order = permuted(np.arange(length), length=length, seed=1, epoch=epoch)
        counts[np.arange(length), order] += 1
    expected = draws / length
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (length - 1) ** 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbors_part() -> None:
    """Neighbors in one epoch are no more likely to be neighbors in the order than any two."""
    length, close = 1000, 0
    for epoch in range(20):
        order = permuted(np.arange(length), length=length, seed=0, epoch=epoch)
        close += int((np.abs(np.diff(order)) == 1).sum())
    assert abs(close - 20 * 2) < 5 * 40**0.5


def test_an_impossible_order_is_refused() -> None:
    for steps, length in ((0, 14), (4, 14), (1, 3)):
        with pytest.raises(ValueError, match=f"{steps} steps of 4 from {length} samples"):
            Order(length, batch_size=4, steps_per_epoch=steps, seed=0)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank {rank} of 2"):
            Order(14, batch_size=4, steps_per_epoch=1, seed=0, rank=rank, world_size=2)
