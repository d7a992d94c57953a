"""SimMIM's masks: an exact number of units for each image."""

from functools import partial

import numpy as np
import pytest
import torch

from msn.models.mask_units import enlarged, masked_units, unit_masks
from tests.golden import record
from tests.golden.record import SIMMIM

golden = partial(record.golden, folder=SIMMIM)


@pytest.mark.parametrize("case", range(len(golden("masks.npz")["table"])))
def test_masks(case: int) -> None:
    data = golden("masks.npz")
    _, _, _, ratio, side, scale, units, count = data["table"][case]
    assert masked_units(int(units), ratio) == count
    for seed in data["seeds"]:
        drawn = np.random.RandomState(seed)  # what the official code draws from
        expected = data.tensor(f"mask.c{case}.s{seed}")
        orders = np.stack([drawn.permutation(int(units)) for _ in expected])
        own = unit_masks(torch.from_numpy(orders), int(count), int(side))
        assert torch.equal(enlarged(own, int(scale)).to(expected.dtype), expected)


def test_counts() -> None:
    data = golden("masks.npz")
    for units, counts in zip(data["count_tokens"], data["count"], strict=True):
        for ratio, count in zip(data["count_ratio"], counts, strict=True):
            assert masked_units(int(units), float(ratio)) == count, (units, ratio)
