"""`msn submit`, also `main_distributed.py`: run a config as a SLURM job."""

import argparse
import re
from typing import Any

from msn.config.kinds import Config, FinetuneConfig, LinearConfig
from msn.config.load import load
from msn.runtime.checkpoint import prepare_folder
from msn.runtime.errors import RunError, UserError
from msn.train.learning import finetune, linear_evaluation
from msn.train.pretraining import pretrain
from msn.train.slurm import Job, Resources, submit

HANDED_ON = (*("account", "qos", "constraint", "reservation", "nodelist", "exclude", "comment"),)
"""Options that sbatch has under the same name."""
OWN = {
    **{name: f"--{name}" for name in ("partition", "nodes", "time", *HANDED_ON)},
    "ntasks-per-node": "--tasks-per-node",
    "mem": "--memory",
    "cpus-per-task": "--cpus-per-task",
    "gpus-per-node": "--gpus-per-node",
    "signal": "--signal-delay",
    "output": "--folder",
    "error": "--folder",
}
"""By the name of sbatch, the option of this command that --slurm must not contradict."""


def run(options: argparse.Namespace) -> None:
    """Check the config, submit the job, and print where its output is."""
    job: Job[Any]
    if options.linear_eval:
        job = Job(linear_evaluation, load(LinearConfig, options.fname, options.overrides))
    elif options.finetune:
        job = Job(finetune, load(FinetuneConfig, options.fname, options.overrides))
    else:
        job = Job(pretrain, load(Config, options.fname, options.overrides))
    for notice in job.config.notices():
        print(f"note: {notice}")
    prepare_folder(options.folder)
    submitted = submit(
        job,
        Resources(
            folder=options.folder,
            partition=options.partition,
            nodes=options.nodes,
            tasks_per_node=options.tasks_per_node,
            minutes=options.time,
            memory=options.memory,
            cpus_per_task=options.cpus_per_task,
            gpus_per_node=options.gpus_per_node,
            signal_delay=options.signal_delay,
            setup=[one_line("--setup", line) for line in options.setup],
            others=others(options),
            local=options.local,
        ),
    )
    print(f"job {submitted.job_id}: output in {submitted.paths.stdout}")
    if options.local:
        submitted.wait()
        if any(task.exception() for task in submitted._sub_jobs or [submitted]):
            raise RunError(f"the job failed; its output is in {submitted.paths.stdout}")


def others(options: argparse.Namespace) -> dict[str, str | bool]:
    """Collect the options that are passed on to sbatch.

    Raises:
        UserError: one of --slurm has no key, or this command has an option for it.
    """
    found: dict[str, str | bool] = {
        name: one_line(f"--{name}", getattr(options, name))
        for name in HANDED_ON
        if getattr(options, name) is not None
    }
    for text in options.slurm:
        key, equals, value = one_line("--slurm", text).removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise UserError(f"--slurm {text}: must be KEY=VALUE, KEY being an option of sbatch")
        if key in OWN:
            raise UserError(f"--slurm {text}: must be given as {OWN[key]}")
        found[key.replace("-", "_")] = value if equals else True
    return found


def one_line(option: str, text: str) -> str:
    """Return a text unchanged; refuse one that would be several lines of the sbatch script."""
    if not text.isprintable() or not text:
        raise UserError(
            f"{option} {text!r}: must be one line of text; give the option once for each"
        )
    return text
