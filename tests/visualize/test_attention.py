"""Attention maps against the whole map, the block's own output and transformers; the pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from msn.cli.main import main
from msn.config.sizes import EncoderSize
from msn.evaluation.frozen import frozen
from msn.interop import huggingface
from msn.models.beit import Beit, BeitForm
from msn.models.encoder import Taps
from msn.models.vit import VisionTransformer, build_encoder
from msn.runtime.errors import UserError
from msn.visualize.attention import DIM, LOST, Attention, attention, smallest_set
from msn.visualize.sheet import GAP, HEADER, LEAST
from tests.support.encoders import images, random_resnet, random_weights
from tests.support.pictures import DIGITS, drawn, photographs, saved


def vit() -> VisionTransformer:
    model = random_weights(with_head=False).build()
    assert isinstance(model, VisionTransformer)
    return model


def test_one_row_is_that_of_the_whole_map() -> None:
    model, given = vit(), images(16, 24)
    for block in (0, 1, -1):
        whole = model.attention_maps(given, block)
        row = model.attention_maps(given, block, class_token_only=True)
        assert row.shape == (2, 4, 1, 25)
        torch.testing.assert_close(row, whole[:, :, :1], atol=1e-6, rtol=0)
        torch.testing.assert_close(whole.sum(dim=-1), torch.ones(2, 4, 25), atol=1e-6, rtol=0)
        assert (whole >= 0).all()
    assert torch.equal(model.attention_maps(given), model.attention_maps(given, 2))
    one = model.attention_maps(given[1:])
    torch.testing.assert_close(one, model.attention_maps(given)[1:])


@pytest.mark.parametrize("form", [BeitForm(), BeitForm(shared_bias=False, block_bias=True)])
def test_relative_biases_are_in_the_row_and_see_whole_images(form: BeitForm) -> None:
    model = Beit(EncoderSize(4, 16, 2, 2), form, image_size=16).eval()
    for name, tensor in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(tensor)
    with torch.no_grad():
        whole = model.attention_maps(images(16, 24))
        row = model.attention_maps(images(16, 24), class_token_only=True)
        model.rel_pos_bias = None
        unbiased = model.attention_maps(images(16, 24), class_token_only=True)
    torch.testing.assert_close(row, whole[:, :, :1], atol=1e-6, rtol=0)
    assert row.allclose(unbiased) != form.shared_bias
    with pytest.raises(UserError, match=r"--mask 0.5: .* sees whole images"):
        model.check(Taps(mask=0.5))


@pytest.mark.parametrize("fused", [True, False])
def test_weights_times_values_are_the_attention_of_the_block(fused: bool) -> None:
    model = vit()
    model.use_fused_attention(fused)
    tokens = model.embed(images(16))
    block = model.blocks[0]
    normed = block.norm1(tokens)
    values = block.attn.qkv(normed)[..., 96:].unflatten(-1, (4, 12)).transpose(1, 2)
    mixed = block.attention_weights(tokens) @ values
    own = block.attn.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(own, block.attn(normed), atol=1e-5, rtol=0)


def test_maps_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    weights = random_weights(with_head=False)
    huggingface.write(tmp_path / "hf", weights)
    theirs = transformers.ViTMSNModel.from_pretrained(
        tmp_path / "hf", attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(images(16), output_attentions=True).attentions
    for block, maps in enumerate(expected):
        found = weights.build().attention_maps(images(16), block)
        torch.testing.assert_close(found, maps, atol=1e-5, rtol=0)


def test_what_is_lost_is_nan_and_the_rest_sums_to_one() -> None:
    encoder = frozen(random_weights())
    view = torch.randint(256, (2, 16, 24, 3), dtype=torch.uint8)
    found = encoder.attention(view, [3, 4], mask=0.5)
    assert found.shape == (2, 4, 25)
    torch.testing.assert_close(found.nansum(dim=-1), torch.ones(2, 4), atol=1e-6, rtol=0)
    lost = found.isnan()
    assert (lost.sum(dim=-1) == 12).all()
    keep = encoder._keep(view, [3, 4], 0.5)
    assert keep is not None
    for i in range(2):
        assert {*np.flatnonzero(~lost[i, 0, 1:]).tolist()} == {*keep[i].tolist()}
    pixels = encoder._normalized(encoder.model, view)
    row = encoder.model.attention_maps(pixels, -1, keep)[:, :, 0]
    torch.testing.assert_close(
        found[:, :, 1:].gather(2, keep[:, None].expand(2, 4, 12)), row[..., 1:]
    )


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [
        (EncoderSize(16, 16, 1, 2), (480, 640), (30, 40)),
        (EncoderSize(7, 16, 1, 2), (224, 224), (32, 32)),
        (EncoderSize(None, 16, 1, 2), (225, 225), (15, 15)),
        (EncoderSize(None, 16, 1, 2), (230, 200), (15, 13)),
        (EncoderSize(4, 16, 1, 2), (18, 23), (4, 5)),
    ],
)
def test_grids(size: EncoderSize, side: tuple[int, int], grid: tuple[int, int]) -> None:
    encoder = frozen(random_weights(image_size=64), model=build_encoder(size, image_size=64))
    found = attention(encoder, [np.zeros((*side, 3), np.uint8)])
    assert found.maps[0].shape == (2, *grid)
    stride = size.patch_size or 16
    assert encoder.model.pitch == stride
    height, width, _ = found.images[0].shape
    assert height % grid[0] == width % grid[1] == 0
    assert 0 <= side[0] - height < stride
    assert 0 <= side[1] - width < stride
    assert found.picture().shape == (
        HEADER + height * (zoom := -(-LEAST // width)) + GAP,
        GAP + 5 * (width * zoom + GAP),
        3,
    )


def test_a_cell_is_bright_where_the_attention_is() -> None:
    shares = np.full((1, 3, 5), 0.01, np.float32)
    shares[0, 1, 3], shares[0, 2, 0] = 0.5, np.nan
    image = np.full((6, 10, 1), 200, np.uint8)
    found = Attention([image], [shares], np.zeros((1, 1)), 0.6)
    picture = found.picture()[HEADER:, GAP:]
    zoom = -(-LEAST // 10)
    step, cell = 10 * zoom + GAP, 2 * zoom

    def at(column: int, row: int, place: int) -> list[int]:
        center = picture[row * cell + cell // 2, column * step + place * cell + cell // 2]
        return [int(value) for value in center]

    for column in (1, 2):
        light = {(r, c): sum(at(column, r, c)) for r in range(3) for c in range(5)}
        assert light.pop((2, 0)) == 3 * LOST
        assert max(light, key=lambda place: light[place]) == (1, 3)
    assert at(3, 1, 3) == [200] * 3
    assert at(3, 0, 0) == [int(200 * DIM)] * 3


def test_the_mask_is_the_smallest_set_with_the_mass() -> None:
    generator = np.random.default_rng(0)
    for mass in (0.05, 0.6, 0.99):
        shares = generator.random((6, 7)) ** 4
        chosen = smallest_set(shares, mass)
        total = shares.sum()
        assert shares[chosen].sum() >= mass * total
        assert shares[chosen].sum() - shares[chosen].min() < mass * total
        assert shares[chosen].min() >= shares[~chosen].max(initial=0)
    assert smallest_set(np.ones((2, 2)), 0.5).tolist() == [[True, True], [False, False]]


def test_the_command(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1))
    words = ["attention", "--weights", str(file)]
    picture, numbers = drawn(tmp_path / "a.png", *words, *DIGITS, "--count", "3")
    assert picture.shape == (HEADER + 3 * (LEAST + GAP), GAP + 7 * (LEAST + GAP), 3)
    assert numbers["images"]["grid"] == [[4, 4]] * 3
    assert len(numbers["names"]) == 3
    folder = photographs(tmp_path / "images", (30, 40, 3), (64, 24, 1))
    more = ["--images", str(folder), "--keep-aspect", "--image-size", "32", "--mask", ".75"]
    _, numbers = drawn(tmp_path / "b.png", *words, *more, "--block", "0")
    assert numbers["images"]["grid"] == [[8, 10], [21, 8]]
    assert numbers["images"]["patches_seen"] == [20, 42]


def test_wrong_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1))
    resnet = saved(tmp_path / "resnet.pth.tar", random_resnet(in_chans=1))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for file, more, message in (
        (plain, ["--block", "3"], "--block 3: must be 0 to 2, or -3 to -1"),
        (plain, ["--mask", "1"], "--mask 1: must be a share"),
        (plain, ["--images", str(broken)], "broken.png"),
        (resnet, [], "a ResNet has no attention of a class token; give a Vision Transformer"),
    ):
        words = ["visualize", "attention", "--weights", str(file), *DIGITS, *more]
        assert main([*words, "--out", str(tmp_path / "x.png")]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert not (tmp_path / "x.png").exists()
