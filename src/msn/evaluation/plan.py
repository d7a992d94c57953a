"""The dry run of an evaluation: what its config would do."""

from collections.abc import Sequence

import torch

from msn.config.kinds import EvaluationFile
from msn.evaluation.job import Job
from msn.runtime.devices import described, use_bf16
from msn.runtime.errors import UserError
from msn.runtime.wording import aligned, counted


def describe(
    config: EvaluationFile,
    job: Job,
    classifiers: Sequence[str],
    device: torch.device,
    processes: int = 1,
    done: int = 0,
) -> str:
    """Describe what an evaluation does as text, one fact a line, as the run also logs it.

    Args:
        config: of the evaluation.
        job: what there is to learn.
        classifiers: names of what is trained.
        device: that it computes on.
        processes: that share the work.
        done: steps that a checkpoint goes on from.

    Raises:
        UserError: there are fewer images than a step takes.
    """
    whole = job.batch_size * processes
    steps = len(job.train) // whole
    if not steps:
        raise UserError(
            f"optimization.batch_size: a step takes {whole} images over all processes, there are"
            f" only {len(job.train)} for training; lower it"
        )
    epochs = job.total_steps // job.steps_per_epoch
    facts = {
        "device": f"{described(device)}, {counted(processes, 'process')}",
        "precision": "bf16" if use_bf16(config.meta.precision, device) else "fp32",
        "weights": config.logging.pretrain_path,
        "images": f"{len(job.train)} to learn from, {len(job.val)} to measure with",
        "classes": str(job.classes),
        "classifiers": f"{len(classifiers)}: {', '.join(classifiers)}",
        "batch": f"{job.batch_size} per process, {whole} over all",
        "steps": f"{steps} per epoch, {steps * epochs} in {counted(epochs, 'epoch')}",
        "output": f"{config.logging.folder}/{config.logging.write_tag}-*",
        "start": f"after {done:,} of {steps * epochs:,} steps" if done else "from the beginning",
    }
    return aligned(facts.items())
