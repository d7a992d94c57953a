"""The encoder against the official one: outputs, taps, attention, buffers, gradients."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msn.config.sizes import EncoderSize
from msn.models.encoder import NORMED, Taps
from msn.models.head import projection_head
from msn.models.masking import kept_patches
from msn.models.vit import ConvEmbed, PatchEmbed, VisionTransformer, build_encoder
from tests.golden.record import DTYPES, Golden, assert_close, golden, golden_files, natural
from tests.reference import bicubic

FILES = pytest.mark.parametrize("name", golden_files("encoder_*.npz"))


def rebuild(record: Golden, dtype: torch.dtype) -> VisionTransformer:
    """The recorded model, with the recorded weights."""
    config: dict[str, Any] = record.meta["config"]
    head = projection_head(config["dim"], config["hidden"], config["out"], batch_norm=config["bn"])
    channels = config.get("chans", 3)
    embed: PatchEmbed | ConvEmbed
    if config.get("conv_stem"):
        embed = ConvEmbed(channels, config["stem_channels"], config["stem_strides"])
    else:
        embed = PatchEmbed(config["patch"], channels, config["dim"])
    model = VisionTransformer(
        embed,
        image_size=config["img"],
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=config.get("mlp_ratio", 4),
        head=head,
    )
    model.load_state_dict(record.tensors("sd."), strict=True)
    return model.to(dtype)


def views(record: Golden, dtype: torch.dtype) -> list[Tensor]:
    return [record.tensor(f"view{i}", dtype) for i in sorted(record.names("view"), key=int)]


def encode(model: VisionTransformer, images: list[Tensor], keep: Tensor | None) -> Tensor:
    """As the official forward: neighbors of one width together, only the first group masked."""
    outputs = []
    for i, (_, group) in enumerate(groupby(images, key=lambda view: view.shape[-1])):
        outputs.append(model(torch.cat(list(group)), keep if i == 0 else None))
    return torch.cat(outputs)


def kept(record: Golden, drop: str) -> Tensor | None:
    """Recorded patches to keep; the record counts the class token as token 0."""
    key = f"keep.pd{drop}"
    if key not in record:
        return None
    keep = record.tensor(key)[1:] - 1
    permutation = record.tensor(f"perm.pd{drop}")
    assert torch.equal(keep, permutation[: kept_patches(len(permutation), float(drop))])
    return keep


def tolerance(record: Golden, key: str) -> float:
    return natural(record.meta["maxabs_f32_vs_f64"].get(key, 0.0))


def check(record: Golden, key: str, actual: Tensor) -> None:
    float64 = actual.dtype == torch.float64
    precise = f"{key.split('.')[0]}64.{key.partition('.')[2]}"
    expected = record[precise] if precise in record else record[key]
    assert_close(actual, expected, float64=float64, tolerance=tolerance(record, key), what=key)


@FILES
@DTYPES
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_of_view_lists(name: str, dtype: torch.dtype, mode: str) -> None:
    record = golden(name)
    drops = [key.removeprefix(f"{mode}.pd") for key in record.names("z.") if key.startswith(mode)]
    assert drops
    for drop in drops:
        model = rebuild(record, dtype).train(mode == "train")
        with torch.no_grad():
            output = encode(model, views(record, dtype), kept(record, drop))
        check(record, f"z.{mode}.pd{drop}", output)
        # Without a prediction head the official "before head" is the same tensor.
        check(record, f"h.{mode}.pd{drop}", output)
        if mode == "train":
            for key, buffer in model.named_buffers():
                if f"buf_after.pd{drop}.{key}" in record:
                    check(record, f"buf_after.pd{drop}.{key}", buffer)


@FILES
@DTYPES
def test_three_width_groups(name: str, dtype: torch.dtype) -> None:
    record = golden(name)
    for key in record.names("z_interleaved021."):
        mode, _, drop = key.partition(".pd")
        model = rebuild(record, dtype).train(mode == "train")
        shuffled = [record.tensor(view, dtype) for view in ("view0", "view2", "view1")]
        with torch.no_grad():
            check(record, f"z_interleaved021.{key}", encode(model, shuffled, kept(record, drop)))


def tap(model: VisionTransformer, record: Golden, key: str, dtype: torch.dtype) -> Tensor | None:
    """What the record `KIND.VIEW` holds, computed; None where it is not a tap of a view."""
    kind, _, view = key.rpartition(".")
    if view not in record:
        return None
    images = record.tensor(view, dtype)
    if kind.startswith("blocks"):
        blocks, _, drop = kind.removeprefix("blocks").partition("_pd")
        keep = kept(record, drop) if drop else None
        return model.features(images, Taps(int(blocks)), keep)
    if kind.startswith("nlast"):
        blocks = kind.removeprefix("nlast").removesuffix("avg")
        taps = Taps(int(blocks), norm=True, patch_average=kind.endswith("avg"))
        return model.features(images, taps)
    if kind == "z_single":
        return model(images)
    if kind == "feat_nofc":
        return model.features(images, NORMED)
    if kind == "attn":
        return model.attention_maps(images[: len(record[key])])
    if kind == "posinterp":
        return model.resized_pos_embed(*model.patch_embed.grid(*images.shape[-2:]))
    return None


@FILES
@DTYPES
def test_taps(name: str, dtype: torch.dtype) -> None:
    record = golden(name)
    model = rebuild(record, dtype).eval()
    seen = set()
    for key in record.arrays.files:
        with torch.no_grad():
            output = tap(model, record, key, dtype)
        if output is not None:
            check(record, key, output)
            seen.add(key.partition(".")[0])
    assert {"z_single", "feat_nofc", "posinterp"} <= seen


def parameters(model: VisionTransformer, names: list[str]) -> list[Any]:
    own = dict(model.named_parameters())
    assert own.keys() == set(names)
    return [own[name] for name in names]


@FILES
@DTYPES
def test_gradients(name: str, dtype: torch.dtype) -> None:
    record = golden(name)
    model = rebuild(record, dtype).train()
    output = encode(model, views(record, dtype), kept(record, "0.15"))
    (output * record.tensor("gradw", dtype)).sum().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for key in record.names("grad."):
        gradient = gradients[key]
        assert gradient is not None
        check(record, f"grad.{key}", gradient)
    if dtype == torch.float64:
        order = record.meta["quirks"]["gradnorm_all64_names"]
        norms = torch.stack([parameter.grad.norm() for parameter in parameters(model, order)])
        assert_close(norms, record["gradnorm_all64"], float64=True)


@FILES
def test_rectangle_with_the_square_number_of_patches(name: str) -> None:
    """The official code lays it out as the square; here its positions are resized like any."""
    record = golden(name)
    if "rect_samecount" not in record:
        pytest.skip("not recorded for this model")
    model = rebuild(record, torch.float64).eval()
    images = record.tensor("rect_samecount", torch.float64)
    grid = model.patch_embed.grid(*images.shape[-2:])
    own = model(images).detach()
    square = model.pos_embed[0, 1:].detach().reshape(*model.grid_size, -1).numpy()
    resized = model.resized_pos_embed(*grid)[0, 1:].detach().numpy()
    np.testing.assert_allclose(resized, bicubic.resize(square, *grid).reshape(resized.shape))

    model.grid_size = grid  # as if the square were the rectangle: what the official code computes
    quirk = model(images).detach()
    assert_close(
        quirk,
        record["z_rect_samecount_QUIRK"],
        float64=True,
        tolerance=tolerance(record, "z_rect_samecount_QUIRK"),
    )
    assert float((own - quirk).abs().max()) > 1e-3 * float(quirk.abs().max())


def positions_only(side: int, width: int) -> VisionTransformer:
    return build_encoder(EncoderSize(1, width, 1, 1), image_size=side, in_chans=1)


@DTYPES
def test_position_embeddings_of_real_grids(dtype: torch.dtype) -> None:
    record = golden("posinterp.npz")
    pairs = [key.removesuffix(".in") for key in record.names("pos") if key.endswith(".in")]
    assert pairs
    for pair in pairs:
        side, new_side = map(int, pair.split("to"))
        positions = record.tensor(f"pos{pair}.in")
        model = positions_only(side, positions.shape[-1])
        model.pos_embed.data = positions.to(dtype)
        key = f"pos{pair}.out64" if dtype == torch.float64 else f"pos{pair}.out"
        assert_close(
            model.resized_pos_embed(new_side, new_side),
            record[key],
            float64=dtype == torch.float64,
            what=pair,
        )


def test_position_embeddings_where_the_original_crashes() -> None:
    meta = golden("posinterp.npz").meta["grid_pairs_where_original_crashes"]
    for side, new_side in [*meta["examples"], *meta["involving_14"]]:
        model = positions_only(side, 2).double()
        grid = model.pos_embed[0, 1:].detach().reshape(side, side, 2).numpy()
        resized = model.resized_pos_embed(new_side, new_side)[0].detach().numpy()
        np.testing.assert_allclose(resized[0], model.pos_embed[0, 0].detach().numpy())
        expected = bicubic.resize(grid, new_side, new_side).reshape(-1, 2)
        np.testing.assert_allclose(resized[1:], expected, atol=1e-12)


def test_kept_patch_counts() -> None:
    counts = golden("posinterp.npz")["keep_counts"]
    assert [kept_patches(int(n), drop) for n, drop, _ in counts] == counts[:, 2].tolist()
