"""The loop knows no method: one written from `msn.methods.base` alone has all that MSN has."""

import csv
from pathlib import Path

import pytest
import torch

from msn.cli.main import main
from msn.data.batch import Views
from msn.methods import Output
from msn.runtime import checkpoint
from msn.train.pretraining import pretrain
from tests.support.experiments import tiny_config
from tests.support.processes import run_on
from tests.support.runs import Broken, assert_same
from tests.support.toy import Toy

pytestmark = pytest.mark.processes

CPU = torch.device("cpu")
SETTINGS = {
    "logging__checkpoint_freq_itr": 5,
    "logging__probe": {"every": 1, "k": 5, "max_images": 100},
    "meta__encoder": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
}


def test_it_trains_logs_and_is_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(tiny_config(tmp_path, **SETTINGS), CPU, Toy)
    with (tmp_path / "tiny_r0.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == "variance"
    assert not {"momentum", "msn"} & rows[0].keys()
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert "k-NN probe" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "tiny-latest.pth.tar")
    assert {"target_encoder", "opt", "step"} <= state.keys()
    assert "prototypes" not in state
    # What evaluates a run of MSN evaluates this one.
    weights = str(tmp_path / "tiny-latest.pth.tar")
    assert (
        main(["evaluate", "knn", "--weights", weights, "data.source=digits", "--image-size=8"]) == 0
    )


class Breaking(Toy):
    """The toy, until it fails in the middle of a step."""

    def forward(self, views: Views, *, step: int) -> Output:
        if step == 17:
            raise Broken
        return super().forward(views, step=step)


def broken_and_unbroken(folder: Path) -> None:
    """Two runs; the one that breaks off goes on from its last save."""
    whole, broken = (tiny_config(folder / name, **SETTINGS) for name in ("whole", "broken"))
    pretrain(whole, CPU, Toy)
    with pytest.raises(Broken):
        pretrain(broken, CPU, Breaking)
    done = checkpoint.load(folder / "broken/tiny-latest.pth.tar")["step"]
    assert done == 15
    pretrain(broken, CPU, Toy)


@pytest.mark.parametrize("processes", [1, 2])
def test_broken_off_it_ends_as_if_unbroken(tmp_path: Path, processes: int) -> None:
    run_on(processes, broken_and_unbroken, tmp_path)
    broken, whole = (
        checkpoint.load(tmp_path / name / "tiny-latest.pth.tar") for name in ("broken", "whole")
    )
    assert whole["step"] == 40 // processes
    assert_same(broken, whole)
