"""`msn subsets draw`: lists of labelled images in the official format."""

import argparse
from pathlib import Path

import numpy as np
import torch

from msn.config.load import load_images
from msn.data.subsets import write_subset
from msn.evaluation.lowshot import draw_subset
from msn.runtime.errors import UserError
from msn.train.build import open_images


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--fname", metavar="CONFIG", help="config file whose data section names the images")
    add("--images-per-class", type=int, nargs="+", default=[1, 2, 5], metavar="N")
    add("--draws", type=int, default=3, help="of each number (default 3)")
    add("--seed", type=int, default=0, help="of the draws (default 0)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="gets FOLDER/subsets1/1imgs_class.txt",
    )
    add("overrides", nargs="*", metavar="data.key=value", help="which images: data.root_path=...")


def run(options: argparse.Namespace) -> None:
    """Draw from the train split; the images of a shorter list are among those of a longer one."""
    if options.draws < 1 or min(options.images_per_class) < 1 or options.seed < 0:
        raise UserError("--draws and --images-per-class must be at least 1, --seed at least 0")
    source = open_images(load_images(options.fname, options.overrides, {}), "train")
    found = source.labels()
    if found is None:
        raise UserError(
            "the train split has no labels; put its images into a folder for each class"
        )
    labels = torch.from_numpy(np.asarray(found, dtype=np.int64))
    wanted = [
        (
            options.out / f"subsets{draw + 1}" / f"{count}imgs_class.txt",
            draw_subset(labels, count, seed=options.seed, draw=draw),
        )
        for draw in range(options.draws)
        for count in options.images_per_class
    ]
    for path, indices in wanted:
        write_subset(path, source, indices.numpy())
        print(f"{path}: {len(indices)} images")
