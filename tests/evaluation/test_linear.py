"""Linear evaluation: what it learns, exact resume, several classifiers at once, wrong requests."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.cli.main import main
from msn.config.kinds import LinearConfig
from msn.config.load import load
from msn.evaluation.accuracy import Result
from msn.evaluation.linear import LinearLearner, Training
from msn.runtime import checkpoint
from msn.runtime.errors import RunError, UserError
from msn.train.learning import linear_evaluation
from tests.runtime.test_lock import held_by_another
from tests.support.labeled import CPU, listed, values, write
from tests.support.processes import run_on
from tests.support.runs import Broken, assert_same, break_at

pytestmark = pytest.mark.slow

# Names and values of the official configs/eval/lineval_msn_vits16.yaml.
OFFICIAL = {
    "meta": {
        "model_name": "deit_small",
        "master_port": 8888,
        "load_checkpoint": False,
        "training": True,
        "copy_data": False,
        "device": "cuda:0",
    },
    "data": {
        "root_path": "/datasets01/",
        "image_folder": "imagenet_full_size/061417/",
        "num_classes": 1000,
    },
    "optimization": {
        "weight_decay": 0.0,
        "lr": 6.4,
        "epochs": 100,
        "num_blocks": 1,
        "normalize": True,
    },
    "logging": {
        "folder": "/checkpoint/msn_logs/",
        "write_tag": "msn-lineval-experiment-1",
        "pretrain_path": "/path_to_pretrained_encoder/",
    },
}


def config(weights: Path, folder: Path, **changes: Any) -> LinearConfig:
    changes = {"optimization__lr": [2.0], **changes}
    return LinearConfig.model_validate(values(weights, folder, **changes))


def beyond(config: LinearConfig, *rates: float) -> LinearConfig:
    """The same with learning rates that no config may ask for."""
    optimization = config.optimization.model_copy(update={"lr": rates})
    return config.model_copy(update={"optimization": optimization})


def latest(folder: Path, name: str = "latest") -> dict[str, Any]:
    return checkpoint.load(folder / f"run-{name}.pth.tar", "classifier")


@pytest.fixture(scope="module")
def grid(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run of two epochs, 40 steps, with four classifiers."""
    folder = tmp_path_factory.mktemp("grid")
    chosen = {"optimization__lr": [0.5, 2.0], "optimization__num_blocks": [1, 2]}
    return folder, linear_evaluation(config(weights, folder, **chosen), CPU)


def test_the_official_file_loads(tmp_path: Path) -> None:
    official = load(LinearConfig, write(tmp_path / "official.yaml", OFFICIAL))
    assert (official.optimization.lr, official.optimization.num_blocks) == ((6.4,), (1,))
    assert official.data.crop_scale == (0.08, 1.0)
    (notice,) = official.notices()
    assert notice == "without effect: meta.master_port, meta.device, meta.copy_data"
    again = write(tmp_path / "again.yaml", {})
    again.write_text(official.dump_yaml())
    assert load(LinearConfig, again) == official


def test_it_learns(grid: tuple[Path, Result]) -> None:
    folder, result = grid
    assert max(score.top1 for score in result.best.values()) > 60
    assert all(score.top1 <= score.top5 <= 100 for score in result.best.values())
    assert len(result.best) == 4
    written = json.loads((folder / "run-result.json").read_text())
    assert {name: tuple(score.values()) for name, score in written["best"].items()} == result.best
    assert all(name in str(result) for name in result.best)


def test_files_of_a_run(grid: tuple[Path, Result]) -> None:
    folder, result = grid
    assert {path.name for path in folder.iterdir()} == {
        *("run-latest.pth.tar", "run-best.pth.tar", "run-config.yaml"),
        *("run-result.json", "run-accuracy.csv", "run_r0.csv"),
    }
    with (folder / "run-accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name, score in result.last.items():
        assert float(rows[-1][f"{name} top1"]) == pytest.approx(score.top1)
    assert latest(folder)["step"] == 40
    assert latest(folder, "best")["epoch"] == result.best_epoch


def test_a_classifier_is_the_same_alone_as_among_others(
    grid: tuple[Path, Result], weights: Path, tmp_path: Path
) -> None:
    alone = linear_evaluation(config(weights, tmp_path, optimization__num_blocks=[2]), CPU)
    folder, together = grid
    assert alone.last["lr=2 blocks=2"] == together.last["lr=2 blocks=2"]
    several, one = latest(folder)["classifier"], latest(tmp_path)["classifier"]
    for name, tensor in one.items():
        assert torch.equal(several[name.replace("heads.0.", "heads.3.")], tensor), name


def test_the_last_block_alone_is_the_last_of_two(grid: tuple[Path, Result]) -> None:
    """Class tokens lie side by side with the last block last: one block sees just that."""
    several = latest(grid[0])["classifier"]
    assert several["heads.0.linear.weight"].shape == (10, 48)
    assert several["heads.1.linear.weight"].shape == (10, 96)


def test_resumed_it_ends_as_if_unbroken(
    grid: tuple[Path, Result], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the learner saves is all that it is; that a killed run resumes is a test of the loop."""
    chosen = config(
        weights,
        tmp_path / "run",
        logging__checkpoint_freq_itr=7,
        optimization__lr=[0.5, 2.0],
        optimization__num_blocks=[1, 2],
    )
    with monkeypatch.context() as patched:
        break_at(patched, LinearLearner, 24)
        with pytest.raises(Broken):
            linear_evaluation(chosen, CPU)
    assert latest(tmp_path / "run")["step"] == 21
    linear_evaluation(chosen, CPU)
    for name in ("latest", "best"):
        assert_same(latest(tmp_path / "run", name), latest(grid[0], name))
    for name in ("run-accuracy.csv", "run-result.json"):
        assert (tmp_path / "run" / name).read_text() == (grid[0] / name).read_text()


def test_only_measuring_writes_nothing(
    grid: tuple[Path, Result], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = grid
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    chosen = {"optimization__lr": [0.5, 2.0], "optimization__num_blocks": [1, 2]}
    measured = linear_evaluation(config(weights, folder, meta__training=False, **chosen), CPU)
    assert measured.best == result.best
    assert measured.best_epoch == result.best_epoch
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def on_several(weights: Path, folder: Path, batch_size: int) -> Result:
    chosen = {"optimization__lr": [0.5, 2.0], "optimization__num_blocks": [1, 2]}
    return linear_evaluation(
        config(weights, folder, optimization__batch_size=batch_size, **chosen), CPU
    )


def test_two_processes_are_one_with_the_whole_batch(
    grid: tuple[Path, Result], weights: Path, tmp_path: Path
) -> None:
    """Gradients are averaged, each image is measured once, and one process writes."""
    first, second = run_on(2, on_several, weights, tmp_path, 32)
    assert first == second
    for name, score in first.last.items():
        assert score == pytest.approx(grid[1].last[name], abs=0.41)  # two images of 500
    one, two = latest(grid[0]), latest(tmp_path)
    for name, tensor in one["classifier"].items():
        assert torch.allclose(two["classifier"][name], tensor, atol=1e-3), name
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in grid[0].iterdir()}


def test_a_list_of_images_to_learn_from(weights: Path, tmp_path: Path) -> None:
    few = config(
        weights,
        tmp_path / "run",
        data__subset=listed(tmp_path / "list.txt", range(0, 120, 2)),
        optimization__batch_size=20,
    )
    linear_evaluation(few, CPU)
    assert latest(tmp_path / "run")["steps_per_epoch"] == 3


def test_one_diverging_classifier_leaves_the_others_alone(
    grid: tuple[Path, Result], weights: Path, tmp_path: Path
) -> None:
    chosen = beyond(config(weights, tmp_path, optimization__num_blocks=[2]), 2.0, 3e38)
    result = linear_evaluation(chosen, CPU)
    assert result.last["lr=2 blocks=2"] == grid[1].last["lr=2 blocks=2"]
    assert result.last["lr=3e+38 blocks=2"] == (0.0, 0.0)


def test_all_diverging_is_an_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step \d+: the loss is not finite.*optimization.lr"):
        linear_evaluation(beyond(config(weights, tmp_path), 3e38), CPU)


def test_one_run_in_a_folder(weights: Path, tmp_path: Path) -> None:
    with (
        held_by_another(checkpoint.lock_path(tmp_path, "run")),
        pytest.raises(UserError, match="another run is writing to this folder"),
    ):
        linear_evaluation(config(weights, tmp_path), CPU)
    assert not list(tmp_path.glob("*.pth.tar"))


def test_released_files_hold_no_epoch_and_a_wrapper_prefix(
    grid: tuple[Path, Result], weights: Path, tmp_path: Path
) -> None:
    state = checkpoint.load(weights)
    target = {f"module.{name}": tensor for name, tensor in state["target_encoder"].items()}
    # In so narrow an encoder the heads cannot be told from shapes: keep the config.
    kept = {"target_encoder": target, "config": state["config"], "prototypes": torch.ones(3, 2)}
    torch.save(kept, tmp_path / "released.pth.tar")
    stats = {"data__mean": state["mean"], "data__std": state["std"]}
    released = config(
        tmp_path / "released.pth.tar", tmp_path / "run", optimization__num_blocks=[2], **stats
    )
    result = linear_evaluation(released, CPU)
    assert result.last["lr=2 blocks=2"] == grid[1].last["lr=2 blocks=2"]


def test_the_encoder_is_frozen_and_measured_in_evaluation_mode(weights: Path) -> None:
    from msn.interop.reading import read
    from msn.models.linear import HeadSettings

    encoder = read(weights).trainable()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    training = Training(total_steps=3, weight_decay=0.1)
    learner = LinearLearner(encoder, [HeadSettings(1.0, 1)], training, classes=10, bf16=False)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    assert not encoder.training
    learner.train_step(images, labels, 0)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
    assert torch.allclose(learner.features(images), encoder.features(images), atol=1e-5)


def test_resume_refuses_what_is_of_another_run(
    grid: tuple[Path, Result], weights: Path, tmp_path: Path
) -> None:
    chosen = {"optimization__lr": [0.5, 2.0], "optimization__num_blocks": [1, 2]}
    with pytest.raises(UserError, match=r"holds the classifiers lr=0\.5 blocks=1.*asks for lr=9"):
        linear_evaluation(config(weights, grid[0], optimization__lr=[9]), CPU)
    changed = config(weights, grid[0], optimization__batch_size=32, **chosen)
    with pytest.raises(UserError, match="20 steps per epoch, the config gives 40"):
        linear_evaluation(changed, CPU)
    state = checkpoint.load(weights)
    state["target_encoder"]["norm.bias"] = state["target_encoder"]["norm.bias"] + 1
    torch.save(state, tmp_path / "other.pth.tar")
    with pytest.raises(UserError, match="other pre-trained weights"):
        linear_evaluation(config(tmp_path / "other.pth.tar", grid[0], **chosen), CPU)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of gray images, with a `val` split of other classes in `odd`."""
    import cv2
    import numpy as np

    for name in ("whole/train/a", "whole/train/b", "flat/train", "flat/val"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(40):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.full((9, 9), 5 * i, np.uint8))
    for name in ("c", "d"):
        (tmp_path / "odd/val" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "odd/val" / name / "0.png"), np.zeros((9, 9), np.uint8))
    (tmp_path / "odd/train").symlink_to(tmp_path / "whole/train")
    return tmp_path


def test_the_dry_run_says_what_it_would_do(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = values(weights, tmp_path / "run", optimization__warmup=0)
    finetune = ["--fname", str(write(tmp_path / "finetune.yaml", sections))]
    del sections["optimization"]["warmup"]
    linear = ["--fname", str(write(tmp_path / "linear.yaml", sections)), "optimization.lr=[1, 2]"]
    for words, classifiers in (
        (["pretrain", "--linear-eval", *linear], "2: lr=1 blocks=1, lr=2 blocks=1"),
        (["evaluate", "linear", *linear], "2: lr=1 blocks=1, lr=2 blocks=1"),
        (["pretrain", "--finetune", *finetune], "1: finetune"),
        (["evaluate", "finetune", *finetune], "1: finetune"),
    ):
        assert main([*words, "--dry-run", "--devices", "cpu", "cpu"]) == 0
        facts = dict(re.split("  +", line, maxsplit=1) for line in plan(capsys))
        assert re.fullmatch(r"cpu \(.+, \d+ threads?\), 2 processes", facts.pop("device"))
        assert facts == {
            "precision": "fp32",
            "weights": str(weights),
            "images": "1297 to learn from, 500 to measure with",
            "classes": "10",
            "classifiers": classifiers,
            "batch": "64 per process, 128 over all",
            "steps": "10 per epoch, 20 in 2 epochs",
            "output": f"{tmp_path}/run/run-*",
            "start": "from the beginning",
        }
    assert not (tmp_path / "run").exists()


def plan(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


WRONG = [
    (["logging.pretrain_path=/nonexistent"], "/nonexistent"),
    (["meta.model_name=deit_small"], "not of deit_small"),
    (["meta.load_checkpoint=true"], "meta.load_checkpoint is true, but there is no"),
    (["meta.training=false"], "no such checkpoint to measure"),
    (["optimization.num_blocks=3"], "num_blocks 3 is more than the 2 blocks"),
    (["optimization.batch_size=2000"], "a step takes 2000 images"),
    (["optimization.lr=0"], "optimization.lr"),
    (["optimization.lr=[1, 1]"], "one value or several different ones"),
    (["data.num_classes=5"], "of 10 classes, more than data.num_classes 5"),
    (["data.channels=3"], "data.channels is 3, but the encoder takes images of 1"),
    (["data.source=folder", "data.root_path={}/whole"], "whole/val: no such folder"),
    (["data.source=folder", "data.root_path={}/flat"], "the train split has no labels"),
    (["data.source=folder", "data.root_path={}/odd"], "no class of val (c, d) is one of train"),
    (["data.subset=/nonexistent"], "/nonexistent: no such list"),
    (["--profile", "1000"], "--profile 1000: the run has"),
    (["--dry-run", "optimization.batch_size=2000"], "a step takes 2000 images"),
    (["--dry-run", "logging.pretrain_path=/nonexistent"], "/nonexistent"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_a_wrong_request_is_one_line(
    weights: Path,
    folders: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    file = write(folders / "linear.yaml", values(weights, folders / "run"))
    overrides = [text.replace("{}", str(folders)) for text in arguments]
    assert main(["pretrain", "--linear-eval", "--fname", str(file), *overrides]) == 2
    output = capsys.readouterr()
    assert expected in output.err
    assert len(output.err.strip().splitlines()) == 1
    assert not (folders / "run" / "run-latest.pth.tar").exists()
