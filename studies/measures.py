"""What a run of a study is measured by: accuracy in percent with few labels and with all."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import msn
from msn.config.kinds import Config, MSNConfig
from msn.config.protocol import Protocol
from msn.data.batch import normalize
from msn.data.labeled import LabeledSet, RandomCrop, shuffled_batches
from msn.data.order import Order
from msn.data.sources import Source
from msn.evaluation.features import encode_all, evaluation_images, extract, raw_pixels
from msn.evaluation.frozen import FrozenEncoder
from msn.evaluation.logistic import accuracy, fit, prepare
from msn.evaluation.lowshot import LAMBDA, draw_subset, low_shot
from msn.methods import Method
from msn.methods.schedules import cosine
from msn.models.classifier import Classifier
from msn.models.encoder import MSN_TAPS, Encoder, Taps
from msn.runtime import keyed
from msn.train.build import build_parts
from msn.visualize.report import Representation
from msn.visualize.report import score as score_pool

POOL = 5000
"""Training images that vote in k-NN, and that few labels are drawn from."""
PROTOCOL = Protocol(images_per_class=(1, 2, 5, 10))
PERCENT = 60
"""Images of a class that are 1 % of Fashion-MNIST."""
PATCHES = Taps(blocks=0, patch_average=True)
DRAWS, STEPS, BATCH = 5, 300, 100
"""Of training from scratch on few labels: draws of them, steps, and most images of a step."""

Splits = tuple[Source, Source]
"""Images to learn from, and to measure with."""
Scores = dict[str, float]
_COLUMNS = {PERCENT: "1 %"}


def pixels(config: Config, splits: Splits) -> Scores:
    """Measure raw pixels."""
    size = config.image_size
    sets = [LabeledSet(each, labels_of(each).numpy(), np.arange(len(each))) for each in splits]
    found = [evaluation_images(images, image_size=size).images for images in sets]
    return score(*map(raw_pixels, found), *map(labels_of, splits))


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
    return score(*features_of(encoder, splits), *map(labels_of, splits))


def trained(
    config: Config, splits: Splits, *, taps: Taps = MSN_TAPS, method: type[Method] | None = None
) -> Scores:
    """Pre-train, or find that it is done, and measure the encoder."""
    encoder = msn.load_encoder(msn.pretrain(config, device="cpu", method=method))
    return score(*features_of(encoder, splits, taps), *map(labels_of, splits))


def features_of(
    encoder: FrozenEncoder, splits: Splits, taps: Taps = MSN_TAPS
) -> tuple[Tensor, Tensor]:
    """Compute the features of both splits, (N, D) and (Q, D)."""
    train, queries = (extract(encoder, source, taps=taps).features for source in splits)
    return train, queries


def supervised(config: Config, splits: Splits) -> Scores:
    """Train the recipe's encoder from its start on few labels alone: mean of `DRAWS` draws."""
    labels = labels_of(splits[0])
    pool = _pool(len(labels))
    scores = {}
    for count in (*PROTOCOL.images_per_class, PERCENT):
        found = []
        for draw in range(DRAWS):
            few = pool[draw_subset(labels[pool], count, seed=PROTOCOL.seed, draw=draw)]
            found.append(_from_scratch(config, splits, few.numpy()))
        scores[_COLUMNS.get(count, f"{count} a class")] = round(float(np.mean(found)), 2)
    return scores


def _from_scratch(config: Config, splits: Splits, few: np.ndarray) -> float:
    """Train encoder and classifier on some training images; give the accuracy on the queries."""
    assert isinstance(config, MSNConfig)
    parts = build_parts(config, torch.device("cpu"))
    labels, truth = map(labels_of, splits)
    encoder = parts.model.trained_networks()[0]
    assert isinstance(encoder, Encoder)
    model = Classifier(encoder, int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    data, batch = config.data, min(BATCH, len(few))
    view = RandomCrop(data.rand_size, data.rand_crop_scale, data.flip, config.meta.seed)
    order = Order(len(few), batch, len(few) // batch, config.meta.seed)
    batches = shuffled_batches(
        LabeledSet(splits[0], labels.numpy(), few),
        *(view, order),
        start_step=0,
        stop_step=STEPS,
        num_workers=0,
    )
    for step, each in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, total=STEPS, start=1e-3, final=0.0)
        logits = model(normalize(each.images, parts.mean, parts.std))
        optimizer.zero_grad()
        F.cross_entropy(logits, each.labels).backward()
        optimizer.step()
    queries = LabeledSet(splits[1], truth.numpy(), np.arange(len(truth)))
    images = evaluation_images(queries, image_size=config.image_size).images
    outputs = encode_all(
        model.eval(), images, normalize=lambda batch: normalize(batch, parts.mean, parts.std)
    )
    return 100 * (outputs.argmax(dim=1) == truth).double().mean().item()


def score(train: Tensor, queries: Tensor, labels: Tensor, truth: Tensor) -> Scores:
    """Score features (N, D) of labeled images by those (Q, D) of queries.

    k-NN, and regressions on few labels (mean of 20 draws) and on all, see `msn.visualize.report`;
    of more than `POOL` images a random choice of so many, and then also all.
    """
    pool = _pool(len(labels))
    data = train[pool], labels[pool], queries, truth
    found = score_pool(Representation("", data[0], queries), data[1], truth, PROTOCOL)
    scores = {f"{PROTOCOL.k}-NN": found.knn}
    scores |= {f"{few.images_per_class} a class": few.mean for few in found.low_shot}
    if int(data[1].bincount().min()) >= PERCENT and len(labels) > POOL:
        scores[_COLUMNS[PERCENT]] = low_shot(
            *data, images_per_class=PERCENT, draws=PROTOCOL.draws
        ).mean
    scores[f"{len(pool)} labels"] = found.logistic
    if len(labels) > POOL:
        inputs, outputs = (prepare(features.double()) for features in (train, queries))
        scores["all labels"] = accuracy(fit(inputs, labels, lambd=LAMBDA), outputs, truth).top1
    return {name: round(value, 2) for name, value in scores.items()}


def _pool(images: int) -> Tensor:
    """Choose the training images whose labels may be used, always the same."""
    order = keyed.generator(0, keyed.Stream.SPLIT, 1).permutation(images)
    return torch.from_numpy(np.sort(order[:POOL]))


def labels_of(source: Source) -> Tensor:
    """Give the labels of a source, which has them."""
    labels = source.labels()
    assert labels is not None
    return torch.from_numpy(labels)
