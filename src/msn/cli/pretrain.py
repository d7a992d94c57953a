"""`msn pretrain`, also `main.py`: pre-train an encoder, or print what that would take or takes."""

import argparse
from functools import partial

from msn.cli import evaluate_linear, experiment
from msn.config.load import Config
from msn.runtime.errors import UserError
from msn.train.plan import describe
from msn.train.pretrain import pretrain
from msn.train.profiling import profile_steps


def run(options: argparse.Namespace) -> None:
    """Run the experiment of the config."""
    if options.linear_eval:
        if options.dry_run or options.profile:
            asked = "--dry-run plans" if options.dry_run else "--profile times"
            raise UserError(f"{asked} a pre-training; leave it out with --linear-eval")
        evaluate_linear.run(options)
    elif options.dry_run:
        config, devices, world = experiment.read(options, Config)
        print(describe(config, devices[0], max(world.size, len(devices))))
    elif options.profile:
        work = partial(profile_steps, steps=options.profile)
        experiment.run(f"pretrain --profile {options.profile}", options, Config, work)
    else:
        experiment.run("pretrain", options, Config, pretrain)
