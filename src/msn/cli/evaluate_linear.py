"""`msn evaluate linear`, also `main.py --linear-eval`: linear classifiers on frozen features."""

import argparse
from functools import partial

from msn.cli import experiment
from msn.config.kinds import LinearConfig
from msn.evaluation.linear import prepare
from msn.train.learning import linear_evaluation
from msn.train.profiling import profile_learning


def run(options: argparse.Namespace) -> None:
    """Run the linear evaluation of the config and print its table."""
    if options.dry_run:
        experiment.plan(options, LinearConfig, prepare)
    elif options.profile:
        work = partial(profile_learning, steps=options.profile, prepare=prepare)
        experiment.run(f"evaluate linear --profile {options.profile}", options, LinearConfig, work)
    else:
        experiment.run_and_print("evaluate linear", options, LinearConfig, linear_evaluation)
