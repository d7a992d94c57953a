"""What several processes cost: one against two at equal global batch, and the plan for many GPUs.

    python benchmarks/scaling.py            time per step, time in collectives, bytes sent
    python benchmarks/scaling.py --table    docs/scaling.md's table of the paper's models

The two sides run in turns, round by round: one process with two threads, then two processes with
one thread each. Collectives are timed and counted in the last round of its own, by a wrapper around
the functions of torch.distributed, as that slows them down a little.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from msn.config.kinds import MSNConfig
from msn.config.load import load
from msn.methods.base import activation_bytes
from msn.methods.msn.build import build_anchor
from msn.methods.msn.plan import flops_per_image, patches_of
from msn.train.build import build_parts, share_out
from msn.train.step import train_step

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs/pretrain/msn_vits16.yaml"
PAPER = ("vits16", "vitb16", "vitl16", "vitb8", "vitl7", "vitb4")
GPUS = (8, 64, 400)
WARMUP = 2
PEAK_FLOPS, EFFICIENCY = 312e12, 0.35  # A100 in bf16, and the share of it that is assumed
BANDWIDTH = 12.5e9  # bytes/s into and out of each GPU between machines: 100 Gbit/s


@dataclass
class Traffic:
    """Collectives of a number of steps."""

    calls: int = 0
    seconds: float = 0.0
    sent: float = 0.0  # bytes, by each process, of ring algorithms


def config_of(images: int, image_size: int) -> MSNConfig:
    changes = ["data.source=digits", "data.channels=3", f"data.rand_size={image_size}"]
    changes += [f"data.focal_size={image_size // 2}", "data.mask_scope=global"]
    changes += ["criterion.batch_size=null", f"criterion.global_batch_size={images}"]
    return load(MSNConfig, RECIPE, [*changes, "meta.precision=fp32"])


def steps_of(images: int, image_size: int, steps: int, counting: bool) -> dict[str, Any]:
    """Seconds of each step of this process, and its collectives."""
    from msn.methods.msn.model import views_of

    config = config_of(images, image_size)
    parts = build_parts(config, torch.device("cpu")).replicated()
    own, data = parts.batch.own, config.data

    def noise(*shape: int, size: int) -> torch.Tensor:
        return torch.randn(*shape, own, 3, size, size)

    views = views_of(
        noise(size=data.rand_size),
        noise(data.rand_views, size=data.rand_size),
        noise(data.focal_views, size=data.focal_size),
    )
    seconds, traffic = [], Traffic()
    for step in range(WARMUP + steps):
        if step == WARMUP and counting:
            count_collectives(traffic)
        begin = time.perf_counter()
        train_step(parts, views, step)
        if step >= WARMUP:
            seconds.append(time.perf_counter() - begin)
    trained = sum(p.numel() * p.element_size() for p in parts.model.parameters() if p.requires_grad)
    return {"seconds": seconds, "traffic": traffic, "gradients": trained}


def count_collectives(traffic: Traffic) -> None:
    """Time the collectives outside of DistributedDataParallel, whose bytes are the gradients'."""
    for name in ("all_reduce", "all_gather_into_tensor"):
        original: Callable[..., Any] = getattr(dist, name)

        def timed(*arguments: Any, original: Callable[..., Any] = original, **options: Any) -> Any:
            begin = time.perf_counter()
            result = original(*arguments, **options)
            traffic.seconds += time.perf_counter() - begin
            traffic.calls += 1
            traffic.sent += ring_bytes(arguments[0].nbytes, dist.get_world_size())
            return result

        setattr(dist, name, timed)


def ring_bytes(size: int, processes: int) -> float:
    """Bytes that each process sends in a ring all-reduce, which is the least possible."""
    return 2 * size * (processes - 1) / processes


def member(rank: int, size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(2 // size)
    if size > 1:
        store = dist.FileStore(f"{folder}/store", size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(steps_of(*arguments), f"{folder}/{rank}.pt")


def run_on(processes: int, *arguments: Any) -> dict[str, Any]:
    """What rank 0 measured."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        members = [
            context.Process(target=member, args=(rank, processes, folder, arguments))
            for rank in range(processes)
        ]
        for process in members:
            process.start()
        for process in members:
            process.join()
        found: dict[str, Any] = torch.load(f"{folder}/0.pt", weights_only=False)
        return found


def compare(images: int, image_size: int, steps: int, rounds: int) -> None:
    """Print seconds per step of both sides, and what the collectives are."""
    from measure import cpu_name

    alone, together = [], []
    for _ in range(rounds):
        alone.append(statistics.median(run_on(1, images, image_size, steps, False)["seconds"]))
        together.append(statistics.median(run_on(2, images, image_size, steps, False)["seconds"]))
    counted = run_on(2, images, image_size, steps, True)
    traffic, gradients = counted["traffic"], ring_bytes(counted["gradients"], 2)
    ratios = [both / one for one, both in zip(alone, together, strict=True)]
    sent = gradients + traffic.sent / steps
    print(f"{cpu_name()}, {os.cpu_count()} virtual cores, torch {torch.__version__}")
    print(f"ViT-S/16, {image_size} px, global batch {images}, {steps} steps, {rounds} rounds")
    print(f"1 process x 2 threads    {statistics.median(alone):.3f} s per step")
    print(f"2 processes x 1 thread   {statistics.median(together):.3f} s per step")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"ratio                    {statistics.median(ratios):.3f} ({spread})")
    print(
        f"small collectives        {traffic.calls / steps:.0f} per step,"
        f" {1000 * traffic.seconds / steps:.1f} ms per step, waiting for the other included"
    )
    print(
        f"bytes sent per step      {sent:,.0f}, of the gradients {gradients:,.0f} (least possible):"
        f" {100 * (sent / gradients - 1):.2f} % more"
    )


def table() -> None:
    """Print memory, time and traffic of the paper's models on many GPUs, from their plans."""
    columns = ["model", "GPUs", "images per GPU", "GB per GPU", "s per step", "GB sent", "exposed"]
    print("|", " | ".join(columns), "|")
    print("|", " | ".join(["---"] * len(columns)), "|")
    for name in PAPER:
        config = load(MSNConfig, RECIPE.with_name(f"msn_{name}.yaml"), ["data.root_path=unused"])
        with torch.device("meta"):
            anchor = build_anchor(config, 3)
        whole = share_out(config, 1).micro
        flops = flops_per_image(config, anchor)
        for gpus in GPUS:
            print(row(name, config, anchor, flops, whole, gpus), flush=True)


def row(name: str, config: MSNConfig, anchor: Any, flops: float, micro: int, gpus: int) -> str:
    from msn.models.masking import kept_patches

    data, batch = config.data, 1152 if name == "vitb4" else 1024
    own = batch / gpus
    micro = min(micro, max(1, round(own)))
    accumulate = max(1, -(-round(own) // micro))
    kept = kept_patches(patches_of(anchor, data.rand_size), data.patch_drop)
    tokens = data.rand_views * (1 + kept)
    tokens += data.focal_views * (1 + patches_of(anchor, data.focal_size))
    encoder = sum(parameter.numel() for parameter in anchor.parameters())
    trained = encoder + config.criterion.num_proto * config.meta.output_dim
    # Anchor, its gradients and two moments, target; and DDP's view of the gradients costs nothing.
    fixed = 4 * (4 * trained + encoder)
    memory = fixed + micro * activation_bytes(anchor.blocks, tokens, bf16=True)
    if accumulate > 1:  # anchors are encoded once more
        flops *= 4 / 3
    compute = own * flops / (PEAK_FLOPS * EFFICIENCY)
    sent = ring_bytes(4 * trained, gpus)
    # The backward pass, two thirds of the time, hides what is sent meanwhile.
    exposed = max(0.0, sent / BANDWIDTH - 2 / 3 * compute) / compute
    share = f"{own:.3g} as {micro} x {accumulate}"
    return (
        f"| {name} | {gpus} | {share} | {memory / 1e9:.1f} | {compute:.2f} |"
        f" {sent / 1e9:.2f} | {100 * exposed:.0f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="the plan for many GPUs")
    parser.add_argument("--images", type=int, default=16, help="global batch")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.table:
        table()
    else:
        compare(options.images, options.image_size, options.steps, options.rounds)


if __name__ == "__main__":
    main()
