"""`msn evaluate linear`, also `main.py --linear-eval`: linear classifiers on frozen features."""

import argparse

import torch

from msn import collectives
from msn.commands import experiment
from msn.config import LinearConfig
from msn.evaluation.linear import linear_evaluation


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    experiment.add_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the linear evaluation of the config and print its table."""

    def work(config: LinearConfig, device: torch.device) -> None:
        table = linear_evaluation(config, device)
        if collectives.rank() == 0:
            print(table)

    experiment.run("evaluate linear", options, LinearConfig, work)
