"""Draw benchmarks/results.json, which the other benchmarks fill with `--out`.

python benchmarks/figures.py    writes benchmarks/speed.png
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = {
    "baseline": "plain PyTorch",
    "lightly": "lightly",
    "ours": "this project",
    "compiled": "this, compiled",
}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = json.loads((HERE / "results.json").read_text())
    steps = {name: value for name, value in results.items() if name.startswith("train_step")}
    masks = {name: value for name, value in results.items() if name.startswith("mask_ratio")}
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    draw_ratios(axes[0], steps, "time ratio", "times the speed of the plain fp32 step")
    draw_ratios(axes[1], steps, "memory ratio", "peak memory, share of the plain step's")
    draw_masks(axes[2], masks)
    figure.savefig(HERE / "speed.png", dpi=110)


def model_of(name: str) -> str:
    """Write `train_step cpu vits16` as `ViT-S/16, CPU`."""
    _, device, model = name.split()
    return f"ViT-{model[3].upper()}/{model[4:]}, {device.upper()}"


def draw_ratios(axis: Any, steps: dict[str, Any], column: str, title: str) -> None:
    """Bars of one column, a group for each run."""
    subjects = list(dict.fromkeys(subject for run in steps.values() for subject in run["rows"]))
    for offset, subject in enumerate(subjects):
        found = {
            position: run["rows"][subject][column]
            for position, run in enumerate(steps.values())
            if subject in run["rows"]
        }
        places = [position + 0.22 * (offset - 1.5) for position in found]
        bars = axis.bar(places, list(found.values()), 0.2, color=f"C{offset}", label=NAMES[subject])
        axis.bar_label(bars, fmt="%.2f", fontsize=6)
    axis.set_xticks(range(len(steps)), [model_of(name) for name in steps])
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(title, fontsize=10)
    axis.margins(y=0.4)
    axis.legend(fontsize=7, ncols=2, loc="upper center")


def draw_masks(axis: Any, masks: dict[str, Any]) -> None:
    """Time of the masked pass against the share of tokens that are left."""
    for name, result in masks.items():
        rows = result["rows"]
        mask = [row["mask"] for row in rows]
        times = [row["time ratio"] for row in rows]
        axis.plot(mask, times, "o-", label=f"measured, {model_of(name)}")
        axis.plot(
            mask,
            [row["token ratio"] for row in rows],
            "k--",
            label="share of tokens left" if name == next(iter(masks)) else None,
        )
    axis.set_xlabel("mask ratio")
    axis.set_title("time of the masked pass, share of the whole", fontsize=10)
    axis.set_ylim(0, 1.05)
    axis.legend(fontsize=8)


if __name__ == "__main__":
    main()
