"""Images of five channels and 16 bit: from pre-training to every use of the encoder."""

import csv
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from msn.cli.main import main
from msn.evaluation.frozen import load_encoder
from msn.visualize.sheet import GAP, HEADER
from tests.support.experiments import write_tiny
from tests.support.labeled import values, write

CHANNELS, SIDE = 5, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with a sub-folder for each class, told by one channel, and two runs on it."""
    place = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 15)):
        for i in range(count):
            image = generator.integers(0, 20_000, (SIDE, SIDE, CHANNELS), dtype=np.uint16)
            image[..., i % 3] += 40_000
            path = place / "data" / split / f"class {i % 3}" / f"{i:02}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, image)
    for augment_on in ("cpu", "device"):
        data = {"source": "folder", "root_path": str(place / "data"), "channels": CHANNELS}
        data["augment_on"] = augment_on
        changes: dict[str, Any] = {f"data__{key}": value for key, value in data.items()}
        changes["criterion__batch_size"] = 16
        write_tiny(place / f"{augment_on}.yaml", place / augment_on, **changes)
        assert run(f"pretrain --fname PLACE/{augment_on}.yaml", place) == 0
    return place


def run(command: str, place: Path) -> int:
    return main(shlex.split(command.replace("PLACE", str(place))))


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_an_epoch_trains(augment_on: str, place: Path) -> None:
    with (place / augment_on / "tiny_r0.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["bad_images"] for row in rows} == {"0"}
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    encoder = load_encoder(place / augment_on / "tiny-latest.pth.tar")
    pixels = np.stack([np.load(path) for path in (place / "data/train").rglob("*.npy")]) >> 8
    assert encoder.mean == pytest.approx((pixels / 255).mean((0, 1, 2)))
    assert encoder.std == pytest.approx((pixels / 255).std((0, 1, 2)))


def test_knn_reads_the_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate knn --weights PLACE/cpu/tiny-latest.pth.tar --k 3", place) == 0
    assert "100.0" in capsys.readouterr().out  # as plain as these classes are


def test_contact_sheet_shows_three_channels(place: Path) -> None:
    image = next((place / "data/train/class 1").iterdir())
    command = f"views --fname PLACE/cpu.yaml --image '{image}' --out PLACE/views.png --epochs 1"
    switches = "data.color_jitter=0 data.blur=0 data.grayscale=0"
    assert run(f"{command} {switches}", place) == 0
    target = np.asarray(PIL.Image.open(place / "views.png"))[HEADER : HEADER + 8, GAP : GAP + 8]
    assert target[..., 1].min() > 150 > 80 > target[..., [0, 2]].max()


@pytest.mark.parametrize("form", ["huggingface", "timm", "torch", "official"])
@pytest.mark.slow
def test_exports(form: str, place: Path) -> None:
    out = place / f"export-{form}"
    name = {"official": ".pth.tar", "torch": ".pt2"}.get(form, "")
    command = f"export PLACE/cpu/tiny-latest.pth.tar {out}{name} --to {form}"
    assert run(command, place) == 0


def test_linear_evaluation_runs_and_fine_tuning_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = place / "cpu/tiny-latest.pth.tar"
    images = {"source": "folder", "root_path": str(place / "data")}
    sections = values(weights, place / "linear", optimization__batch_size=16)
    sections["data"] |= images
    write(place / "eval.yaml", sections)
    assert run("evaluate linear --fname PLACE/eval.yaml", place) == 0
    sections["logging"]["folder"] = str(place / "finetune")
    sections["optimization"]["warmup"] = 0
    write(place / "eval.yaml", sections)
    capsys.readouterr()
    assert run("evaluate finetune --fname PLACE/eval.yaml", place) == 2
    refusal = capsys.readouterr().err
    assert "the encoder takes images of 5 channels" in refusal
    assert refusal.count("\n") == 1
    assert not (place / "finetune").exists()
