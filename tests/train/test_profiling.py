"""`--profile`: a table and a trace of a few steps, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from msn.cli.main import main
from msn.evaluation.finetune import FinetuneLearner
from msn.evaluation.linear import LinearLearner
from msn.evaluation.resuming import Learner
from msn.methods.msn import METHOD
from msn.train.learning import TO_DEVICE
from msn.train.profiling import AFTER, WAIT
from tests.support.experiments import write_tiny
from tests.support.labeled import values, write

pytestmark = pytest.mark.slow

PARTS = (WAIT, TO_DEVICE, *METHOD.PHASES, *AFTER)


def test_the_parts_of_a_step_and_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    config = write_tiny(tmp_path / "tiny.yaml", folder)
    assert main(["pretrain", "--fname", str(config), "--profile", "4"]) == 0
    table = capsys.readouterr().out
    share = {}
    for part in (*PARTS, "everything else"):
        (found,) = re.findall(rf"^{part} +([\d.]+) +([\d.]+)$", table, re.MULTILINE)
        share[part] = float(found[1])
    assert sum(share.values()) == pytest.approx(100, abs=1)
    assert min(share[part] for part in ("anchor forward", "backward", "optimizer")) > 0.5
    assert share["everything else"] < 50

    assert [path.name for path in folder.iterdir()] == ["tiny-trace.json"]
    events = json.loads((folder / "tiny-trace.json").read_text())["traceEvents"]
    for part in PARTS:
        assert sum(event.get("name") == part for event in events) == 4


@pytest.mark.parametrize("steps", ["0", "100000"])
def test_a_number_of_steps_that_cannot_be(
    steps: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    assert main(["pretrain", "--fname", str(config), "--profile", steps]) == 2
    assert f"--profile {steps}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "learner"),
    [
        ("pretrain --linear-eval", LinearLearner),
        ("evaluate linear", LinearLearner),
        ("evaluate finetune", FinetuneLearner),
    ],
)
def test_learning_from_labels_is_profiled_too(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    learner: type[Learner],
) -> None:
    folder = tmp_path / "run"
    config = write(tmp_path / "labeled.yaml", values(weights, folder, optimization__warmup=0.5))
    assert main([*command.split(), "--fname", str(config), "--profile", "2"]) == 0
    table = capsys.readouterr().out
    share = {
        part: float(re.findall(rf"^{part} +[\d.]+ +([\d.]+)$", table, re.MULTILINE)[0])
        for part in (WAIT, TO_DEVICE, *learner.PHASES, "everything else")
    }
    assert sum(share.values()) == pytest.approx(100, abs=1)
    assert share["everything else"] < 60
    assert [path.name for path in folder.iterdir()] == ["run-trace.json"]
