"""Training steps of MAE and SimMIM against plain fp32 eager ones and against lightly's.

    python benchmarks/masked_step.py                 ViT-B/16, 8 images of 224 px
    python benchmarks/masked_step.py --require 1.8   fails below that many times the plain speed

Ours and the plain steps (`masked_baseline.py`) start from the same weights and must first agree on
the loss in fp32; all get the same uint8 images and masks. SimMIM has learned positions here, so
that all encoders are the same; a row shows the recipe's relative ones. They take turns, and a ratio
is that of the shortest steps: what else the machine does only ever lengthens one. On a busy machine
take one thread (OMP_NUM_THREADS=1): then its processor time counts.

MAE's encoder alone is timed at several mask ratios, too: its cost has to fall as its tokens do,
with images enough that casts of the weights, which no mask makes fewer, do not show.
Needs the extra "benchmarks" (lightly).
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from baseline import Settings
from masked_baseline import Plain, PlainMAE, PlainSimMIM
from measure import Step, machine, matmul_flops, take_turns, write_results
from subjects import CONFIGS, step_parser

from msn.config.kinds import Config
from msn.config.load import load_config
from msn.config.sizes import ENCODERS
from msn.data.batch import Views
from msn.methods.image_method import IMAGE
from msn.methods.mae import MAE
from msn.methods.simmim import SimMIM
from msn.models.mask_units import enlarged
from msn.models.masking import keep_lowest, keyed_noise
from msn.train.build import Parts, build_parts
from msn.train.step import train_step

RATIOS = (0.0, 0.5, 0.75)
LOSS_TOLERANCE = 1e-4
TOKEN_TOLERANCE = 0.1
RELATIVE = "relative positions"


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    results = {}
    for method in options.methods:
        if not losses_agree(method, device):
            return 1
        times = take_turns(steps(method, options.images, device), options.rounds, device)
        results[method] = table({name: min(row) for name, row in times.items()}, options.images)
    if "mae" in options.methods:
        passes = encoder_passes(options.mask_images, device)
        times = take_turns(passes, options.rounds, device)
        results["mae encoder"] = masks({name: min(row) for name, row in times.items()})
    peak = matmul_flops(device) / 1e9
    images = f"{options.images} images (the encoder alone: {options.mask_images})"
    title = f"ViT-B/16, {images}; shortest of {options.rounds} rounds"
    print(f"\n{title}\n{machine(device)}, {peak:.0f} GFLOP/s in bf16")
    for method, rows in results.items():
        show(method, rows)
        if options.out:
            name = f"masked_step {options.device} {method}"
            write_results(options, name, {"title": title, "rows": rows})
    return verdict(results, options.require)


def parse() -> argparse.Namespace:
    parser = step_parser("Steps of MAE and SimMIM, side by side.", model="vitb16", rounds=5)
    parser.set_defaults(images=8)
    parser.add_argument(
        "--methods", nargs="+", choices=("mae", "simmim"), default=("mae", "simmim")
    )
    parser.add_argument("--mask-images", type=int, default=32, help="of the encoder (default 32)")
    parser.add_argument("--require", type=float, help="fail when a speed is below this")
    return parser.parse_args()


def recipe(method: str, images: int, *changes: str) -> Config:
    """A published recipe, whose images random pixels stand for."""
    own = [f"criterion.batch_size={images}", "data.source=digits", "data.channels=3"]
    if method == "simmim":
        own += ["meta.positions=learned", "meta.layer_scale=null", "meta.drop_path_rate=0"]
    return load_config(CONFIGS / f"{method}_vitb16.yaml", [*own, *changes])


def pixels(images: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (images, 224, 224, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)


def mask_of(parts: Parts, images: torch.Tensor, step: int) -> torch.Tensor:
    """What our method masks at a step, as the others take it, see `masked_baseline`."""
    method, first = parts.model, images.movedim(-1, 1)
    if isinstance(method, MAE):
        return method.draw_kept(first, step).ranks
    assert isinstance(method, SimMIM)
    units = method.draw_units(first, step)
    return enlarged(units, method.masking.unit // 16).flatten(1)


def same_start(parts: Parts) -> Plain:
    """The plain method with the weights of `parts`."""
    method, sizes = parts.model, settings(parts)
    plain: Plain
    if isinstance(method, MAE):
        plain = PlainMAE(sizes)
        plain.decoder.load_state_dict(method.decoder.state_dict())
    else:
        assert isinstance(method, SimMIM)
        plain = PlainSimMIM(sizes)
        plain.head.load_state_dict(method.decoder[0].state_dict())
        with torch.no_grad():
            plain.mask_token.copy_(method.token.mask_token.reshape(1, 1, -1))
    plain.encoder.load_state_dict(method.encoder.state_dict())
    return plain


def settings(parts: Parts) -> Settings:
    size = ENCODERS["deit_base"]
    return Settings(
        width=size.embed_dim,
        depth=size.depth,
        heads=size.num_heads,
        mean=tuple(parts.mean.tolist()),
        std=tuple(parts.std.tolist()),
    )


def losses_agree(method: str, device: torch.device) -> bool:
    """Whether ours and the plain one compute the same, in fp32, on two images."""
    parts = build_parts(recipe(method, 2, "meta.precision=fp32"), device)
    plain, images = same_start(parts).to(device), pixels(2, device)
    with torch.no_grad():
        theirs: float = plain.loss(plain.normalize(images), mask_of(parts, images, 0)).item()
        views = Views({IMAGE: images[None]}).normalized(parts.mean, parts.std)
        ours: float = parts.model(views, step=0).loss.item()
    print(f"{method}: loss in fp32 {theirs:.6f} plain, {ours:.6f} ours")
    agree = abs(theirs - ours) <= LOSS_TOLERANCE
    if not agree:
        print(f"error: the two do not compute the same (tolerance {LOSS_TOLERANCE:g})")
    return agree


def steps(method: str, images: int, device: torch.device) -> dict[str, Step]:
    """The training step of each subject on one batch."""
    from lightly_masked import LightlyMAE, LightlySimMIM

    parts, batch = build_parts(recipe(method, images), device), pixels(images, device)
    views = Views({IMAGE: batch[None]})
    others = {
        "plain": same_start(parts),
        "lightly": (LightlyMAE if method == "mae" else LightlySimMIM)(settings(parts)),
    }

    def ours(parts: Parts, step: int) -> object:
        return train_step(parts, views.normalized(parts.mean, parts.std), step)

    def theirs(other: Any, step: int) -> float:
        loss: float = other.step(batch, mask_of(parts, batch, step))
        return loss

    for other in others.values():
        other.prepare(parts.schedules.learning_rate(1), 0.05, device)
    made: dict[str, Step] = {name: partial(theirs, other) for name, other in others.items()}
    made["ours"] = partial(ours, parts)
    if method == "simmim":
        config = recipe(method, images, "meta.positions=shared", "meta.layer_scale=0.1")
        made[f"ours, {RELATIVE}"] = partial(ours, build_parts(config, device))
    return made


def encoder_passes(images: int, device: torch.device) -> dict[str, Step]:
    """Forward and backward of MAE's encoder, as training computes them, at each mask ratio."""
    parts = build_parts(recipe("mae", images), device)
    encoder: Any = parts.model.encoder
    inputs = torch.randn(images, 3, 224, 224, device=device)

    def run(ratio: float, number: int) -> None:
        noise = keyed_noise(196, seed=number, images=images)
        kept = keep_lowest(noise, ratio).to(device).indices
        encoder.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=parts.bf16):
            tokens = encoder.tokens(inputs, kept)
        tokens.float().square().sum().backward()

    return {f"mask {ratio:g}": partial(run, ratio) for ratio in RATIOS}


def table(shortest: Mapping[str, float], images: int) -> dict[str, dict[str, float]]:
    """A row for each subject: seconds, images, and speeds against the plain step and lightly's."""
    return {
        name: {
            "s / step": seconds,
            "images/s": images / seconds,
            "to plain": shortest["plain"] / seconds,
            "to lightly": shortest["lightly"] / seconds,
        }
        for name, seconds in shortest.items()
    }


def masks(shortest: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """A row for each mask ratio: tokens with the class token, and time, as shares of the whole."""
    whole = shortest["mask 0"]
    rows = {}
    for ratio in RATIOS:
        tokens = 1 + int(196 * (1 - ratio))
        seconds = shortest[f"mask {ratio:g}"]
        row = {
            "tokens": tokens,
            "s": seconds,
            "of tokens": tokens / 197,
            "of time": seconds / whole,
        }
        rows[f"mask {ratio:g}"] = {**row, "over": row["of time"] / row["of tokens"] - 1}
    return rows


def show(method: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{method:28}" + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        print(f"{name:28}" + "".join(f"{row[column]:12.3f}" for column in columns))


def verdict(results: Mapping[str, Any], required: float | None) -> int:
    """1 if a speed or MAE's encoder misses what is asked for, else 0."""
    failed = 0
    for method, rows in results.items():
        if required and "ours" in rows:
            slow = {key: rows["ours"][key] for key in ("to plain", "to lightly")}
            for key, value in slow.items():
                if value < required:
                    print(f"error: {method}: {value:.2f} {key}, below {required:g}")
                    failed = 1
        over = rows.get("mask 0.75", {}).get("over", 0.0)
        if over > TOKEN_TOLERANCE:
            print(f"error: at mask .75 the encoder takes {over:.0%} more than its tokens say")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
