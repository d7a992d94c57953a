"""A training step against a plain fp32 eager one (`baseline.py`) and against lightly's MSN.

    python benchmarks/train_step.py                 ViT-S/16, 16 images, 1 random + 10 focal views
    python benchmarks/train_step.py --require 2.0   fails below twice as fast as the baseline
    python benchmarks/train_step.py --device cuda --model vitb16 --images 64

Ours and the baseline start from the same weights and must first agree on the loss in fp32; all get
the same uint8 views and keep the same patches. Then they take turns, so that whatever else the
machine does falls on each. The first turns do not count: while the heap of a process is young, page
faults make the plain step up to 1.7 times as slow, and a training run is not made of such steps.
Peak memory is taken in a process of its own for each.
"""

import argparse
import json
import statistics
import sys

import torch
from measure import (
    PeakMemory,
    in_fresh_process,
    machine,
    matmul_flops,
    seconds,
    take_turns,
    wait_for,
    write_results,
)
from subjects import (
    NAMES,
    OURS,
    fp32_losses,
    random_views,
    recipe,
    same_start,
    step_of,
    step_parser,
)

from msn.config.kinds import MSNConfig
from msn.methods.msn.build import build_anchor
from msn.methods.msn.plan import flops_per_image
from msn.train.build import build_parts

LOSS_TOLERANCE = 1e-4


def main() -> int:
    options = parse()
    if options.memory_of:
        print(json.dumps(peak_memory(options.memory_of, options)))
        return 0
    memory = {name: in_fresh_process(memory_arguments(name)) for name in options.subjects}
    config, device = recipe(options.model, options.images), torch.device(options.device)
    parts, views = build_parts(config, device), random_views(config, device)
    if not losses_agree(options):
        return 1
    steps = {name: step_of(name, parts, config, views) for name in options.subjects}
    if "compiled" in steps:
        print(f"first step, compiling: {seconds(steps['compiled'], 0, device):.1f} s")
    times = take_turns(steps, options.rounds, device, warm_up=options.warm_up)
    rows = table(config, times, memory, options)
    data, precision = config.data, "bf16" if parts.bf16 else "fp32"
    title = (
        f"{config.meta.model_name}, {options.images} images, {data.rand_views} random +"
        f" {data.focal_views} focal views, patch_drop {data.patch_drop:g}; ours in {precision}"
    )
    print(f"\n{title}; median of {options.rounds} rounds\n{machine(device)}")
    print("a share of the peak is one of a bf16 product of 2048 (GPU: 8192) rows\n")
    show(rows)
    if options.out:
        name = f"train_step {options.device} {options.model}"
        write_results(options, name, {"title": title, "rows": rows})
    own = [rows[name].get("time ratio", float("inf")) for name in rows if name in OURS]
    best = max(own, default=float("inf"))
    if options.require and best < options.require:
        print(f"error: the best ratio, {best:.2f}, is below {options.require:g}")
        return 1
    return 0


def parse() -> argparse.Namespace:
    parser = step_parser("A training step, side by side.", model="vits16", rounds=5)
    parser.add_argument("--warm-up", type=int, default=5, help="steps before that (default 5)")
    parser.add_argument(
        "--subjects", nargs="+", choices=NAMES, default=NAMES, help="what to compare (default all)"
    )
    parser.add_argument(
        "--require", type=float, help="fail when the better ratio of ours is below this"
    )
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args()


def losses_agree(options: argparse.Namespace) -> bool:
    """Whether ours and the baseline compute the same, in fp32, on two images."""
    config = recipe(options.model, 2, "meta.precision=fp32")
    parts = build_parts(config, torch.device("cpu"))
    views = random_views(config, parts.device)
    losses = fp32_losses(parts, same_start(parts, config), views)
    print(f"loss in fp32: {losses[0]:.6f} baseline, {losses[1]:.6f} ours")
    agree = abs(losses[0] - losses[1]) <= LOSS_TOLERANCE
    if not agree:
        print(f"error: the two do not compute the same (tolerance {LOSS_TOLERANCE:g})")
    return agree


def peak_memory(name: str, options: argparse.Namespace) -> int:
    """Bytes of two steps, the first of which allocates the optimizer's state."""
    config, device = recipe(options.model, options.images), torch.device(options.device)
    parts, views = build_parts(config, device), random_views(config, device)
    step = step_of(name, parts, config, views)
    memory = PeakMemory(device)
    for number in range(2):
        step(number)
    wait_for(device)
    return memory.read()


def memory_arguments(name: str) -> list[str]:
    return [*sys.argv[1:], "--memory-of", name]


def table(
    config: MSNConfig,
    times: dict[str, list[float]],
    memory: dict[str, int],
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """A row for each subject; ratios are medians over the rounds, against the baseline."""
    with torch.device("meta"):
        flops = flops_per_image(config, build_anchor(config, 3)) * options.images
    peak = matmul_flops(torch.device(options.device))
    rows = {}
    for name, own in times.items():
        median = statistics.median(own)
        row = {
            "s / step": median,
            "images/s": options.images / median,
            "TFLOP/s": flops / median / 1e12,
            "peak MiB": memory[name] / 2**20,
        }
        for other in ("baseline", "lightly"):
            if other in times:
                key = "time ratio" if other == "baseline" else "to lightly"
                pairs = zip(times[other], own, strict=True)
                row[key] = statistics.median(theirs / mine for theirs, mine in pairs)
        if "baseline" in memory:
            row["memory ratio"] = memory[name] / memory["baseline"]
        row["share of peak"] = flops / median / peak
        rows[name] = row
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"{'':10}" + "".join(f"{column:>15}" for column in columns))
    for name, row in rows.items():
        cells = (
            f"{row[column]:15.1f}" if row[column] >= 100 else f"{row[column]:15.3f}"
            for column in columns
        )
        print(f"{name:10}" + "".join(cells))


if __name__ == "__main__":
    sys.exit(main())
