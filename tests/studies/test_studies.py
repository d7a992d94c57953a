"""The studies that there are: what their runs describe, on digits in place of the data sets."""

from dataclasses import replace
from pathlib import Path

import ablations
import beyond
import measures
import methods
import numpy as np
import pytest
import torch
from ablations import FocalOnly
from demo import STUDY as DEMO
from harness import Study
from held_out import HeldOut
from measures import labels_of, supervised

from msn.config.sections.data import Images
from msn.train.build import build_parts
from msn.train.pretraining import batches

TAILED = sum(round(90 * 5 ** (-label / 9)) for label in range(10))  # of 997 digits
CPU = torch.device("cpu")


def on_digits(study: Study, folder: Path) -> Study:
    images = HeldOut(Images(source="digits"), validation=300, folder=folder / "digits")
    runs = {
        name: replace(run, images=run.images and replace(images, tail=5.0, folder=folder / "tail"))
        for name, run in study.runs.items()
    }
    scratch, results = folder / "runs", folder / "results"
    return replace(study, images=images, runs=runs, scratch=scratch, results=results)


@pytest.mark.parametrize(
    "study", [DEMO, methods.STUDY, ablations.STUDY, beyond.STUDY], ids=lambda s: s.name
)
def test_every_run_describes_a_training_that_can_be_built(study: Study, tmp_path: Path) -> None:
    study = on_digits(study, tmp_path)
    for name in study.runs:
        parts = build_parts(study.config(name, seed=1), CPU)
        assert parts.seed == 1
        assert len(parts.source) == (997 if not study.runs[name].images else TAILED)


def test_all_methods_see_as_many_images(tmp_path: Path) -> None:
    study = on_digits(methods.STUDY, tmp_path)
    trained = set(study.runs) - {"raw_pixels", "untrained", "supervised"}
    all_parts = [build_parts(study.config(name, 0), CPU) for name in trained]
    assert len({parts.total_steps * parts.batch.total for parts in all_parts}) == 1


def test_anchor_and_target_are_the_same_crop_where_the_ablation_says_so(tmp_path: Path) -> None:
    study = on_digits(ablations.STUDY, tmp_path)
    same, jittered = (views_of(study, name) for name in ("9_same", "9_jitter"))
    assert torch.equal(same["target"][0], same["random"][0])
    assert not torch.equal(jittered["target"][0], jittered["random"][0])
    for image in range(8):  # brightness and contrast: of the same crop an affine function
        both = torch.stack(
            [views[0][image].flatten() for views in (jittered["target"], jittered["random"])]
        )
        inside = ((both > 2) & (both < 253)).all(dim=0)
        assert inside.sum() < 20 or torch.corrcoef(both[:, inside])[0, 1] > 0.99


def test_the_only_anchor_is_a_focal_view_where_the_ablation_says_so(tmp_path: Path) -> None:
    config = on_digits(ablations.STUDY, tmp_path).config("7_focal", 0)
    parts = build_parts(config, CPU, FocalOnly)
    batch = next(iter(batches(config, parts, 0)))
    views = batch.views.normalized(parts.mean, parts.std)
    sides = {
        kind: tuple(views[kind].shape[:1]) + tuple(views[kind].shape[-1:])
        for kind in ("target", "random", "focal")
    }
    assert sides["target"] == (1, 28)
    assert sides["random"] == (1, 14)
    assert sides["focal"][0] == 0
    assert parts.model(views, step=0).loss.isfinite()


@pytest.mark.slow
def test_more_labels_teach_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "PROTOCOL", measures.PROTOCOL._replace(images_per_class=(1,)))
    monkeypatch.setattr(measures, "DRAWS", 1)
    monkeypatch.setattr(measures, "STEPS", 150)
    study = on_digits(DEMO, tmp_path)
    config = study.config("recipe", 0)
    assert config.meta.encoder
    size = config.meta.encoder.model_copy(update={"depth": 2, "embed_dim": 32})
    config = config.model_copy(update={"meta": config.meta.model_copy(update={"encoder": size})})
    found = supervised(config, study.images.splits(test=False))
    assert list(found) == ["1 a class", "1 %"]
    assert 10 < found["1 a class"] < found["1 %"] - 10


def test_a_long_tail_falls_off_from_class_to_class(tmp_path: Path) -> None:
    images = HeldOut(Images(source="digits"), 300, tmp_path / "all")
    (all_of, held), (tailed, same) = (
        each.splits(test=False)
        for each in (images, replace(images, tail=9.0, folder=tmp_path / "tail"))
    )
    counts, all_counts = (np.bincount(labels_of(each)) for each in (tailed, all_of))
    most = all_counts.min()
    assert counts.tolist() == [round(most / 9 ** (label / 9)) for label in range(10)]
    assert torch.equal(labels_of(held), labels_of(same))


def views_of(study: Study, name: str) -> dict[str, torch.Tensor]:
    config = study.config(name, 0)
    parts = build_parts(config, CPU)
    views = next(iter(batches(config, parts, 0))).views.normalized(
        parts.mean * 0, parts.std * 0 + 1 / 255
    )
    return {kind: views[kind] for kind in ("target", "random")}
