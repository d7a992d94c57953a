"""Hyperparameters as pure functions of the global step, clamped past the end.

Nothing is fast-forwarded on resume and nothing is saved but the step. MSN schedules run over a
horizon of 1.25 times the training and are cut at its end (`optimization.schedule_stretch`), so
their final values are never reached.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from msn.config.sections.mae import MAEOptimization
from msn.config.sections.optimization import Optimization
from msn.config.sections.simmim import SimMIMOptimization

LINEAR_SHARE = 0.01
"""Of the peak rate, where SimMIM's linear schedule ends."""
Schedule = Callable[[float], float]
"""A value by step."""


@dataclass(frozen=True)
class Schedules:
    """Hyperparameters as functions of the global step."""

    learning_rate: Schedule
    weight_decay: Schedule


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


def multistep(step: float, *, peak: float, milestones: Sequence[float], gamma: float) -> float:
    """Multiply `peak` by `gamma` at every milestone, a step each."""
    return peak * gamma ** bisect_right(milestones, step)


def after_warmup(step: float, *, warmup: float, start: float, peak: float, then: Schedule) -> float:
    """Rise linearly from `start` to `peak` in `warmup` steps, then follow another schedule.

    Unlike in `warmup_cosine`, the warm-up is part of the other's time, which may so begin below
    `peak`: a cosine drops at the end of the warm-up.
    """
    return linear(step, total=warmup, start=start, final=peak) if step < warmup else then(step)


def lagging(step: float, *, behind: Schedule, steps: float) -> float:
    """Follow another schedule some steps late; before, it stays at its beginning."""
    return behind(max(step - steps, 0))


def msn_schedules(opt: Optimization, steps_per_epoch: int) -> Schedules:
    """Build MSN's official schedules of learning rate and weight decay, in whole steps."""
    horizon = int(opt.horizon(steps_per_epoch))
    return Schedules(
        learning_rate=partial(
            warmup_cosine,
            warmup=int(opt.warmup * steps_per_epoch),
            total=horizon,
            start=opt.start_lr,
            peak=opt.lr,
            final=opt.final_lr,
        ),
        weight_decay=partial(
            cosine, total=horizon, start=opt.weight_decay, final=opt.final_weight_decay
        ),
    )


def mae_schedules(opt: MAEOptimization, steps_per_epoch: int, scale: float) -> Schedules:
    """Build MAE's schedules, by the step that comes next; rates are multiplied by `scale`.

    The official code sets the rate by the number of steps done: that of the first update is the
    start of the warm-up.
    """
    official = msn_schedules(opt, steps_per_epoch)
    first = partial(lagging, behind=official.learning_rate, steps=1)
    return Schedules(partial(scaled, by=scale, schedule=first), official.weight_decay)


def scaled(step: float, *, by: float, schedule: Schedule) -> float:
    """Multiply another schedule by a number."""
    return by * schedule(step)


def simmim_rate(opt: SimMIMOptimization, steps_per_epoch: int, scale: float = 1.0) -> Schedule:
    """Build SimMIM's schedule of the learning rate, by the step that comes next.

    The official code sets the rate of a step when the one before is done, by that one's number: so
    steps 0 and 1 are alike, and all else is one step late.

    Args:
        opt: of the run.
        steps_per_epoch: of it.
        scale: what the rates of `opt` are multiplied by.
    """
    peak, warmup = scale * opt.lr, int(opt.warmup * steps_per_epoch)
    total = int(opt.horizon(steps_per_epoch))
    then: Schedule
    if opt.schedule == "cosine":
        then = partial(cosine, total=total, start=peak, final=scale * opt.final_lr)
    elif opt.schedule == "linear":
        line = partial(linear, total=total - warmup, start=peak, final=LINEAR_SHARE * peak)
        then = partial(lagging, behind=line, steps=warmup)
    else:
        milestones = [epoch * steps_per_epoch for epoch in opt.milestones]
        then = partial(multistep, peak=peak, milestones=milestones, gamma=opt.gamma)
    rate = partial(after_warmup, warmup=warmup, start=scale * opt.start_lr, peak=peak, then=then)
    return partial(lagging, behind=rate, steps=2)
