"""Section `optimization`: AdamW and its schedules."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from msn.config.sections.base import (
    EpochSpan,
    Few,
    GradientNorm,
    Million,
    NonNegative,
    Section,
)


class Optimization(Section):
    """AdamW and its schedules."""

    epochs: Million = 800
    """Length of the run."""
    warmup: EpochSpan = 15.0
    """Epochs of linear warm-up from start_lr to lr."""
    start_lr: NonNegative = 0.0002
    """Learning rate at the first step."""
    lr: NonNegative = 0.001
    """Learning rate after warm-up."""
    final_lr: NonNegative = 1e-6
    """Learning rate at the end of the stretched cosine."""
    weight_decay: NonNegative = 0.04
    """Weight decay at the first step."""
    final_weight_decay: NonNegative = 0.4
    """Weight decay at the end of the stretched cosine."""
    clip_grad: GradientNorm | None = 3.0
    """Largest gradient norm of the encoder; null does not clip."""
    schedule_stretch: Annotated[float, Field(ge=1, le=1000)] = 1.25
    """All schedules are laid out over this many times the run, and cut at its end."""
    accumulate: Few = 1
    """Micro-batches per step; Sinkhorn and the mean assignment see all of them."""

    def horizon(self, steps_per_epoch: int) -> float:
        """Compute the number of steps that the schedules are laid out over, not rounded."""
        return self.schedule_stretch * self.epochs * steps_per_epoch

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.warmup > self.epochs:
            rule = f"{self.warmup:g} epochs are longer than the run of {self.epochs}"
            yield "warmup", f"{rule}; lower it or raise optimization.epochs"
