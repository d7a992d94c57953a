"""`msn evaluate linear`, also `main.py --linear-eval`: linear classifiers on frozen features."""

import argparse

from msn.cli import experiment
from msn.config.kinds import LinearConfig
from msn.evaluation.linear import prepare


def run(options: argparse.Namespace) -> None:
    """Run, plan or profile the linear evaluation of the config."""
    experiment.evaluate("linear", options, LinearConfig, prepare)
