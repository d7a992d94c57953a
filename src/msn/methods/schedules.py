"""Hyperparameters as pure functions of the global step, clamped past the end.

Nothing is fast-forwarded on resume and nothing is saved but the step. MSN schedules run over a
horizon of 1.25 times the training and are cut at its end (`optimization.schedule_stretch`), so
their final values are never reached.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""A value by step."""


def _progress(step: float, total: float) -> float:
    return min(max(step / total, 0.0), 1.0) if total > 0 else 1.0


def linear(step: float, *, total: float, start: float, final: float) -> float:
    """Go linearly from `start` at step 0 to `final` at step `total`, and stay there."""
    return start + (final - start) * _progress(step, total)


def cosine(step: float, *, total: float, start: float, final: float) -> float:
    """Follow half a cosine from `start` at step 0 to `final` at step `total`, and stay there."""
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, total)))


def warmup_cosine(
    step: float, *, warmup: float, total: float, start: float, peak: float, final: float
) -> float:
    """Rise linearly from `start` to `peak` in `warmup` steps, then go by cosine to `final`."""
    if step < warmup:
        return linear(step, total=warmup, start=start, final=peak)
    return cosine(step - warmup, total=total - warmup, start=peak, final=final)
