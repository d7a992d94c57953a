"""The dry run of an evaluation: what its config would do, without doing it."""

from collections.abc import Sequence

import torch

from msn.config.load import EvaluationFile
from msn.evaluation.job import Job
from msn.runtime.errors import UserError


def describe(
    config: EvaluationFile,
    job: Job,
    classifiers: Sequence[str],
    device: torch.device,
    processes: int = 1,
) -> str:
    """Tell the plan as text, one fact a line.

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
        "device": f"{device}, {processes} {'process' if processes == 1 else 'processes'}",
        "weights": config.logging.pretrain_path,
        "images": f"{len(job.train)} to learn from, {len(job.val)} to measure with",
        "classes": str(job.classes),
        "classifiers": f"{len(classifiers)}: {', '.join(classifiers)}",
        "batch": f"{job.batch_size} per process, {whole} over all",
        "steps": f"{steps} per epoch, {steps * epochs} in {epochs} epochs",
        "output": f"{config.logging.folder}/{config.logging.write_tag}-*",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {fact}" for name, fact in facts.items())
