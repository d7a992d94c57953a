"""`msn evaluate linear`, also `main.py --linear-eval`: linear classifiers on frozen features."""

import argparse

from msn.cli import experiment
from msn.config.kinds import LinearConfig
from msn.evaluation.linear import prepare
from msn.train.learning import linear_evaluation


def run(options: argparse.Namespace) -> None:
    """Run the linear evaluation of the config and print its table."""
    if options.dry_run:
        experiment.plan(options, LinearConfig, prepare)
    else:
        experiment.run_and_print("evaluate linear", options, LinearConfig, linear_evaluation)
