"""One pass for all views, or one for each size? Blocks of ViT-S/16, forward and backward.

    python benchmarks/packing.py

Separate: random and focal views one after the other, as training does. Packed: their tokens in one
long row, so that norms, products and GELUs run once for both; attention stays within a view. Both
must first agree on outputs and gradients in fp32.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from measure import machine, take_turns
from torch import Tensor, nn

from msn.models.block import Block, attention_linear, fused_attention, gelu_linear, norm_linear
from msn.runtime.devices import use_bf16

WIDTH, HEADS, DEPTH = 384, 6, 4
TOKENS = {"random": 167, "focal": 37}
VIEWS = {"random": 1, "focal": 10}

Pass = Callable[[nn.ModuleList, Sequence[Tensor]], list[Tensor]]


def separate(blocks: nn.ModuleList, kinds: Sequence[Tensor]) -> list[Tensor]:
    outputs = []
    for x in kinds:
        for block in blocks:
            x = block(x)
        outputs.append(x)
    return outputs


def packed(blocks: nn.ModuleList, kinds: Sequence[Tensor]) -> list[Tensor]:
    shapes = [kind.shape[:2] for kind in kinds]
    lengths = [images * tokens for images, tokens in shapes]

    def attended(block: Block, qkv: Tensor, shape: torch.Size) -> Tensor:
        attention, qkv = block.attn, qkv.unflatten(0, shape)
        if attention.fused_attn:
            out: Tensor = attention.proj(fused_attention(qkv, HEADS)).flatten(0, 1)
            return out
        return attention_linear(qkv, HEADS, attention.proj).flatten(0, 1)

    x = torch.cat([kind.flatten(0, 1) for kind in kinds])
    for block in blocks:
        assert isinstance(block, Block)
        parts = norm_linear(x, block.norm1, block.attn.qkv).split(lengths)
        pairs = zip(parts, shapes, strict=True)
        x = x + torch.cat([attended(block, qkv, shape) for qkv, shape in pairs])
        x = x + gelu_linear(norm_linear(x, block.norm2, block.mlp.fc1), block.mlp.fc2)
    return [part.unflatten(0, shape) for part, shape in zip(x.split(lengths), shapes, strict=True)]


def gradients(blocks: nn.ModuleList, way: Pass, kinds: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients of the weights."""
    blocks.zero_grad(set_to_none=True)
    outputs = way(blocks, kinds)
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    return [*outputs, *(p.grad for p in blocks.parameters() if p.grad is not None)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed against separate passes.")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--images", type=int, default=8, help="images in a batch (default 8)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default 9)")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(WIDTH, HEADS, qkv_bias=True) for _ in range(DEPTH)).to(device)
    kinds = [
        torch.randn(VIEWS[kind] * options.images, TOKENS[kind], WIDTH, device=device)
        for kind in TOKENS
    ]
    exact = [gradients(blocks, way, kinds) for way in (separate, packed)]
    for one, other in zip(*exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()))

    bf16 = use_bf16("auto", device)
    for block in blocks:
        assert isinstance(block, Block)
        block.attn.fused_attn = not (bf16 and device.type == "cpu")

    def step(way: Pass) -> Callable[[int], object]:
        def run(number: int) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                gradients(blocks, way, kinds)

        return run

    steps = {"separate": step(separate), "packed": step(packed)}
    times = take_turns(steps, options.rounds, device)
    ratio = statistics.median(
        a / b for a, b in zip(times["separate"], times["packed"], strict=True)
    )
    print(f"\n{options.images} images; {machine(device)}")
    print(f"packed is {ratio:.3f} times as fast as separate")


if __name__ == "__main__":
    main()
