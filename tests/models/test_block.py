"""The block against timm's, whose every intermediate autograd keeps."""

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from msn.models.block import Block, attention_linear, gelu_linear, norm_linear

WIDTH, HEADS = 24, 3


def both(dtype: torch.dtype, fused: bool) -> tuple[Block, TimmBlock]:
    """The same block twice, with weights that nothing cancels in."""
    torch.manual_seed(0)
    own, plain = (kind(WIDTH, HEADS, qkv_bias=True).to(dtype) for kind in (Block, TimmBlock))
    for parameter in own.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    plain.load_state_dict(own.state_dict())
    own.attn.fused_attn = plain.attn.fused_attn = fused
    return own, plain


def output_and_gradients(block: nn.Module, x: Tensor, bf16: bool = False) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = block(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *block.parameters()])]


def tokens(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 7, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fused", [False, True])
def test_the_block_is_timms(fused: bool) -> None:
    own, plain = both(torch.float64, fused)
    x = tokens(torch.float64)
    for mine, theirs in zip(
        output_and_gradients(own, x), output_and_gradients(plain, x), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [False, True])
def test_stochastic_depth_is_timms(fused: bool) -> None:
    """The same draws leave out the same branches of the same images, whatever is computed."""
    torch.manual_seed(0)
    own, plain = (
        kind(WIDTH, HEADS, qkv_bias=True, drop_path=0.5).double() for kind in (Block, TimmBlock)
    )
    plain.load_state_dict(own.state_dict())
    own.attn.fused_attn = plain.attn.fused_attn = fused
    x = torch.randn(64, 3, WIDTH, dtype=torch.float64)

    def drawn(block: nn.Module, **how: bool) -> Tensor:
        torch.manual_seed(1)
        return block(x, **how)

    expected = drawn(plain)
    untouched = (expected == x).all(dim=2).all(dim=1)
    assert 0 < int(untouched.sum()) < 64
    torch.testing.assert_close(drawn(own), expected)
    torch.testing.assert_close(drawn(own, class_token_only=True), expected[:, 0])
    with torch.no_grad():
        torch.testing.assert_close(drawn(own), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_in_bf16_it_is_as_close_to_the_truth_as_timms(fused: bool) -> None:
    check_bf16(*both(torch.float32, fused))


def check_bf16(own: nn.Module, plain: nn.Module) -> None:
    x = tokens(torch.float32)
    truth = output_and_gradients(plain, x)
    mine, theirs = (output_and_gradients(block, x, bf16=True) for block in (own, plain))
    for exact, a, b in zip(truth, mine, theirs, strict=True):
        assert a.dtype == b.dtype
        size = exact.norm()
        assert (a - exact).norm() <= 1.5 * (b - exact).norm() + 2e-3 * size
        assert (a - exact).norm() <= 0.03 * size


def test_gradients_are_those_of_the_function() -> None:
    torch.manual_seed(0)
    norm, linear, last = (
        nn.LayerNorm(6).double(),
        nn.Linear(6, 12).double(),
        nn.Linear(4, 3).double(),
    )
    x, qkv = (torch.randn(2, 5, n).double().requires_grad_() for n in (6, 12))
    assert torch.autograd.gradcheck(lambda x: norm_linear(x, norm, linear), x)
    assert torch.autograd.gradcheck(lambda x: gelu_linear(x, linear), x)
    assert torch.autograd.gradcheck(lambda x: attention_linear(x, 2, last), qkv)


class ClassToken(nn.Module):
    """A block of which only the class token's output is wanted."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.block, Block):
            return self.block(x, class_token_only=True)
        return self.block(x)[:, 0]


def test_the_class_token_alone_is_the_first_of_all() -> None:
    """Value and gradients, also the key's bias's, which is none."""
    own, plain = map(ClassToken, both(torch.float64, fused=False))
    x = tokens(torch.float64)
    for mine, theirs in zip(
        output_and_gradients(own, x), output_and_gradients(plain, x), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_the_class_token_in_bf16_is_as_close_to_the_truth_as_timms() -> None:
    own, plain = map(ClassToken, both(torch.float32, fused=False))
    check_bf16(own, plain)


def kept_bytes(block: nn.Module, x: Tensor) -> int:
    """What the backward pass holds, without the parameters themselves."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        y = block(x.requires_grad_())  # held, so that no address is used twice
    for parameter in block.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert y.shape == x.shape
    return sum(kept.values())


def test_half_as_much_is_kept() -> None:
    """Bytes per token and dimension: two residuals in fp32, qkv and hidden in bf16."""
    own, plain = both(torch.float32, fused=False)
    x = torch.randn(64, 37, WIDTH)
    kept, token_dims = kept_bytes(own, x), x.numel()
    assert 22 * token_dims <= kept <= 23 * token_dims  # and mean and deviation of each token
    assert kept < kept_bytes(plain, x) / 2
