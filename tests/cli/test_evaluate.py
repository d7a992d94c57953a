"""The commands on frozen encoders, as they are typed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file

from msn.cli.main import main
from msn.config.sizes import ENCODERS
from msn.evaluation.frozen import frozen, load_encoder
from msn.evaluation.lowshot import LowShot, low_shot
from msn.interop.reading import read
from msn.models.vit import build_encoder
from msn.train.pretraining import pretrain
from tests.interop.test_architecture import official_file
from tests.support.experiments import tiny_config
from tests.support.imagenet import CLASSES, TRAIN, VAL, make_tree

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ImageNet tree, lists of it, and weights of a small encoder."""
    folder = tmp_path_factory.mktemp("place")
    by_class = make_tree(folder)
    for count in (1, 2):
        lines = [name for names in by_class for name in names[:count]]
        (folder / f"{count}imgs_class.txt").write_text("\n".join(lines) + "\n")
    lines = [name for names in by_class for name in names[3:4]]
    (folder / "other1.txt").write_text("\r\n".join(lines) + "\r\n\r\n")
    official_file(folder / "w.pth.tar")
    return folder


def run(command: str, place: Path) -> int:
    return main(shlex.split(command.replace("PLACE", str(place))))


def result(place: Path, name: str = "w-logistic.json") -> Any:
    return json.loads((place / name).read_text())


IMAGES = "data.source=folder data.root_path=PLACE data.image_folder=images"
LISTS = "--subset-path PLACE/1imgs_class.txt PLACE/other1.txt PLACE/2imgs_class.txt"


def test_the_official_command_line(place: Path, tmp_path: Path) -> None:
    """In a process of its own, with weights of the official shape, through cyanure."""
    torch.manual_seed(0)
    weights = build_encoder(ENCODERS["deit_small"]).state_dict()
    weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"target_encoder": weights}, tmp_path / "official.pth.tar")
    words = (
        f"--subset-path {place}/2imgs_class.txt --root-path {place} --image-folder images/"
        f" --device cpu --pretrained {tmp_path} --fname official.pth.tar --model-name deit_small"
        " --penalty l2 --lambd 0.0025 --preload"
    )
    command = [sys.executable, str(ROOT / "logistic_eval.py"), *shlex.split(words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "| 2 | 0.0025 | 1 |" in done.stdout
    found = result(tmp_path, "official-logistic.json")
    assert found["solver"] == "cyanure"
    # Colors tell these classes even to random weights.
    assert found["points"][0]["mean"] > 100 / len(CLASSES)
    assert len(list((tmp_path / "official-features").rglob("*.safetensors"))) == 2
    wrong = [word.replace("deit_small", "deit_base") for word in command]
    done = subprocess.run(wrong, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/official.pth.tar: the weights are of deit_sm")
    assert "not of deit_base" in done.stderr
    assert done.stderr.count("\n") == 1


def test_several_lists_give_mean_and_spread(place: Path, capsys: Any) -> None:
    words = f"{LISTS} --lambd 0.0025 0.075 --solver torch --plot PLACE/curve.png"
    assert run(f"evaluate logistic --weights PLACE/w.pth.tar {words} {IMAGES}", place) == 0
    found = result(place)
    assert [(p["images_per_class"], p["lambd"], p["sets"]) for p in found["points"]] == [
        *((1, 0.0025, 2), (1, 0.075, 2)),
        *((2, 0.0025, 1), (2, 0.075, 1)),
    ]
    assert len(found["outcomes"]) == 6
    assert len(found["points"][0]["per_class"]) == len(CLASSES)
    assert found["points"][0]["top5"] >= found["points"][0]["mean"]
    assert "±" in capsys.readouterr().out
    assert (place / "curve.png").stat().st_size > 1000


def test_the_solvers_agree(place: Path) -> None:
    means = []
    for solver in ("cyanure", "torch"):
        words = f"--subset-path PLACE/2imgs_class.txt --lambd 0.075 --solver {solver} {IMAGES}"
        assert run(f"evaluate logistic --weights PLACE/w.pth.tar {words}", place) == 0
        means.append(result(place)["points"][0]["mean"])
    assert means[0] == pytest.approx(means[1], abs=100 / (VAL * len(CLASSES)) + 1e-6)


def test_drawn_labels_and_a_cross_validated_strength(place: Path) -> None:
    words = "--images-per-class 2 3 --draws 2 --seed 5 --lambd auto --solver torch"
    assert run(f"evaluate logistic --weights PLACE/w.pth.tar {words} {IMAGES}", place) == 0
    found = result(place)
    assert [(p["images_per_class"], p["lambd"], p["sets"]) for p in found["points"]] == [
        *((2, None, 2), (3, None, 2)),
    ]
    assert run(f"evaluate logistic --weights PLACE/w.pth.tar --solver torch {IMAGES}", place) == 0
    assert result(place)["points"][0]["images_per_class"] == TRAIN


def test_mask_and_normalize_change_the_fit(place: Path) -> None:
    """`--normalize False` is false, and the mask reaches the training features."""
    outcomes = []
    for extra in ("", "--normalize False", "--normalize True", "--mask 0.7"):
        fits = []  # several, as few images may be told apart by one like by another
        for lambd in (30, 3, 0.3):
            words = f"{LISTS} --solver torch --lambd {lambd} {extra} {IMAGES}"
            assert run(f"evaluate logistic --weights PLACE/w.pth.tar {words}", place) == 0
            found = result(place)
            assert found["normalize"] is (extra != "--normalize False")
            fits.append(json.dumps(found["outcomes"]))
        outcomes.append(tuple(fits))
    assert outcomes[0] == outcomes[2]
    assert outcomes[0] not in (outcomes[1], outcomes[3])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate logistic", "--weights is missing"),
        ("evaluate logistic --pretrained PLACE", "--pretrained FOLDER needs --fname FILE"),
        ("evaluate logistic --pretrained PLACE --fname no.pth", "no.pth: no such checkpoint"),
        (
            "evaluate logistic --weights W --penalty elastic-net",
            "--penalty elastic-net: the solver",
        ),
        ("evaluate logistic --weights W --solver torch --penalty l1", "torch knows l2"),
        ("evaluate logistic --weights W", "does not say on which images it was trained; give --fn"),
        (
            "evaluate logistic --weights W --lambd 0",
            "--lambd 0: must be a number above 0, up to 1,000,000,000, or",
        ),
        ("evaluate logistic --weights W --plot c.pdf", "--plot c.pdf: must end in .png or .svg"),
        ("evaluate logistic --weights W --mask 1 IMAGES", "--mask 1: must be a share"),
        ("evaluate logistic --weights W --images-per-class 7 IMAGES", "has only 6 training images"),
        (
            "evaluate logistic --weights W --images-per-class 0 IMAGES",
            "a whole number from 1 to",
        ),
        ("evaluate logistic --weights W --images-per-class 1 --lambd auto IMAGES", "give a value"),
        ("evaluate logistic --weights W --subset-path no.txt IMAGES", "no such list of images"),
        ("evaluate logistic --weights W data.root_path=nowhere", "no such folder: nowhere"),
        ("evaluate logistic --weights W data.rot_path=PLACE", "did you mean 'root_path'"),
        (
            "evaluate logistic --weights W data.root_path=PLACE/images/train",
            "the images have no val split",
        ),
        (
            "evaluate knn --weights W data.root_path=PLACE/images/train/n01440764",
            "the train split has no labels",
        ),
        ("evaluate knn --weights W --k 0 IMAGES", "--k 0: must be a whole number from 1 to"),
        ("evaluate knn --weights W --k 99 IMAGES", "k = 99 needs as many training images"),
        (
            "evaluate knn --weights W --temperature 0 IMAGES",
            "--temperature 0: must be a nu",
        ),
        ("evaluate knn --weights W --device tpu:9 IMAGES", "--devices tpu:9"),
        (
            "evaluate knn --weights W --batch-size 0 IMAGES",
            "--batch-size 0: must be",
        ),
        (
            "evaluate all --weights W --draws 0 IMAGES",
            "--draws 0: must be a whole number from 1 to",
        ),
        ("features --weights W --out f.csv IMAGES", "must end in .safetensors or .npz"),
        (
            "features --weights W --blocks 9 --out PLACE/f.npz IMAGES",
            "--blocks 9: the encoder has 3",
        ),
        ("subsets draw --out PLACE/no --images-per-class 9 IMAGES", "has only 6 training images"),
        ("subsets fetch --folder PLACE/no --url http://127.0.0.1:1", "cannot be fetched"),
    ],
)
def test_wrong_requests(place: Path, capsys: Any, words: str, message: str) -> None:
    before = sorted(place.rglob("*"))
    words = words.replace(" W", f" {place}/w.pth.tar").replace("IMAGES", IMAGES)
    assert run(words, place) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    left = [path for path in sorted(place.rglob("*")) if path not in before]
    assert [path for path in left if ".cache" not in str(path)] == []


def test_knn(place: Path, capsys: Any) -> None:
    words = "--k 1 5 --vote plain --device cpu cpu"
    assert run(f"evaluate knn --weights PLACE/w.pth.tar {words} {IMAGES}", place) == 0
    found = result(place, "w-knn.json")["results"]
    assert [(row["k"], row["temperature"]) for row in found] == [(1, None), (5, None)]
    assert f"| 1 | plain | {found[0]['top1']:.1f} |" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_features(place: Path, suffix: str) -> None:
    out = place / f"f.{suffix}"
    words = "--blocks 2 --patch-average --norm --split train"
    command = f"features --weights PLACE/w.pth.tar --out {out} {words} {IMAGES}"
    for _ in range(2):
        assert run(command, place) == 0
        found = dict(np.load(out)) if suffix == "npz" else load_file(out)
        assert found["features"].shape == (TRAIN * len(CLASSES), 3 * 64)
        assert found["labels"].tolist() == [c for c in range(len(CLASSES)) for _ in range(TRAIN)]
    assert (place / f"f.{suffix}.cache").is_dir()


def test_the_normalization_can_be_another(place: Path) -> None:
    """That of the config or the command line; the cache keeps the two apart."""
    command = f"features --weights PLACE/w.pth.tar --out PLACE/f.npz --cache PLACE/kept {IMAGES}"
    found = []
    for change in ("", " data.mean=[0,0,0] data.std=[1,1,1]", ""):
        assert run(command + change, place) == 0
        found.append(np.load(place / "f.npz")["features"])
    assert np.array_equal(found[0], found[2])
    encoder = load_encoder(place / "w.pth.tar")
    plain = frozen(read(place / "w.pth.tar"), mean=(0, 0, 0), std=(1, 1, 1))
    images = [Path(name) for name in sorted((place / "images" / "val").rglob("*.JPEG"))]
    pixels = [np.array(PIL.Image.open(image).convert("RGB")) for image in images]
    for features, by_hand in zip(found, (encoder, plain), strict=False):
        assert np.allclose(features, by_hand.features(pixels).numpy(), atol=1e-4)


def test_subsets_that_were_drawn_can_be_evaluated(place: Path, capsys: Any) -> None:
    words = "--images-per-class 1 3 --draws 2 --seed 4 --out PLACE/drawn"
    assert run(f"subsets draw {words} {IMAGES}", place) == 0
    one, three = (place / "drawn" / "subsets2" / f"{n}imgs_class.txt" for n in (1, 3))
    few, many = one.read_text().split(), three.read_text().split()
    assert set(few) < set(many)
    assert sorted(name.split("_")[0] for name in many) == [c for c in CLASSES for _ in range(3)]
    assert few != (place / "drawn" / "subsets1" / "1imgs_class.txt").read_text().split()
    words = f"--subset-path {one} {three} --solver torch"
    assert run(f"evaluate logistic --weights PLACE/w.pth.tar {words} {IMAGES}", place) == 0
    assert [p["images_per_class"] for p in result(place)["points"]] == [1, 3]


def test_all_takes_images_and_size_from_the_checkpoint(tmp_path: Path, capsys: Any) -> None:
    config = tiny_config(tmp_path).model_dump(mode="json")
    size = ENCODERS["deit_tiny"]._replace(patch_size=2, embed_dim=16, depth=2, num_heads=2)
    vit = build_encoder(size, image_size=8, in_chans=1)
    state = {"target_encoder": vit.state_dict(), "config": config, "mean": [0.3], "std": [0.4]}
    torch.save(state, tmp_path / "tiny-latest.pth.tar")
    words = f"--weights {tmp_path}/tiny-latest.pth.tar --draws 2 --images-per-class 1 2"
    assert main(["evaluate", "all", *words.split(), "--max-images", "200"]) == 0
    text = (tmp_path / "tiny-latest-evaluation.md").read_text()
    assert text in capsys.readouterr().out
    heading, _, *rows = text.splitlines()
    assert (
        heading == "| accuracy in % | 20-NN | 1-shot | 2-shot | logistic regression, all labels |"
    )
    assert [row.split(" | ")[0] for row in rows] == [
        *("| raw pixels", "| untrained encoder", "| trained encoder"),
    ]
    assert rows[1].split("|")[2:] != rows[2].split("|")[2:]


def test_all_agrees_with_the_report_of_the_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same columns and numbers, of the untrained encoder too: it is what the run began with."""

    def two_draws(*data: Any, draws: int, **settings: Any) -> LowShot:
        assert draws == 20
        return low_shot(*data, draws=2, **settings)

    monkeypatch.setattr("msn.visualize.report.low_shot", two_draws)
    changes = {"optimization__epochs": 1, "optimization__warmup": 0, "meta__seed": 3}
    probe = {"every": 0, "report": True, "max_images": 300}
    config = tiny_config(tmp_path, **changes, meta__precision="fp32", logging__probe=probe)
    pretrain(config, torch.device("cpu"))
    report = json.loads((tmp_path / "tiny-report.json").read_text())
    head, _, *rows = capsys.readouterr().out.splitlines()[-5:]
    weights = str(tmp_path / "tiny-latest.pth.tar")
    words = ["evaluate", "all", "--weights", weights, "--max-images", "300", "--devices", "cpu"]
    assert main(words) == 0
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "tiny-latest-evaluation.md").read_text().splitlines()
    ]
    assert [re.split("  +", line.strip()) for line in (head, *rows)] == [table[0], *table[2:]]
    assert table[0] == [
        *("accuracy in %", "20-NN", "1-shot", "2-shot", "5-shot"),
        "logistic regression, all labels",
    ]
    assert [row["name"] for row in report["representations"]] == [row[0] for row in table[2:]]
