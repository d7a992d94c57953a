"""`msn visualize reconstruction`: draw held-out images, masked and filled in by MAE or SimMIM."""

import argparse

import torch

from msn.cli.terminal import say_written
from msn.cli.weights import require_held_out
from msn.config.load import load_config, load_images
from msn.data.labeled import CenterCrop, evenly_spaced
from msn.data.loader import worker_count
from msn.data.sources import open_source
from msn.data.unreadable import Unreadable
from msn.evaluation.features import views
from msn.interop import reading
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place
from msn.train.api import reconstruct
from msn.train.loading import Loaded, load_method
from msn.visualize.picture import write


def run(options: argparse.Namespace) -> None:
    """Write the picture, and its numbers as JSON beside it."""
    prepare_place(options.out)
    loaded = _method(options)
    shown, names = _held_out(loaded, options)
    found = reconstruct(loaded, shown, step=options.step, device=options.device)
    numbers = write(
        *(options.out, found), weights=str(options.weights), step=options.step, names=names
    )
    error, plain = found.errors.mean(), found.plain_errors.mean()
    print(
        f"{found.masked.mean():.1%} masked; mean squared error {error:.4f}, of the mean color"
        f" {plain:.4f} (pixels of 0 to 1)" + f"; given: {found.given}" * bool(found.given)
    )
    say_written(options.out, numbers)


def _method(options: argparse.Namespace) -> Loaded:
    """Load the method; the config file counts only where the weights state no config."""
    stated = reading.read(options.weights).config
    config = load_config(options.fname, options.overrides) if options.fname and not stated else None
    return load_method(options.weights, config)


def _held_out(loaded: Loaded, options: argparse.Namespace) -> tuple[torch.Tensor, list[str]]:
    """Make the evaluation views of some images of the val split, and name those."""
    data = loaded.config.data
    images = load_images(options.fname, options.overrides, data.model_dump(mode="json"))
    images = images.model_copy(update={"channels": loaded.channels})
    source = open_source(images, "val")
    require_held_out(open_source(images, "train"), source)
    unreadable = Unreadable(skip=options.skip_bad)
    made = views(
        source,
        evenly_spaced(len(source), options.images),
        CenterCrop(loaded.config.image_size, data.interpolation),
        batch_size=options.images,
        num_workers=min(1, worker_count(images.num_workers)),
    )
    batch = next(made)
    unreadable.meet(bad.image for bad in batch.bad)
    for line in unreadable.settle():
        print(f"note: {line}")
    good = [i for i in range(len(batch.labels)) if i not in {bad.row for bad in batch.bad}]
    if not good:
        raise UserError("the val split holds no images that can be read; check data.root_path")
    return batch.images[good], [source.name(int(batch.labels[i])) for i in good]
