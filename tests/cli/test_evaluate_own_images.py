"""Evaluations on folders as people have them: other classes in val, labels missing, bad images."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msn.cli.main import main
from msn.config.kinds import LinearConfig
from msn.config.load import load
from msn.runtime.errors import UserError
from msn.train.learning import linear_evaluation
from msn.train.probe import Probe
from tests.support.experiments import tiny_config, tiny_parts
from tests.support.labeled import pretrained, values, write
from tests.support.pets import make_pets, make_split
from tests.support.processes import run_on

pytestmark = pytest.mark.processes

WARM: dict[str, dict[str, Any]] = {"linear": {}, "finetune": {"optimization__warmup": 0}}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the images in a folder: its code, what it prints, and its errors."""

    def command(words: str, root: Path, *more: str) -> tuple[int, str, str]:
        place = (f"data.root_path={root}", "data.source=folder", "data.num_workers=0")
        code = main([*words.split(), "--weights", str(weights), *place, *more])
        return (code, *capsys.readouterr())

    return command


def written(weights: Path, name: str) -> Any:
    return json.loads(weights.with_name(f"pretrained-{name}.json").read_text())


def supervised(weights: Path, root: Path, **changes: Any) -> Path:
    sections = values(weights, root / "run", **{"optimization__batch_size": 4, **changes})
    sections["data"] |= {"source": "folder", "root_path": str(root)}
    sections["optimization"]["epochs"] = 1
    return write(root / "run.yaml", sections)


def spoil(root: Path) -> list[str]:
    """Damage an image of each split; their paths."""
    spoilt = [root / "train/bee/bee1.png", root / "val/cat/cat2.png"]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[:60])
    return list(map(str, spoilt))


def test_knn_matches_classes_by_name(run: Run, weights: Path, tmp_path: Path) -> None:
    root, knn = make_pets(tmp_path), "evaluate knn --k 1 --vote plain"
    code, out, _ = run(knn, root)
    assert code == 0
    assert written(weights, "knn")["results"][0]["top1"] == 100
    assert "note:" not in out
    (root / "val/ant").mkdir()
    _, out, _ = run(knn, root)
    assert written(weights, "knn")["results"][0]["top1"] == 100
    assert out.count("note: 1 class of val without images: ant\n") == 1
    make_split(root / "val", ["dog"])
    _, out, _ = run(knn, root)
    assert written(weights, "knn")["results"][0]["top1"] == pytest.approx(100 * 2 / 3)
    assert "note: 1 class of val not in train: dog; 4 of 12 val images count as errors\n" in out
    lines = {"train": "bee/bee0.png bee\nant/ant0.png ant\nant/ant1.png -1\n"}
    lines["val"] = "bee/bee2.png bee\nbee/bee1.png bee\ncat/cat1.png -1\n"
    for split, text in lines.items():
        (root / f"{split}.txt").write_text(text)
        shutil.copytree(root / split, root / "all", dirs_exist_ok=True)
    lists = ("data.source=list", f"data.image_list={root}/{{split}}.txt", "data.image_folder=all")
    _, out, _ = run(knn, root, *lists)
    assert written(weights, "knn")["results"][0]["top1"] == 100
    assert "note: 1 of 3 train images have no label and are left out\n" in out


def test_logistic_and_all_match_classes_by_name(run: Run, weights: Path, tmp_path: Path) -> None:
    root = make_pets(tmp_path)
    code, _, _ = run("evaluate logistic --solver torch --images-per-class 2 --draws 2", root)
    assert code == 0
    assert written(weights, "logistic")["points"][0]["per_class"] == {"bee": 100, "cat": 100}
    code, _, err = run("evaluate logistic --solver torch --images-per-class 5", root)
    assert code == 2
    assert "class ant has only 4 training images" in err
    code, out, _ = run("evaluate all --k 1 --images-per-class 2 --draws 2", root)
    assert code == 0
    for row in ("raw pixels", "trained encoder"):
        assert f"| {row} | 100.0 | 100.0 ± 0.0 | 100.0 |" in out


def test_linear_and_finetune_match_classes_by_name(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A classifier that has seen the classes of train is measured on them, whatever val has."""
    root = make_pets(tmp_path, val=("bee", "cat", "dog"))
    for kind in ("linear", "finetune"):
        file = supervised(weights, root, logging__write_tag=kind, **WARM[kind])
        rate = "optimization.lr=0.3" if kind == "linear" else "optimization.lr=0.01"
        plain = ["data.crop_scale=[1, 1]", "optimization.epochs=8", rate]
        if kind == "finetune":
            plain += [
                "data.crop_pct=1",
                "data.auto_augment=''",
                "data.erasing=0",
                "criterion.mixup=0",
            ]
            plain += ["criterion.cutmix=0", "meta.drop_path_rate=0"]
        assert main(["evaluate", kind, "--fname", str(file), *plain]) == 0
        found = json.loads((root / f"run/{kind}-result.json").read_text())
        (score,) = found["best"].values()
        assert score["top1"] == pytest.approx(100 * 2 / 3), kind  # all but the dogs
        state = torch.load(root / f"run/{kind}-latest.pth.tar", weights_only=True)
        assert state["class_names"] == ["ant", "bee", "cat"]
    linear = supervised(weights, root, logging__write_tag="linear")
    (root / "train/ant").rename(root / "train/yak")
    assert main(["evaluate", "linear", "--fname", str(linear), "optimization.lr=0.3"]) == 2
    err = capsys.readouterr().err
    assert "was trained on the classes ant, bee, cat, the images are of bee, cat, yak;" in err


def test_bad_images_of_frozen_evaluations(run: Run, weights: Path, tmp_path: Path) -> None:
    root = make_pets(tmp_path, val=("ant", "bee", "cat"))
    spoilt = spoil(root)
    for words, result, found in (
        ("evaluate knn --k 1", "knn", spoilt),
        ("evaluate logistic --solver torch --images-per-class 3 --draws 2", "logistic", spoilt),
        ("evaluate all --k 1 --images-per-class 2 --draws 2", "evaluation.md", spoilt),
        (f"features --split train --out {tmp_path}/f.npz", None, spoilt[:1]),
    ):
        code, _, err = run(words, root)
        assert (code, err.count("\n")) == (2, 1), err
        images = f"{len(found)} image{'s' * (len(found) > 1)}"
        assert err.startswith(f"error: {images} cannot be read: {found[0]} (")
        assert all(path in err for path in found)
        assert err.endswith("or continue without: --skip-bad\n")
        code, out, err = run(words, root, "--skip-bad")
        assert code == 0, err
        assert f"note: {images} cannot be read and left out: {found[0]} (" in out
        if result == "evaluation.md":
            text = weights.with_name("pretrained-evaluation.md").read_text()
            assert all(path in text for path in found)
        elif result:
            assert list(written(weights, result)["skipped_images"]) == found
    arrays = np.load(tmp_path / "f.npz")
    assert arrays["classes"].tolist() == ["ant", "bee", "cat"]
    assert (arrays["skipped"].tolist(), len(arrays["features"])) == ([spoilt[0]], 11)
    assert arrays["labels"].tolist() == [0] * 4 + [1] * 3 + [2] * 4


def test_few_labels_are_drawn_anew_in_place_of_bad_images(
    run: Run, weights: Path, tmp_path: Path
) -> None:
    root = make_pets(tmp_path)
    for name in ("bee0", "bee1", "bee3"):
        (root / f"train/bee/{name}.png").write_bytes(b"bad")
    words = "evaluate logistic --solver torch --images-per-class 1 --draws 8 --skip-bad"
    code, _, err = run(words, root)
    assert code == 0, err
    found = written(weights, "logistic")
    assert [one["labels"] for one in found["outcomes"]] == [3] * 8
    assert found["points"][0]["mean"] == 100


@pytest.mark.parametrize("kind", ["linear", "finetune"])
def test_bad_images_of_supervised_evaluations(
    kind: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pets(tmp_path)
    spoilt = spoil(root)
    command = ["evaluate", kind, "--fname", str(supervised(weights, root, **WARM[kind]))]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: 2 images cannot be read: ")
    assert all(path in err for path in spoilt)
    assert err.count("\n") == 1
    assert not (root / "run/run-latest.pth.tar").exists()
    assert main([*command, "--skip-bad"]) == 0
    assert "note: 2 images cannot be read and left out: " in capsys.readouterr().out
    found = json.loads((root / "run/run-result.json").read_text())
    assert list(found["skipped_images"]) == spoilt


def test_bad_images_of_one_process_of_two(weights: Path, tmp_path: Path) -> None:
    """One process alone meets it; none may wait for the other."""
    root = make_pets(tmp_path)
    bad = root / "val/cat/cat1.png"
    bad.write_bytes(b"bad")
    file = supervised(weights, root, optimization__batch_size=2)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "msn", "evaluate", "linear", "--fname", str(file)),
            *("--devices", "cpu", "cpu", "data.num_workers=auto"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: 1 image cannot be read: {bad} (")
    assert done.stderr.count("\n") == 1
    (root / "train/ant/ant0.png").write_bytes(b"bad")
    assert run_on(2, outcomes, file) == [[2, 0], [3, 0]]  # the other one lost its peer
    found = json.loads((root / "run/run-result.json").read_text())
    assert sorted(found["skipped_images"]) == [str(root / "train/ant/ant0.png"), str(bad)]


def outcomes(file: Path) -> list[int]:
    """The exit codes of a linear evaluation on one of several processes: as it is, and skipping."""
    codes = []
    for skip in (False, True):
        config = load(LinearConfig, str(file), ["data.skip_bad=true"] * skip)
        try:
            linear_evaluation(config, torch.device("cpu"))
            codes.append(0)
        except UserError as error:
            codes.append(error.exit_code)
    return codes


def test_the_probe_matches_classes_and_skips_bad_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pets(tmp_path / "pets")
    probe = {"source": "folder", "root_path": str(root), "k": 1}

    def made(**more: Any) -> Probe:
        config = tiny_config(tmp_path, logging__probe=probe | more)
        return Probe(config, tiny_parts(tmp_path), num_workers=0)

    found = made()
    assert found.val.labels.tolist() == [1] * 4 + [2] * 4
    assert found.top1(found.parts.model.encoder) == 100
    spoilt = spoil(root)
    with pytest.raises(
        UserError, match=r"2 images cannot be read: .*logging\.probe\.skip_bad"
    ) as e:
        made()
    assert all(path in str(e.value) for path in spoilt)
    found = made(skip_bad=True)
    assert (len(found.train.labels), len(found.val.labels)) == (11, 7)
    assert list(found.unreadable.found) == spoilt
    assert "cannot be read and left out" in capsys.readouterr().out
