"""Draw benchmarks/results.json, which the other benchmarks fill with `--out`.

python benchmarks/figures.py    writes benchmarks/speed.png
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


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
        bars = axis.bar(places, list(found.values()), 0.2, color=f"C{offset}", label=subject)
        axis.bar_label(bars, fmt="%.2f", fontsize=6)
    axis.set_xticks(range(len(steps)), [name.removeprefix("train_step ") for name in steps])
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(title, fontsize=10)
    axis.margins(y=0.3)
    axis.legend(fontsize=7, ncols=len(subjects), loc="upper center")


def draw_masks(axis: Any, masks: dict[str, Any]) -> None:
    """Time of the masked pass against the share of tokens that are left."""
    for name, result in masks.items():
        rows = result["rows"]
        mask = [row["mask"] for row in rows]
        axis.plot(mask, [row["time ratio"] for row in rows], "o-", label=name)
        axis.plot(
            mask,
            [row["token ratio"] for row in rows],
            "k--",
            label="tokens" if name == next(iter(masks)) else None,
        )
    axis.set_xlabel("mask ratio")
    axis.set_title("time of the masked pass, share of the whole", fontsize=10)
    axis.set_ylim(0, 1.05)
    axis.legend(fontsize=8)


if __name__ == "__main__":
    main()
