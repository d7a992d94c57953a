"""`msn subsets draw`: write lists of a few labeled images in the official format."""

import argparse

import torch

from msn.cli.terminal import say_written
from msn.config.load import load_images
from msn.data.classes import split_notes
from msn.data.sources import open_source
from msn.data.subsets import write_subset
from msn.evaluation.lowshot import draw_subset
from msn.runtime.errors import UserError


def run(options: argparse.Namespace) -> None:
    """Draw lists from the train split; in each draw, longer lists contain the shorter ones."""
    source = open_source(load_images(options.fname, options.overrides, {}), "train")
    found = source.labels()
    if found is None:
        raise UserError(f"the train split has no labels; lists need {source.label_rule}")
    for note in split_notes(source, "train"):
        print(f"note: {note}")
    labels = torch.from_numpy(found)
    wanted = [
        (
            options.out / f"subsets{draw + 1}" / f"{count}imgs_class.txt",
            draw_subset(labels, count, seed=options.seed, draw=draw, names=source.classes()),
        )
        for draw in range(options.draws)
        for count in options.images_per_class
    ]
    for path, indices in wanted:
        write_subset(path, source, indices.numpy())
    say_written(*(path for path, _ in wanted))
