"""`msn pretrain`, also `main.py`: pre-train an encoder, plan the run, or profile its steps."""

import argparse
from functools import partial

from msn.cli import evaluate_finetune, evaluate_linear, experiment
from msn.config.kinds import Config
from msn.runtime.errors import UserError
from msn.train.plan import describe
from msn.train.pretraining import pretrain
from msn.train.profiling import profile_pretraining


def run(options: argparse.Namespace) -> None:
    """Pre-train as the config says, or plan, profile or evaluate where an option asks for it."""
    if options.linear_eval or options.finetune:
        (evaluate_linear if options.linear_eval else evaluate_finetune).run(options)
    elif options.skip_bad:
        raise UserError(
            "--skip-bad: a pre-training replaces bad images by itself, see data.max_bad; for its"
            " probe set logging.probe.skip_bad=true"
        )
    elif options.dry_run:
        config, devices, world = experiment.read(options, Config)
        print(describe(config, devices[0], max(world.size, len(devices))))
    elif options.profile:
        work = partial(profile_pretraining, steps=options.profile)
        experiment.run(f"pretrain --profile {options.profile}", options, Config, work)
    else:
        experiment.run("pretrain", options, Config, pretrain)
