"""The encoder's own contracts. Official numbers: tests/golden/test_encoder.py."""

import pytest
import timm
import torch

from msn.config.sections.meta import CONV_STEMS, PATCH_SIZES
from msn.config.sizes import ENCODERS, EncoderSize
from msn.models.encoder import NORMED, Taps
from msn.models.head import projection_head
from msn.models.vit import VisionTransformer, build_encoder

TINY = EncoderSize(4, 16, 2, 2)


def tiny(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    head = projection_head(16, 24, 8, batch_norm=True)
    return build_encoder(TINY, image_size=16, head=head, **settings)  # type: ignore[arg-type]


def test_config_and_encoders_agree() -> None:
    assert PATCH_SIZES.keys() == ENCODERS.keys()
    for name, size in ENCODERS.items():
        assert (name in CONV_STEMS) == (size.patch_size is None)
        assert PATCH_SIZES[name] == (size.patch_size or 16)


def test_agrees_with_timm_at_the_stored_size() -> None:
    """A whole other implementation, given the same weights."""
    own = build_encoder(EncoderSize(16, 192, 12, 3), image_size=224).eval()
    peer = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="token").eval()
    assert peer.load_state_dict(own.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(own.features(images, NORMED), peer(images), atol=1e-5, rtol=1e-5)


def test_official_initialization() -> None:
    model = build_encoder(ENCODERS["deit_tiny"])
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name in ("cls_token", "pos_embed") or (name.endswith("weight") and value.ndim == 2):
            assert float(value.std()) == pytest.approx(0.02, rel=0.2), name
        elif name == "patch_embed.proj.weight":
            assert float(value.std()) == pytest.approx((2 / (3 * 16 * 16)) ** 0.5, rel=0.05)
        elif "norm" in name and name.endswith("weight"):
            assert bool((value == 1).all()), name
        elif name != "patch_embed.proj.bias":
            assert bool((value == 0).all()), name


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = tiny()
    model(torch.randn(3, 3, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_dropped_patches_have_no_influence() -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 16, 16)
    changed = images.clone()
    changed[:, :, :4, 4:8] += 1.0  # patch 1
    keep = torch.tensor([0, 2, 7, 15])
    assert torch.equal(model(images, keep), model(changed, keep))
    assert not torch.equal(model(images), model(changed))


def test_order_of_kept_patches_does_not_matter() -> None:
    model = tiny().eval().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    one, other = torch.tensor([0, 2, 7, 15]), torch.tensor([15, 7, 0, 2])
    torch.testing.assert_close(model(images, one), model(images, other))


def test_a_border_without_a_whole_patch_is_dropped() -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 18, 19)
    assert torch.equal(model.tokens(images), model.tokens(images[:, :, :16, :16]))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 33), (17, 31)])
def test_the_grid_is_that_of_the_tokens(height: int, width: int) -> None:
    for patch_size in (7, None):
        embed = build_encoder(EncoderSize(patch_size, 16, 1, 2)).patch_embed
        rows, columns = embed.grid(height, width)
        assert embed(torch.zeros(1, 3, height, width)).shape == (1, rows * columns, 16)


def test_a_mask_for_each_image() -> None:
    model = tiny().eval().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    keep = torch.tensor([[1, 2, 3], [4, 5, 6]])
    both = model(images, keep)
    apart = [model(images[i : i + 1], keep[i]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(apart))


def test_attention_rows_sum_to_one() -> None:
    attention = tiny().eval().attention_maps(torch.randn(2, 3, 16, 24))
    assert attention.shape == (2, 2, 25, 25)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 2, 25))


def test_patch_tokens_are_those_of_the_tap_with_average() -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = model.patch_tokens(images)
    assert tokens.shape == (2, 16, 16)
    averaged = model.features(images, Taps(norm=True, patch_average=True))
    torch.testing.assert_close(tokens.mean(dim=1), averaged[:, 16:])
    torch.testing.assert_close(model.features(images, NORMED), averaged[:, :16])


def test_stochastic_depth_grows_to_the_last_block() -> None:
    model = build_encoder(EncoderSize(4, 16, 4, 2), image_size=16, drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
