"""Whole runs: learning, exact resume after any stop, and what is said when something is wrong."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.cli.main import main
from msn.runtime import checkpoint
from msn.runtime.errors import RunError, UserError
from msn.runtime.identity import changes
from msn.runtime.resumable import config_changes
from msn.train.pretraining import pretrain
from tests.support.commands import end, start, text, wait_for_step
from tests.support.experiments import tiny_config, write_tiny
from tests.support.runs import assert_same, killed_at

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TIMINGS = {"time (ms)", "images_per_s", "data_wait"}


def rows(folder: Path) -> list[dict[str, str]]:
    """The run log without what depends on the clock."""
    with (folder / "tiny_r0.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def latest(folder: Path) -> dict[str, Any]:
    return checkpoint.load(checkpoint.latest_path(folder, "tiny"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, 80 steps."""
    folder = tmp_path_factory.mktemp("unbroken")
    pretrain(tiny_config(folder, optimization__epochs=2), CPU)
    return folder


def test_the_loss_falls(unbroken: Path) -> None:
    losses = [float(row["loss"]) for row in rows(unbroken)]
    assert losses[-1] < losses[0] - 0.5


def test_files_of_a_run(unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()}
    assert names == {
        "tiny-latest.pth.tar",
        "tiny-ep2.pth.tar",
        "tiny-config.yaml",
        "tiny_r0.csv",
        "tiny-probe.csv",
    }
    state = latest(unbroken)
    assert (state["epoch"], state["step"]) == (2, 80)
    official = {"encoder", "target_encoder", "prototypes", "opt", "epoch", "batch_size"}
    assert official | {"world_size", "lr", "temperature", "loss"} <= state.keys()
    assert not any(name.startswith("module.") for name in state["encoder"])


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_step_a_run_ends_as_if_unbroken(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    config = write_tiny(
        tmp_path / "tiny.yaml",
        tmp_path / "run",
        optimization__epochs=2,
        logging__checkpoint_freq_itr=7,
        data__num_workers=workers,
    )
    for steps in (9, 45):
        killed_at(["pretrain", "--fname", str(config)], steps)
        done = latest(tmp_path / "run")["step"]
        assert 0 < done < 80
        assert done % 7 == 0 or done % 40 == 0
    assert main(["pretrain", "--fname", str(config)]) == 0
    assert "resumed from" in capsys.readouterr().out
    assert_same(latest(tmp_path / "run"), latest(unbroken))
    assert rows(tmp_path / "run") == rows(unbroken)


def test_interrupted_by_ctrl_c(unbroken: Path, tmp_path: Path) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", optimization__epochs=2)
    command, output = ["pretrain", "--fname", str(config)], tmp_path / "said"
    process = start([*command, "data.num_workers=1"], output)
    wait_for_step(process, output, 13)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to workers, too
    assert end(process, 60) == 130
    stderr = text(output)
    assert "saved" in stderr
    assert "the same command resumes from there" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert 13 <= latest(tmp_path / "run")["step"] < 80
    assert main(command) == 0
    assert_same(latest(tmp_path / "run")["encoder"], latest(unbroken)["encoder"])


def test_a_finished_run_says_so_and_changes_nothing(unbroken: Path) -> None:
    before = {p.name: p.read_bytes() for p in unbroken.iterdir() if p.suffix == ".tar"}
    log = rows(unbroken)
    pretrain(tiny_config(unbroken, optimization__epochs=2), CPU)
    assert before == {p.name: p.read_bytes() for p in unbroken.iterdir() if p.suffix == ".tar"}
    assert rows(unbroken) == log


def test_released_weights_warm_start_anchor_and_target(unbroken: Path, tmp_path: Path) -> None:
    state = latest(unbroken)
    released = {
        "target_encoder": {f"module.{k}": v for k, v in state["target_encoder"].items()},
        "prototypes": state["prototypes"],
    }
    torch.save(released, tmp_path / "released.pth.tar")
    config = tiny_config(
        tmp_path / "run",
        meta__init_from=str(tmp_path / "released.pth.tar"),
        optimization__lr=0.0,
        optimization__start_lr=0.0,
        optimization__final_lr=0.0,
    )
    pretrain(config, CPU)
    own = latest(tmp_path / "run")
    assert own["step"] == 40
    assert_same(own["prototypes"], state["prototypes"])
    for name, value in state["target_encoder"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(own["encoder"][name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion__num_proto": 9}, r"'prototypes' is of another model.*\(8, 8\).*\(9, 8\)"),
        ({"meta__hidden_dim": 25}, r"'encoder' is of another model: fc\.fc1\.weight is \(24, 16\)"),
        ({"criterion__freeze_proto": True}, "'opt' is of another model"),
        ({"criterion__batch_size": 16}, r"global batch of 32 = 32 x 1 .* this run has 16 = 16 x 1"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    unbroken: Path, changes: dict[str, Any], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in unbroken.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=message):
        pretrain(tiny_config(unbroken, optimization__epochs=2, **changes), CPU)
    assert before == {path.name: path.read_bytes() for path in unbroken.iterdir() if path.is_file()}


def test_a_loss_that_is_not_finite_stops_the_run(unbroken: Path, tmp_path: Path) -> None:
    """The checkpoint before it stays, and no weight has changed since."""
    config = tiny_config(tmp_path, optimization__clip_grad=None, logging__checkpoint_freq_itr=1)
    beyond = {"lr": 1e38, "start_lr": 1e38}  # more than a config may ask for
    optimization = config.optimization.model_copy(update=beyond)
    config = config.model_copy(update={"optimization": optimization})
    with pytest.raises(RunError, match=r"step [1-9]\d* \(epoch 1\): the .* is not finite") as error:
        pretrain(config, CPU)
    step = int(str(error.value).split()[1])
    assert latest(tmp_path)["step"] == step
    assert "last good checkpoint" in str(error.value)


def test_changes_between_configs_are_named() -> None:
    old = {"a": {"x": 1, "y": 2}, "b": 3}
    assert changes(old, {"a": {"x": 1, "y": 5}, "b": 3}) == ["a.y: 2 -> 5"]


def test_a_key_that_is_younger_than_the_checkpoint_is_no_change(tmp_path: Path) -> None:
    before = tiny_config(tmp_path).model_dump(mode="json")
    del before["meta"]["collective_timeout"]
    found = checkpoint.Found(tmp_path, {"config": before})
    assert config_changes(found, tiny_config(tmp_path)) == []
    given = tiny_config(tmp_path, meta__collective_timeout=60, meta__seed=3)
    assert config_changes(found, given) == [
        "meta.collective_timeout: None -> 60.0",
        "meta.seed: 0 -> 3",
    ]


WRONG = [
    (["optimization.epocs=3"], "did you mean 'epochs'"),
    (["data.rand_views=0"], "data.rand_views"),
    (["data.patch_drop=1.0"], "data.patch_drop"),
    (["criterion.num_proto=1"], "criterion.num_proto"),
    (["criterion.temperature=0"], "criterion.temperature"),
    (["optimization.warmup=9"], "optimization.warmup"),
    (["data.source=folder", "data.root_path=/nonexistent"], "/nonexistent"),
    (["criterion.prior=/nonexistent"], "criterion.prior /nonexistent"),
    (["meta.init_from=/nonexistent"], "/nonexistent"),
    (["meta.load_checkpoint=true"], "holds no checkpoint"),
    (["criterion.batch_size=2000"], "more than the 1297 training images"),
    (["logging.folder=/proc/msn"], "/proc/msn: cannot be written"),
    (["--devices", "cuda:99"], "cuda:99"),
    (["--devices", "toaster"], "toaster"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_a_wrong_request_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    assert main(["pretrain", "--fname", str(config), *arguments]) == 2
    output = capsys.readouterr()
    assert expected in output.err
    assert output.err.startswith("error: ")
    assert len(output.err.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "tiny-latest.pth.tar").exists()


def test_damaged_checkpoint_is_one_line(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    content = checkpoint.latest_path(unbroken, "tiny").read_bytes()
    broken = checkpoint.latest_path(run_folder, "tiny")
    broken.write_bytes(content[:1000])
    config = write_tiny(tmp_path / "tiny.yaml", run_folder)
    assert main(["pretrain", "--fname", str(config)]) == 2
    stderr = capsys.readouterr().err
    assert "tiny-latest.pth.tar" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert broken.read_bytes() == content[:1000]


def test_a_run_continues_from_the_epoch_before_a_damaged_file(
    unbroken: Path, tmp_path: Path
) -> None:
    for name in ("tiny-latest.pth.tar", "tiny-ep2.pth.tar"):
        (tmp_path / name).write_bytes((unbroken / name).read_bytes())
    checkpoint.latest_path(tmp_path, "tiny").write_bytes(b"")
    pretrain(tiny_config(tmp_path, optimization__epochs=2), CPU)
    assert (tmp_path / "tiny-latest.pth.tar.damaged").exists()
