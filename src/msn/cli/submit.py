"""`msn submit`, also `main_distributed.py`: the same config and the same run, as a SLURM job."""

import argparse
from typing import Any

from msn.config.load import Config, FinetuneConfig, LinearConfig, load
from msn.evaluation.finetune import finetune
from msn.evaluation.linear import linear_evaluation
from msn.runtime.errors import RunError
from msn.runtime.launch import Job, Resources, submit
from msn.train.pretrain import pretrain


def run(options: argparse.Namespace) -> None:
    """Check the config, submit, and say where to look."""
    job: Job[Any]
    if options.linear_eval:
        job = Job(linear_evaluation, load(LinearConfig, options.fname, options.overrides))
    elif options.finetune:
        job = Job(finetune, load(FinetuneConfig, options.fname, options.overrides))
    else:
        job = Job(pretrain, load(Config, options.fname, options.overrides))
    for notice in job.config.notices():
        print(f"note: {notice}")
    submitted = submit(
        job,
        Resources(
            folder=options.folder,
            partition=options.partition,
            nodes=options.nodes,
            tasks_per_node=options.tasks_per_node,
            minutes=options.time,
            account=options.account,
            qos=options.qos,
            constraint=options.constraint,
            memory=options.memory,
            cpus_per_task=options.cpus_per_task,
            gpus_per_node=options.gpus_per_node,
            signal_delay=options.signal_delay,
            local=options.local,
        ),
    )
    print(f"job {submitted.job_id}: output in {submitted.paths.stdout}")
    if options.local:
        submitted.wait()
        if any(task.exception() for task in submitted._sub_jobs or [submitted]):
            raise RunError(f"the job failed; its output is in {submitted.paths.stdout}")
