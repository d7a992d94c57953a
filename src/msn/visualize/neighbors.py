"""Images and those that an encoder takes for the most alike, nearest first."""

import os
from typing import Any, NamedTuple

import numpy as np

from msn.data.sources import Source
from msn.data.sources.base import EncodedSource
from msn.evaluation.features import Features
from msn.visualize.sheet import framed, heading, magnification, on_paper


class NeighborSheet(NamedTuple):
    """Q queries and the k images of a gallery that are nearest to each.

    Attributes:
        queries: uint8 (Q, S, S, C).
        nearest: uint8 (Q, k, S, S, C).
        indices: of those in the gallery, int64 (Q, k).
        similarity: cosine similarity, (Q, k).
        other: whether a neighbor is known to be of another class, bool (Q, k).
    """

    queries: np.ndarray
    nearest: np.ndarray
    indices: np.ndarray
    similarity: np.ndarray
    other: np.ndarray

    def picture(self) -> np.ndarray:
        """Draw a row for each query, with the similarity below each neighbor."""
        zoom = magnification(self.queries.shape[2])
        rows: list[np.ndarray] = []
        for i, (query, nearest) in enumerate(zip(self.queries, self.nearest, strict=True)):
            cells = [framed(view, zoom) for view in (query, *nearest)]
            step = cells[0].shape[1]
            texts = ["query"] + [
                f"{value:.4f}" + " other" * bool(other)
                for value, other in zip(self.similarity[i], self.other[i], strict=True)
            ]
            names = [(column * step, text) for column, text in enumerate(texts)]
            rows += [np.concatenate(cells, axis=1), heading(step * len(cells), names)]
        return on_paper(rows)

    def numbers(self) -> dict[str, Any]:
        """List the neighbors of each query and how similar they are."""
        return {
            "indices": self.indices.tolist(),
            "similarity": self.similarity.tolist(),
            "other_class": self.other.tolist(),
        }


def own_rows(asking: Source, asked: Features, gallery: Source, known: Features) -> np.ndarray:
    """Find the row of each query in the gallery: int64 (Q,), -1 where it is not in there.

    It is, if both are of one split, or the same file.
    """
    places: dict[Any, int]
    if asking is gallery:
        places = {index: row for row, index in enumerate(known.indices.tolist())}
        return np.array([places.get(index, -1) for index in asked.indices.tolist()])
    if not (isinstance(asking, EncodedSource) and isinstance(gallery, EncodedSource)):
        return np.full(len(asked.indices), -1)
    places = {
        os.path.realpath(gallery.path(index)): row
        for row, index in enumerate(known.indices.tolist())
    }
    files = [os.path.realpath(asking.path(index)) for index in asked.indices.tolist()]
    return np.array([places.get(file, -1) for file in files])


def part_of(found: Features, rows: np.ndarray) -> Features:
    """Pick some rows of features."""
    labels = None if found.labels is None else found.labels[rows]
    names = [found.names[row] for row in rows]
    return Features(found.features[rows], labels, names, found.indices[rows])


def class_names(source: Source, found: Features) -> np.ndarray:
    """Name the class of each image, (N,): its number where classes have no names, None unknown."""
    classes = source.classes()
    labels = [-1] * len(found.indices) if found.labels is None else found.labels.tolist()
    names = [None if x < 0 else classes[x] if classes else str(x) for x in labels]
    return np.array(names, dtype=object)


def of_other_class(queries: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Tell which neighbors (Q, k) are known to be of another class than their query (Q,)."""
    known = (queries[:, None] != None) & (nearest != None)  # noqa: E711  # element by element
    other: np.ndarray = known & (queries[:, None] != nearest)
    return other
