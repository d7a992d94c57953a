"""What a run of a study is measured by: accuracy in percent with few labels and with all."""

import numpy as np
import torch
from torch import Tensor

import msn
from msn.config.kinds import Config
from msn.config.protocol import Protocol
from msn.data.labeled import LabeledSet
from msn.data.sources import Source
from msn.evaluation.features import evaluation_images, extract, raw_pixels
from msn.evaluation.frozen import FrozenEncoder
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.evaluation.lowshot import LAMBDA, low_shot
from msn.runtime import keyed
from msn.train.build import build_parts
from msn.visualize.report import Representation
from msn.visualize.report import score as score_pool

POOL = 5000
"""Training images that vote in k-NN, and that few labels are drawn from."""
PROTOCOL = Protocol(images_per_class=(1, 2, 5, 10))
PERCENT = 60
"""Images of a class that are 1 % of Fashion-MNIST."""

Splits = tuple[Source, Source]
"""Images to learn from, and to measure with."""
Scores = dict[str, float]


def pixels(config: Config, splits: Splits) -> Scores:
    """Measure raw pixels."""
    size = config.image_size
    sets = [LabeledSet(each, _labels(each).numpy(), np.arange(len(each))) for each in splits]
    found = [evaluation_images(images, image_size=size).images for images in sets]
    return score(*map(raw_pixels, found), *map(_labels, splits))


def untrained(config: Config, splits: Splits) -> Scores:
    """Measure the encoder as the run finds it at its start."""
    parts = build_parts(config, torch.device("cpu"))
    encoder = FrozenEncoder(
        parts.model.encoder,
        image_size=config.image_size,
        mean=parts.mean.tolist(),
        std=parts.std.tolist(),
        digest="untrained",
    )
    return frozen(encoder, splits)


def trained(config: Config, splits: Splits) -> Scores:
    """Pre-train, or find that it is done, and measure the encoder."""
    return frozen(msn.load_encoder(msn.pretrain(config, device="cpu")), splits)


def frozen(encoder: FrozenEncoder, splits: Splits) -> Scores:
    """Measure the features of an encoder."""
    features = [extract(encoder, source).features for source in splits]
    return score(features[0], features[1], *map(_labels, splits))


def score(train: Tensor, queries: Tensor, labels: Tensor, truth: Tensor) -> Scores:
    """Score features (N, D) of labeled images by those (Q, D) of queries.

    k-NN, and regressions on few labels (mean of 20 draws) and on all, see `msn.visualize.report`;
    of more than `POOL` images a random choice of so many, and then also all.
    """
    order = keyed.generator(0, keyed.Stream.SPLIT, 1).permutation(len(labels))
    pool = torch.from_numpy(np.sort(order[:POOL]))
    data = train[pool], labels[pool], queries, truth
    found = score_pool(Representation("", data[0], queries), data[1], truth, PROTOCOL)
    scores = {f"{PROTOCOL.k}-NN": found.knn}
    scores |= {f"{few.images_per_class} a class": few.mean for few in found.low_shot}
    if int(data[1].bincount().min()) >= PERCENT and len(labels) > POOL:
        scores["1 %"] = low_shot(*data, images_per_class=PERCENT, draws=PROTOCOL.draws).mean
    scores[f"{len(pool)} labels"] = found.logistic
    if len(labels) > POOL:
        inputs, outputs = (prepare(features.double()) for features in (train, queries))
        scores["all labels"] = accuracy(fit(inputs, labels, lambd=LAMBDA), outputs, truth).top1
    return {name: round(value, 2) for name, value in scores.items()}


def _labels(source: Source) -> Tensor:
    labels = source.labels()
    assert labels is not None
    return torch.from_numpy(labels)
