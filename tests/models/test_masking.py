"""Which patches are kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msn.models.masking import kept_patches, random_keep, select


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 2**62), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_kept_patches_are_distinct_and_as_many_as_they_should(
    patches: int, drop: float, seed: int, images: int
) -> None:
    shared = random_keep(patches, drop, seed=seed, images=images)
    own = random_keep(patches, drop, seed=seed, images=images, scope="image")
    if drop == 0:
        assert shared is None
        assert own is None
        return
    assert shared is not None
    assert own is not None
    kept = kept_patches(patches, drop)
    assert shared.shape == (kept,)
    assert own.shape == (images, kept)
    for row in [shared, *own]:
        assert len(set(row.tolist())) == kept
        assert all(0 <= patch < patches for patch in row.tolist())


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_every_patch_is_kept_equally_often(scope: str) -> None:
    """Also the last one, which another implementation never keeps."""
    counts = torch.zeros(16)
    draws = 4000
    for seed in range(draws):
        keep = random_keep(16, 0.3, seed=seed, images=1, scope=scope)  # type: ignore[arg-type]
        assert keep is not None
        counts[keep.flatten()] += 1
    share = kept_patches(16, 0.3) / 16
    deviation = (share * (1 - share) / draws) ** 0.5
    assert float((counts / draws - share).abs().max()) < 4.5 * deviation


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (random_keep(196, 0.5, seed=seed, images=1) for seed in (5, 5, 6))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_scope_draws_one_mask_for_all() -> None:
    one, other = (random_keep(20, 0.5, seed=3, images=8, scope=s) for s in ("batch", "global"))
    assert one is not None
    assert other is not None
    assert one.shape == (10,)
    assert torch.equal(one, other)


def test_image_scope_draws_one_mask_for_each() -> None:
    keep = random_keep(196, 0.5, seed=1, images=3, scope="image")
    assert keep is not None
    assert len({tuple(sorted(row)) for row in keep.tolist()}) == 3


def test_select_takes_the_rows_that_are_named() -> None:
    tokens = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    shared = select(tokens, torch.tensor([3, 1]))
    assert torch.equal(shared, tokens[:, [3, 1]])
    own = select(tokens, torch.tensor([[3, 1], [0, 2]]))
    assert torch.equal(own, torch.stack([tokens[0, [3, 1]], tokens[1, [0, 2]]]))


def test_image_scope_draws_a_part_of_a_batch_as_in_the_whole() -> None:
    whole = random_keep(18, 0.5, seed=1, images=8, scope="image")
    part = random_keep(18, 0.5, seed=1, images=3, first=4, scope="image")
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[4:7])
