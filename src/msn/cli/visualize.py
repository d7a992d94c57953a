"""`msn visualize`, but for reconstructions: draw what the representation of an encoder holds."""

import argparse
from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import torch

from msn.cli.terminal import say_written
from msn.cli.weights import Bench, open_bench
from msn.data.labeled import CenterCrop, WholeImage, evenly_spaced
from msn.data.sources import Source
from msn.data.sources.files import Files
from msn.evaluation.features import Features, views
from msn.evaluation.knn import neighbors
from msn.models.encoder import MSN_TAPS, NORMED, Taps
from msn.runtime.errors import UserError
from msn.runtime.files import prepare_place
from msn.visualize.attention import attention
from msn.visualize.map import plane, require_method
from msn.visualize.neighbors import (
    NeighborSheet,
    class_names,
    of_other_class,
    own_rows,
    part_of,
)
from msn.visualize.pca import load_basis, pca
from msn.visualize.picture import Picture, write
from msn.visualize.prototypes import prototypes, require_prototypes


def run(options: argparse.Namespace) -> None:
    """Write the picture that is asked for, and its numbers as JSON beside it."""
    prepare_place(options.out)
    bench = open_bench(options)
    found, about = DRAWN[options.drawn](bench, options)
    skipped = {"skipped_images": bench.unreadable.found}
    numbers = write(options.out, found, weights=str(options.weights), **about, **skipped)
    say_written(options.out, numbers)


def _prototypes(bench: Bench, options: argparse.Namespace) -> tuple[Picture, dict[str, Any]]:
    require_prototypes(bench.pretrained)
    source, found = _features(bench, options, NORMED)
    drawn = prototypes(
        bench.pretrained,
        found.features,
        lambda rows: _views(bench, source, found.indices[rows]),
        None if found.labels is None else found.labels.numpy(),
        top=options.top,
        rows=options.rows,
    )
    used = (drawn.counts > 0).sum()
    print(f"{used} of {len(drawn.counts)} prototypes used, perplexity {drawn.perplexity:.1f}")
    return drawn, {}


def _attention(bench: Bench, options: argparse.Namespace) -> tuple[Picture, dict[str, Any]]:
    views, names = _shown(bench, options)
    drawn = attention(
        bench.encoder, views, block=options.block, mask=options.mask, mass=options.mass
    )
    return drawn, {"block": options.block, "mask": options.mask, "names": names}


def _neighbors(bench: Bench, options: argparse.Namespace) -> tuple[Picture, dict[str, Any]]:
    gallery = bench.open(options.gallery)
    known = bench.extract(gallery)
    asking, asked = gallery, known
    if options.query:
        asking = Files(options.query, channels=bench.encoder.channels)
        asked = bench.extract(asking)
    elif not options.images and options.split != options.gallery:
        asking = bench.open(options.split)
        asked = bench.extract(asking, indices=_chosen(asking, options))
    else:
        rows = evenly_spaced(len(known.indices), options.count or options.number)
        asked = part_of(known, rows)
    bench.settle()
    _require_some(asked.features)
    own = own_rows(asking, asked, gallery, known)
    k = min(options.k, len(known.indices) - bool((own >= 0).any()))
    if k < 1:
        raise UserError("the gallery holds no other image; name more (--images, --gallery)")
    similarity, nearest = neighbors(known.features, asked.features, k=k, own=torch.from_numpy(own))
    rows = nearest.numpy()
    found = _views(bench, gallery, known.indices[rows.ravel()])
    sheet = NeighborSheet(
        _views(bench, asking, asked.indices),
        found.reshape(*rows.shape, *found.shape[1:]),
        known.indices[rows],
        similarity.numpy(),
        of_other_class(class_names(asking, asked), class_names(gallery, known)[rows]),
    )
    names = [[known.names[row] for row in each] for each in rows]
    return sheet, {"queries": asked.names, "neighbors": names}


def _pca(bench: Bench, options: argparse.Namespace) -> tuple[Picture, dict[str, Any]]:
    width = bench.encoder.model.embed_dim
    basis = load_basis(options.basis, width) if options.basis else None
    views, names = _shown(bench, options)
    drawn = pca(bench.encoder, views, basis=basis, foreground=options.foreground)
    if options.save_basis:
        drawn.basis.save(options.save_basis)
    return drawn, {"names": names}


def _map(bench: Bench, options: argparse.Namespace) -> tuple[Picture, dict[str, Any]]:
    require_method(options.method)
    source, found = _features(bench, options, MSN_TAPS)
    labels = None if found.labels is None else found.labels.numpy()
    features = found.features.numpy()
    drawn = plane(features, labels, source.classes(), method=options.method, seed=options.seed)
    print(f"trustworthiness {drawn.trust:.3f}")
    return drawn, {"seed": options.seed, "names": found.names}


def _shown(bench: Bench, options: argparse.Namespace) -> tuple[list[np.ndarray], list[str]]:
    """Make the views of the images that the options name, and name those that can be read."""
    source, encoder = bench.open(options.split), bench.encoder
    size, filter_ = encoder.image_size, encoder.interpolation
    whole = WholeImage(size, encoder.model.pitch, filter_)
    view = whole if options.keep_aspect else CenterCrop(size, filter_)
    found, names = [], []
    for batch in views(source, _chosen(source, options), view, batch_size=1):
        bench.unreadable.meet(bad.image for bad in batch.bad)
        if not batch.bad:
            found.append(batch.images[0].numpy())
            names.append(source.name(int(batch.labels[0])))
    bench.settle()
    _require_some(found)
    return found, names


def _chosen(source: Source, options: argparse.Namespace) -> np.ndarray:
    limit = options.number if options.count is None and not options.images else options.count
    return evenly_spaced(len(source), limit)


def _require_some(found: Sized) -> None:
    if not len(found):
        raise UserError("none of the images can be read; name others (--images, data.root_path)")


def _features(bench: Bench, options: argparse.Namespace, taps: Taps) -> tuple[Source, Features]:
    """Compute the features of the images that the options name."""
    source = bench.open(options.split)
    found = bench.extract(source, indices=_chosen(source, options), taps=taps)
    bench.settle()
    _require_some(found.features)
    return source, found


def _views(bench: Bench, source: Source, indices: np.ndarray) -> np.ndarray:
    """Make the evaluation views of images that can be read: uint8 (N, S, S, C)."""
    view = CenterCrop(bench.encoder.image_size, bench.encoder.interpolation)
    made = views(source, indices, view, batch_size=bench.batch_size)
    return np.concatenate([batch.images.numpy() for batch in made])


Draw = Callable[[Bench, argparse.Namespace], tuple[Picture, dict[str, Any]]]
DRAWN: dict[str, Draw] = {
    "attention": _attention,
    "map": _map,
    "neighbors": _neighbors,
    "pca": _pca,
    "prototypes": _prototypes,
}
