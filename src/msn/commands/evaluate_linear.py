"""`msn evaluate linear`, also `main.py --linear-eval`: linear classifiers on frozen features."""

import argparse

from msn.commands import experiment
from msn.config import LinearConfig
from msn.evaluation.linear import linear_evaluation


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    experiment.add_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the linear evaluation of the config and print its table."""
    config, device = experiment.read(options, LinearConfig)
    print(linear_evaluation(config, device))
