"""`msn evaluate finetune`: train the encoder and a classifier together, with labels."""

import argparse
from functools import partial

from msn.cli import experiment
from msn.config.kinds import FinetuneConfig
from msn.evaluation.finetune import prepare
from msn.train.learning import finetune
from msn.train.profiling import profile_learning


def run(options: argparse.Namespace) -> None:
    """Run the fine-tuning of the config and print its table."""
    if options.dry_run:
        experiment.plan(options, FinetuneConfig, prepare)
    elif options.profile:
        work = partial(profile_learning, steps=options.profile, prepare=prepare)
        experiment.run(
            f"evaluate finetune --profile {options.profile}", options, FinetuneConfig, work
        )
    else:
        experiment.run_and_print("evaluate finetune", options, FinetuneConfig, finetune)
