"""`msn submit`, also `main_distributed.py`: the same config and the same run, as a SLURM job."""

import argparse
from pathlib import Path
from typing import Any

from msn.config.load import Config, FinetuneConfig, LinearConfig, load
from msn.evaluation.finetune import finetune
from msn.evaluation.linear import linear_evaluation
from msn.runtime.errors import RunError
from msn.runtime.launch import Job, Resources, submit
from msn.train.pretrain import pretrain


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command; the first ones are those of the official launcher."""
    add = parser.add_argument
    add("--fname", required=True, metavar="CONFIG", help="YAML config file")
    add("--folder", required=True, type=Path, help="where the job's output goes; shared by nodes")
    add("--partition", default="", help="of the cluster")
    add("--nodes", type=int, default=1, help="number of machines")
    add("--tasks-per-node", type=int, default=1, help="processes on each; one for each GPU")
    add("--time", type=int, default=4320, metavar="MINUTES", help="before it is queued again")
    works = parser.add_mutually_exclusive_group()
    works.add_argument(
        "--linear-eval", action="store_true", help="a linear evaluation; no pre-training"
    )
    works.add_argument("--finetune", action="store_true", help="a fine-tuning; no pre-training")
    add("--account", help="to charge")
    add("--qos", help="quality of service")
    add("--constraint", help="features that the nodes must have")
    add("--memory", type=float, metavar="GB", help="of a node; the cluster's default if absent")
    add("--cpus-per-task", type=int, help="an equal share of the node's if absent")
    add("--gpus-per-node", type=int, help="one for each task if the nodes have any")
    add("--signal-delay", type=int, default=120, metavar="SECONDS", help="to save before the end")
    add("--local", action="store_true", help="try it on this machine, without SLURM, and wait")
    add(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="values that replace those of the config file",
    )


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
