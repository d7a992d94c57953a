"""`msn pretrain`, also `main.py`: pre-train an encoder, or print what that would take."""

import argparse

from msn.commands import evaluate_linear, experiment
from msn.config import Config
from msn.errors import UserError
from msn.plan import describe
from msn.pretrain import pretrain


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    experiment.add_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would do, and do nothing"
    )
    parser.add_argument(
        "--linear-eval", action="store_true", help="the same as the command evaluate linear"
    )


def run(options: argparse.Namespace) -> None:
    """Run the experiment of the config."""
    if options.linear_eval:
        if options.dry_run:
            raise UserError("--dry-run plans a pre-training; leave it out with --linear-eval")
        evaluate_linear.run(options)
    elif options.dry_run:
        config, devices, world = experiment.read(options, Config)
        print(describe(config, devices[0], max(world.size, len(devices))))
    else:
        experiment.run("pretrain", options, Config, pretrain)
