"""Does the cost of the masked pass fall with the mask, as the number of tokens says?

    python benchmarks/mask_ratio.py                              ViT-L/16, 16 images
    python benchmarks/mask_ratio.py --device cuda --images 64

Times and measures the peak memory of the anchor's pass over the random views alone, forward and
backward, at mask ratios 0, .3, .5 and .7; the ratios take turns. Beside it stand the numbers of the
paper (Table 10: whole steps of ViT-L/7 on 8 A100, with 10 focal views that no mask makes cheaper).
"""

import argparse
import json
import statistics
import sys

import torch
from measure import PeakMemory, Step, in_fresh_process, machine, take_turns, wait_for, write_results
from subjects import recipe, step_parser

from msn.methods.msn.build import build_anchor
from msn.models.masking import kept_patches, random_keep
from msn.runtime.devices import use_bf16

RATIOS = (0.0, 0.3, 0.5, 0.7)
PAPER_GB = (26, 21, 18, 17)  # per GPU
PAPER_THROUGHPUT = (415, 480, 525, 600)  # images/s
TOLERANCE = 0.1


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    if options.memory_of is not None:
        (step,) = passes(options, [options.memory_of]).values()
        memory = PeakMemory(device)
        step(0)
        wait_for(device)
        print(json.dumps(memory.read()))
        return 0
    times = take_turns(passes(options, RATIOS), options.rounds, device)
    rows = []
    for ratio, paper_gb, paper_speed in zip(RATIOS, PAPER_GB, PAPER_THROUGHPUT, strict=True):
        own, whole = times[f"mask {ratio:g}"], times["mask 0"]
        memory = in_fresh_process([*sys.argv[1:], "--memory-of", str(ratio)])
        rows.append(
            {
                "mask": ratio,
                "tokens": tokens(options, ratio),
                "token ratio": tokens(options, ratio) / tokens(options, 0.0),
                "s": statistics.median(own),
                "time ratio": statistics.median(a / b for a, b in zip(own, whole, strict=True)),
                "peak MiB": memory / 2**20,
                "paper GB": paper_gb,
                "paper time ratio": PAPER_THROUGHPUT[0] / paper_speed,
            }
        )
    print(f"\n{options.model}, masked pass of {options.images} images; {machine(device)}\n")
    print("".join(f"{name:>18}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:18.3f}" for value in row.values()))
    off = rows[-1]["time ratio"] / rows[-1]["token ratio"] - 1
    print(f"\nmask .7, against what the tokens say: {100 * off:+.1f} % (at most {TOLERANCE:.0%})")
    if options.out:
        write_results(options, f"mask_ratio {options.device} {options.model}", {"rows": rows})
    return int(off > TOLERANCE)


def parse() -> argparse.Namespace:
    parser = step_parser("The cost of the masked pass.", model="vitl16", rounds=3)
    parser.add_argument("--memory-of", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def tokens(options: argparse.Namespace, ratio: float) -> int:
    """Of a random view, with its class token."""
    config = recipe(options.model, options.images)
    patches = config.meta.grid(config.data.rand_size) ** 2
    return 1 + kept_patches(patches, ratio)


def passes(options: argparse.Namespace, ratios: tuple[float, ...] | list[float]) -> dict[str, Step]:
    """Forward and backward of one encoder, as training computes them, at each mask ratio."""
    config, device = recipe(options.model, options.images), torch.device(options.device)
    bf16 = use_bf16(config.meta.precision, device)
    anchor = build_anchor(config, 3).to(device)
    anchor.use_fused_attention(not (bf16 and device.type == "cpu"))
    size = config.data.rand_size
    images = torch.randn(options.images, 3, size, size, device=device)

    def make(ratio: float) -> Step:
        patches = config.meta.grid(size) ** 2
        keep = random_keep(patches, ratio, seed=0, images=options.images, first=0, scope="batch")
        keep = None if keep is None else keep.to(device)

        def step(number: int) -> None:
            anchor.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features = anchor(images, keep)
            features.float().square().sum().backward()

        return step

    return {f"mask {ratio:g}": make(ratio) for ratio in ratios}


if __name__ == "__main__":
    sys.exit(main())
