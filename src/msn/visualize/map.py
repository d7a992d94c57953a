"""Maps of a representation: features in the plane, neighbors near each other."""

import importlib.util
import io
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image

from msn.runtime.errors import UserError

Method = Literal["tsne", "pca", "umap"]
NEIGHBORS = 10  # that trustworthiness looks at
PERPLEXITY = 30.0  # of t-SNE, where there are enough images


class Map(NamedTuple):
    """Places of N images.

    Attributes:
        places: (N, 2).
        labels: int64 (N,), negative for none; None without labels.
        classes: names of the labels, where there are some.
        trust: share, from 0 to 1, to which near neighbors on the map are so in the representation
            (Venna and Kaski, 2001).
        method: that drew it.
    """

    places: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None
    trust: float
    method: Method

    def picture(self) -> np.ndarray:
        """Draw the places, in the color of their label."""
        # Without pyplot: nothing global changes, and no window system is asked for.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 8), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.92))
        labels = np.full(len(self.places), -1) if self.labels is None else self.labels
        for label in np.unique(labels):
            own = self.places[labels == label]
            name = self.classes[label] if self.classes and label >= 0 else str(label)
            color = "#999999" if label < 0 else f"C{label % 10}"
            axes.scatter(own[:, 0], own[:, 1], s=9, color=color)
            if label >= 0:
                axes.annotate(name.replace("$", r"\$"), np.median(own, axis=0), weight="bold")
        axes.set_title(f"{self.method}, trustworthiness {self.trust:.3f}", loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110)
        return np.asarray(PIL.Image.open(drawn).convert("RGB"))

    def numbers(self) -> dict[str, Any]:
        """List the places."""
        labels = None if self.labels is None else self.labels.tolist()
        places = self.places.tolist()
        about = {"method": self.method, "trustworthiness": self.trust}
        return {**about, "places": places, "labels": labels, "classes": self.classes}


def plane(
    features: np.ndarray,
    labels: np.ndarray | None = None,
    classes: list[str] | None = None,
    *,
    method: Method = "tsne",
    seed: int = 0,
) -> Map:
    """Place features (N, D) in the plane, by cosine similarity as evaluations compare them.

    Args:
        features: of at least 4 images.
        labels: int64 (N,), which color the places and nothing else.
        classes: names of the labels.
        method: PCA is of features of unit length; UMAP needs the package umap-learn.
        seed: of what is random, as where t-SNE starts on many images.

    Raises:
        UserError: there are too few images, or UMAP is not installed.
    """
    from sklearn.manifold import trustworthiness

    count = len(features)
    if count < 4:
        raise UserError(f"{count} images: a map needs at least 4; name more, or a larger --count")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    places = _reduced(unit.astype(np.float64), method, seed)
    near = min(NEIGHBORS, (count - 1) // 2)
    trust = float(trustworthiness(unit, places, n_neighbors=near, metric="cosine"))
    return Map(places, labels, classes, trust, method)


def require_method(method: Method) -> None:
    """Refuse UMAP where it is not installed. Raises UserError."""
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError(
            "--method umap: umap-learn is not installed; run: pip install 'msn-pretraining[umap]'"
        )


def _reduced(unit: np.ndarray, method: Method, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    require_method(method)
    places: np.ndarray
    if method == "pca":
        places = PCA(2, svd_solver="full").fit_transform(unit)
    elif method == "tsne":
        perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
        drawn = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
        places = drawn.fit_transform(unit)
    else:
        import umap

        near = min(15, len(unit) - 1)
        places = umap.UMAP(metric="cosine", n_neighbors=near, random_state=seed).fit_transform(unit)
    return places
