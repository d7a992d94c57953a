"""Prototype sheets against counts by hand; as the command draws them, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from msn.cli.main import main
from msn.data.sources.digits import Digits
from msn.evaluation.features import extract
from msn.evaluation.frozen import frozen
from msn.interop.weights import Weights
from msn.models.encoder import NORMED
from msn.runtime.errors import UserError
from msn.visualize.prototypes import Prototypes, prototypes
from msn.visualize.sheet import GAP, HEADER, LEAST, PAPER
from tests.support.encoders import random_resnet, random_weights
from tests.support.pictures import DIGITS, drawn, photographs, saved


@pytest.fixture(scope="module")
def weights() -> Weights:
    """With prototypes that several digits are near to, the last of them in no use."""
    plain = random_weights(in_chans=1)
    encoder, head = (
        {name: tensor * 8 if tensor.ndim > 1 else tensor for name, tensor in part.items()}
        for part in (plain.encoder, plain.head)
    )
    weights = replace(plain, encoder=encoder, head=head)
    source, eyes = Digits(split="train"), frozen(weights)
    views = eyes.views([source.read(i).image.pixels() for i in range(7)])
    projected = weights.build()((views.movedim(3, 1) / 255 - eyes.mean[0]) / eyes.std[0])
    far = -projected.mean(dim=0, keepdim=True)
    return replace(weights, prototypes=torch.cat([projected, far]))


def test_counts_are_those_of_the_whole_model(weights: Weights) -> None:
    source = Digits(split="train")
    chosen = np.arange(120)
    encoder = frozen(weights)
    features = extract(encoder, source, indices=chosen, taps=NORMED).features
    views = encoder.views([source.read(int(i)).image.pixels() for i in chosen])
    labels = source.labels()
    assert labels is not None
    found = prototypes(weights, features, lambda rows: views[rows].numpy(), labels[:120], top=3)

    pixels = (views.movedim(3, 1).double() / 255 - encoder.mean[0]) / encoder.std[0]
    projected = torch.cat([weights.build()(pixels[i : i + 1].float()) for i in range(120)])
    assert weights.prototypes is not None
    similarity = functional.cosine_similarity(projected[:, None], weights.prototypes, dim=2)
    assigned = similarity.argmax(dim=1).numpy()
    assert (found.counts == np.bincount(assigned, minlength=8)).all()
    assert found.counts.sum() == 120
    assert (found.counts > 0).sum() >= 4
    assert found.counts[7] == 0
    np.testing.assert_allclose(found.similarity, similarity.max(dim=1).values, atol=1e-5)
    assert (np.diff(found.counts[found.shown]) <= 0).all()
    assert sorted(found.shown) == list(range(8))
    for prototype, top, shown in zip(found.shown, found.top, found.views, strict=True):
        own = np.flatnonzero(assigned == prototype)
        best = own[np.argsort(-similarity[own, prototype].numpy())][:3]
        assert (top[: len(best)] == best).all()
        assert (top[len(best) :] == -1).all()
        assert (shown[: len(best)] == views[best].numpy()).all()
        assert (shown[len(best) :] == PAPER).all()
        if len(own):
            most = max(np.mean(labels[own] == label) for label in range(10))
            assert found.purity[prototype] == most
        else:
            assert np.isnan(found.purity[prototype])


def of_counts(*counts: int) -> Prototypes:
    return Prototypes(np.array(counts), *[np.zeros(1)] * 5)


def test_perplexity_is_the_number_of_prototypes_in_even_use() -> None:
    assert of_counts(5, 5, 5, 5).perplexity == pytest.approx(4)
    assert of_counts(0, 7, 0).perplexity == 1
    assert of_counts(3, 1).perplexity == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_the_command(weights: Weights, tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth.tar", weights)
    words = ["prototypes", "--weights", str(file), *DIGITS, "--top", "2", "--rows", "3"]
    picture, numbers = drawn(tmp_path / "new" / "p.png", *words, "--count", "60")
    rows = 3 * (HEADER + LEAST + GAP)
    assert sorted(numbers["counts"])[-3] > 0
    assert picture.shape == (rows + HEADER + LEAST + GAP, GAP + 2 * (LEAST + GAP), 3)
    assert numbers["images"] == sum(numbers["counts"]) == 60
    assert len(numbers["counts"]) == len(numbers["purity_of_each"]) == 8
    pure = np.array(numbers["purity_of_each"], dtype=float)
    assert numbers["purity"] == pytest.approx(np.nansum(pure * numbers["counts"]) / 60)
    again, others = drawn(tmp_path / "b.png", *words, "--count", "60", "--batch-size", "7")
    assert others["counts"] == numbers["counts"]
    assert (again == picture).all()


def test_many_channels_without_labels(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=5))
    images = photographs(tmp_path / "images", (20, 30, 5), (16, 16, 5))
    words = ["prototypes", "--weights", str(file), "--images", str(images), "--rows", "8"]
    _, numbers = drawn(tmp_path / "p.png", *words)
    assert numbers["images"] == 2
    assert numbers["purity"] is None
    assert set(numbers["purity_of_each"]) == {None}
    assert numbers["counts"].count(0) >= 6


def test_what_has_no_prototypes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path / "w.pth.tar", random_weights(in_chans=1, with_head=False))
    words = ["visualize", "prototypes", "--weights", str(file), *DIGITS]
    for out, message in (
        ("p.png", "has no prototypes with their projection head; give a checkpoint of MSN"),
        ("p.pdf", "p.pdf: must be a name that ends in .png"),
    ):
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert main([*words, "--images", str(tmp_path / "none"), "--out", str(tmp_path / "p.png")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth.tar"]
    with pytest.raises(UserError, match="has no prototypes"):
        prototypes(random_resnet(), torch.zeros(1, 4), lambda rows: rows)
