"""`msn evaluate all`: raw pixels, untrained and trained encoder compared in one table."""

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from msn.cli.terminal import say_written
from msn.cli.weights import Bench, open_bench, result_path
from msn.config.kinds import Config
from msn.config.load import kind_of
from msn.config.protocol import Protocol
from msn.data.labeled import LabeledSet
from msn.data.unreadable import Unreadable
from msn.evaluation.features import PIXELS, EvalSet, evaluation_images, raw_pixels
from msn.evaluation.frozen import frozen
from msn.methods import method_of
from msn.models.encoder import Encoder
from msn.runtime.files import replacing
from msn.runtime.keyed import Stream, seed64
from msn.train.build import build_model
from msn.visualize.report import Representation, markdown, score


def run(options: argparse.Namespace) -> None:
    """Print the comparison of raw pixels, untrained and trained encoder; write it as Markdown."""
    bench = open_bench(options)
    path = result_path(options, "evaluation.md")
    splits = bench.labeled(options.max_images)
    pixels = [_pixels(bench, images) for images in (splits.train, splits.val)]
    bench.settle()
    # The same images for all: one that went bad only since is an error.
    skipped, bench = list(bench.unreadable.found), bench._replace(unreadable=Unreadable())
    train_labels, val_labels = (images.labels for images in pixels)
    sets = [
        replace(images, chosen=good.indices)
        for images, good in zip((splits.train, splits.val), pixels, strict=True)
    ]
    protocol = Protocol(options.images_per_class, options.draws, options.seed, options.k)
    device = bench.encoder.devices[0]
    rows = [
        score(Representation(name, *features), train_labels, val_labels, protocol, device)
        for name, features in (
            ("raw pixels", [raw_pixels(split.images) for split in pixels]),
            ("untrained encoder", _features(_untrained(bench), sets)),
            ("trained encoder", _features(bench, sets)),
        )
    ]
    text = markdown(rows, options.k)
    if skipped:
        text += f"\n\nLeft out, as they could not be read: {', '.join(skipped)}"
    print(text)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    say_written(path)


def _untrained(bench: Bench) -> Bench:
    """Replace the trained encoder by an untrained one, with the run's initial weights if known."""
    weights = bench.pretrained
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64(0, Stream.INIT))
        model: Encoder = weights.architecture.build()
    with contextlib.suppress(ValidationError):  # of another version, or none
        config = kind_of(Config, weights.config).model_validate(weights.config)
        model = build_model(method_of(config), config, weights.architecture.in_chans, 1).encoder
    encoder = frozen(
        bench.pretrained,
        devices=bench.encoder.devices,
        bf16=bench.encoder.bf16,
        image_size=bench.encoder.image_size,
        mean=bench.encoder.mean,
        std=bench.encoder.std,
        model=model,
    )
    return bench._replace(encoder=encoder)


def _features(bench: Bench, sets: Sequence[LabeledSet]) -> list[Tensor]:
    """Compute the features of the train and the val split."""
    found = [bench.features(images)[0] for images in sets]
    bench.settle()
    return found


def _pixels(bench: Bench, images: LabeledSet) -> EvalSet:
    return evaluation_images(
        images,
        image_size=min(PIXELS, bench.encoder.image_size),
        num_workers=bench.workers,
        unreadable=bench.unreadable,
    )
