"""A study of tiny runs on the digits, killed and resumed; its splits, scores and report."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import ROOT, Run, Study, main
from held_out import HeldOut
from measures import Scores, Splits, score
from torch import Tensor

import msn
from msn.config.kinds import Config
from msn.config.sections.data import Images
from msn.data.sources import Source, open_source
from msn.evaluation.knn import knn

TINY = (
    "meta.encoder={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
    "criterion.global_batch_size=256",
    "optimization.warmup=1",
)
LONG = (*TINY, "optimization.epochs=12")
SHORT = (*TINY, "optimization.epochs=1")


def brightness(_: Config, splits: Splits) -> Scores:
    """Brightness alone, by its nearest neighbor: a measure that takes no time."""
    return nearest(
        splits,
        [torch.tensor([[1.0, each.mean() / 255] for each in pixels(source)]) for source in splits],
    )


def trained_nearest(config: Config, splits: Splits) -> Scores:
    """Nearest neighbors of trained features: less work than all the scores of a study."""
    encoder = msn.load_encoder(msn.pretrain(config, device="cpu"))
    return nearest(splits, [encoder.features(pixels(source)) for source in splits])


def nearest(splits: Splits, features: list[Tensor]) -> Scores:
    labels = [torch.tensor(source.labels()) for source in splits]
    return {"1-NN": knn(features[0], labels[0], features[1], labels[1], k=1).top1}


def pixels(source: Source) -> list[np.ndarray]:
    return [source.read(index).image.pixels() for index in range(len(source))]


def tiny_study(folder: Path) -> Study:
    return Study(
        name="tiny",
        about="Two runs.",
        images=HeldOut(Images(source="digits"), validation=100, folder=folder / "digits"),
        recipe=ROOT / "configs/quickstart.yaml",
        runs={
            "long": Run(LONG, trained_nearest),
            "short": Run(SHORT),
            "pixels": Run(measure=brightness),
        },
        results=folder / "results",
        scratch=folder / "runs",
    )


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """The study as a command of its own."""
    places = os.pathsep.join(map(str, (ROOT / "src", ROOT / "studies", ROOT)))
    code = (
        "import sys; from pathlib import Path; from harness import main;"
        "from tests.studies.test_harness import tiny_study;"
        f"sys.exit(main(tiny_study(Path({str(folder)!r}))))"
    )
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code, *words], env=environment, stdout=output, stderr=output
        )


@pytest.mark.slow
@pytest.mark.processes
def test_a_killed_run_goes_on_and_scores_as_an_unbroken_one(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    process = started(killed, "--run", "long")
    latest, log = killed / "runs/tiny/long-0/run-latest.pth.tar", killed / "output"
    for _ in range(600):
        if latest.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()
    assert not (killed / "results/tiny").exists()
    assert started(killed, "--run", "long", "short").wait() == 0, log.read_text()
    assert "from the beginning" in log.read_text().split("start ")[1]
    assert "from the beginning" not in log.read_text().split("start ")[2].splitlines()[0]

    study = tiny_study(whole)
    assert main(study, ["--run", "long"]) == 0
    found = [
        json.loads((each / "results/tiny/long-0.json").read_text()) for each in (killed, whole)
    ]
    assert found[0] == found[1]
    assert set(found[0]) == {"run", "seed", "validation", "config"}
    short = json.loads((killed / "results/tiny/short-0.json").read_text())
    assert "5 a class" in short["validation"]
    assert short["config"]["optimization"]["epochs"] == 1


def test_validation_images_are_training_images_that_no_run_trains_on(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    train, validation = study.images.splits(test=False)
    again, test = study.images.splits(test=True)
    digits = open_source(Images(source="digits"), "train")

    def content(source: Source) -> list[bytes]:
        labels = source.labels()
        assert labels is not None
        return sorted(each.tobytes() + bytes([labels[i]]) for i, each in enumerate(pixels(source)))

    assert len(validation) == 100
    assert content(again) == content(train)
    assert sorted(content(train) + content(validation)) == content(digits)
    assert content(test) == content(open_source(Images(source="digits"), "val"))


def test_the_test_images_are_touched_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tmp_path)
    assert main(study, ["--run", "pixels", "--test"]) == 2
    assert "first run without --test" in capsys.readouterr().err
    assert main(study, ["--run", "pixels"]) == 0
    assert main(study, ["--run", "pixels", "--test"]) == 0
    assert main(study, ["--run", "pixels", "--test"]) == 2
    assert "touched once" in capsys.readouterr().err
    result = json.loads(study.path("pixels", 0).read_text())
    assert result["test"] != result["validation"]
    assert list(result["test"]) == list(result["validation"])


def test_the_report_shows_what_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = replace(tiny_study(tmp_path), results=tmp_path)
    assert main(study, ["--report"]) == 2
    folder = tmp_path / "tiny"
    folder.mkdir()
    for seed, value in enumerate((80.0, 83.0, 84.0)):
        content = {"run": "short", "seed": seed, "validation": {"20-NN": value}}
        (folder / f"short-{seed}.json").write_text(json.dumps(content))
    assert main(study, ["--report"]) == 0
    text = (folder / "report.md").read_text()
    spread = statistics.stdev((80.0, 83.0, 84.0))
    assert f"| short | 82.3 ± {spread:.1f} | 3 |" in text
    assert "long" not in text
    assert "Test images" not in text
    assert (folder / "report.png").read_bytes()[1:4] == b"PNG"


def test_scores_of_features_that_tell_classes_apart() -> None:
    """One-hot features are right with one label; of features without labels none is."""
    labels = torch.arange(400) % 4
    features = (
        torch.eye(4)[labels]
        + 1e-3 * torch.from_numpy(np.random.default_rng(0).standard_normal((400, 4))).float()
    )
    found = score(features, features, labels, labels)
    assert found["1 a class"] == found["20-NN"] == found["400 labels"] == 100
    wrong = score(features, features, labels, (labels + 1) % 4)
    assert wrong["1 a class"] == wrong["20-NN"] == wrong["400 labels"] == 0
