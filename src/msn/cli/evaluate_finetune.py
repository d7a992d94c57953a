"""`msn evaluate finetune`: train the encoder and a classifier together, with labels."""

import argparse

from msn.cli import experiment
from msn.config.kinds import FinetuneConfig
from msn.evaluation.finetune import prepare


def run(options: argparse.Namespace) -> None:
    """Run, plan or profile the fine-tuning of the config."""
    experiment.evaluate("finetune", options, FinetuneConfig, prepare)
