"""Masks of units, drawn by key."""

import torch

from msn.models.mask_units import draw_orders, enlarged, unit_masks


def test_orders_are_permutations_that_differ() -> None:
    orders = draw_orders(49, seed=3, images=5)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(49).expand(5, -1))
    assert len(orders.unique(dim=0)) == 5
    assert not torch.equal(orders, draw_orders(49, seed=4, images=5))


def test_an_order_depends_on_the_number_of_its_image_only() -> None:
    whole = draw_orders(6, seed=3, images=5)
    parts = [draw_orders(6, seed=3, images=count, first=first) for first, count in ((0, 2), (2, 3))]
    assert torch.equal(torch.cat(parts), whole)


def test_every_unit_is_masked_as_often() -> None:
    masks = unit_masks(draw_orders(9, seed=0, images=3000), 5, columns=3)
    assert masks.sum(dim=(1, 2)).eq(5).all()
    share = masks.double().mean(dim=0)
    assert (share - 5 / 9).abs().max() < 0.04  # four standard deviations


def test_cells_are_repeated() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    expected = torch.zeros(1, 6, 6, dtype=torch.bool)
    expected[0, :3, :3] = True
    assert torch.equal(enlarged(mask, 3), expected)
