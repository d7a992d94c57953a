"""One optimizer step of pre-training."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from msn.data.batch import Views
from msn.methods import Output
from msn.methods.optim import set_hyperparameters, step_unless
from msn.runtime import collectives
from msn.runtime.keyed import Stream, seed64
from msn.runtime.sharding import full
from msn.train.build import Parts


class StepResult(NamedTuple):
    """What one training step leaves behind for the run log."""

    output: Output
    loss: Tensor
    grad_norm: Tensor


def train_step(parts: Parts, views: Views, step: int) -> StepResult:
    """Take one optimizer step on one batch of normalized views.

    Order as in the official code: losses at `step`, hyperparameters of the schedule's next step,
    backward, clip, AdamW, what the method does after a step. A step that is not finite, and all
    after it, leave weights and optimizer as they were.
    """
    model, optimizer, schedules = parts.model, parts.optimizer, parts.schedules
    # Stochastic depth draws from the global generators: key them, so that a resumed run agrees.
    torch.manual_seed(seed64(parts.seed, Stream.STEP, step, collectives.rank()))
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.bf16):
        output = parts.replica(views, step=step)
    set_hyperparameters(
        optimizer,
        learning_rate=schedules.learning_rate(step + 1),
        weight_decay=schedules.weight_decay(step + 1),
    )
    with record_function("backward"):
        output.loss.backward()
    with record_function("gradient norm"):
        grad_norm = full(_clipped_norm(list(model.clipped()), parts.clip_grad))
    loss = collectives.mean(output.loss.detach())
    with record_function("optimizer"):
        step_unless(optimizer, parts.guard.update(step, loss, grad_norm))
    with record_function("after the step"):
        model.after_step(step)
    return StepResult(output, loss, grad_norm)


def _clipped_norm(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Measure the norm of the gradients and clip it; without a limit they are not touched."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
