"""`msn evaluate finetune`: encoder and classifier trained together, with labels."""

import argparse

import torch

from msn import collectives
from msn.commands import experiment
from msn.config import FinetuneConfig
from msn.evaluation.finetune import finetune


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    experiment.add_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the fine-tuning of the config and print its table."""

    def work(config: FinetuneConfig, device: torch.device) -> None:
        table = finetune(config, device)
        if collectives.rank() == 0:
            print(table)

    experiment.run("evaluate finetune", options, FinetuneConfig, work)
