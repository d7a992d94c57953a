"""`msn evaluate linear`, also `main.py --linear-eval`: linear classifiers on frozen features."""

import argparse

from msn.cli import experiment
from msn.config.load import LinearConfig
from msn.evaluation.linear import linear_evaluation


def run(options: argparse.Namespace) -> None:
    """Run the linear evaluation of the config and print its table."""
    experiment.run_and_print("evaluate linear", options, LinearConfig, linear_evaluation)
