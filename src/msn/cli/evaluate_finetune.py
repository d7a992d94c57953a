"""`msn evaluate finetune`: train the encoder and a classifier together, with labels."""

import argparse

from msn.cli import experiment
from msn.config.kinds import FinetuneConfig
from msn.evaluation.finetune import prepare
from msn.train.learning import finetune


def run(options: argparse.Namespace) -> None:
    """Run the fine-tuning of the config and print its table."""
    if options.dry_run:
        experiment.plan(options, FinetuneConfig, prepare)
    else:
        experiment.run_and_print("evaluate finetune", options, FinetuneConfig, finetune)
