"""MAE's patches, positions and masks."""

from functools import partial

import pytest
import torch

from msn.models.masking import keep_lowest, kept_patches, select
from msn.models.patches import patchify, unpatchify
from msn.models.positions import sincos, sincos_positions
from tests.golden import record
from tests.golden.record import MAE, Golden, assert_close

golden = partial(record.golden, folder=MAE)


def cases(name: str, prefix: str) -> list[str]:
    return golden(name).names(prefix)


@pytest.mark.parametrize("case", cases("patchify.npz", "patch."))
def test_patches(case: str) -> None:
    data = golden("patchify.npz")
    images, size = data.tensor(f"imgs.{case}"), int(data[f"patch.{case}"])
    side = images.shape[-1] // size
    patches = patchify(images, size)
    assert torch.equal(patches, data.tensor(f"patches.{case}"))
    assert torch.equal(unpatchify(patches, size, (side, side)), images)
    tokens = data.tensor(f"tokens.{case}")
    assert torch.equal(unpatchify(tokens, size, (side, side)), data.tensor(f"unpatched.{case}"))


@pytest.mark.parametrize("case", cases("posembed.npz", "dim."))
def test_positions(case: str) -> None:
    data = golden("posembed.npz")
    width, side = int(data[f"dim.{case}"]), int(data[f"grid.{case}"])
    exact = sincos_positions(width, side, side, dtype=torch.float64)[0]
    stored = sincos_positions(width, side, side)[0]
    close = partial(assert_close, float64=True)
    if f"pos64.{case}" in data:
        close(exact, data[f"pos64.{case}"])
        close(exact[1:], data[f"pos64_nocls.{case}"])
        close(stored, data[f"pos.{case}"])
    else:
        rows = data.tensor(f"rows.{case}")
        close(exact[rows], data[f"posrows64.{case}"])
        close(stored[rows], data[f"posrows.{case}"])
        close(exact.sum(dim=1), data[f"rowsum64.{case}"])
        close(exact.sum(dim=0), data[f"colsum64.{case}"])


def test_positions_between() -> None:
    data = golden("posembed.npz")
    own = sincos(data.tensor("pos1d_positions"), int(data["pos1d_dim"]))
    assert_close(own, data["pos1d64"], float64=True)


@pytest.mark.parametrize("name", ["pos_embed", "decoder_pos_embed"])
def test_tables_of_a_model(name: str) -> None:
    expected = golden("posembed.npz").tensor(f"model.{name}")
    side = round((expected.shape[1] - 1) ** 0.5)
    own = sincos_positions(expected.shape[2], side, side)
    assert_close(own, expected, float64=True)


def ratios(data: Golden, case: str) -> list[float]:
    prefix = f"ids_keep.{case}.r"
    return [float(name) for name in data.names(prefix)]


@pytest.mark.parametrize("case", cases("masking.npz", "noise."))
def test_masks(case: str) -> None:
    data = golden("masking.npz")
    noise, tokens = data.tensor(f"noise.{case}"), data.tensor(f"x.{case}")
    found = ratios(data, case)
    assert found
    for ratio in found:
        kept = keep_lowest(noise, ratio)
        key = f"{case}.r{ratio}"
        assert torch.equal(kept.ranks, data.tensor(f"ids_restore.{case}"))
        assert torch.equal(kept.indices, data.tensor(f"ids_keep.{key}"))
        assert torch.equal(kept.masked.float(), data.tensor(f"mask.{key}"))
        assert torch.equal(select(tokens, kept.indices), data.tensor(f"x_masked.{key}"))


def test_kept_counts() -> None:
    data = golden("masking.npz")
    for i, patches in enumerate(data["count_L"].tolist()):
        for j, ratio in enumerate(data["count_r"].tolist()):
            assert kept_patches(patches, ratio) == data["count_keep"][i, j], (patches, ratio)
