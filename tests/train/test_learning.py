"""The loop that learns from labels: what it keeps, when it stops, what it measures with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.kinds import LinearConfig
from msn.data.sources.digits import Digits
from msn.evaluation.accuracy import Score
from msn.evaluation.job import build_job, read_weights
from msn.runtime.errors import RunError
from msn.train import learning
from msn.train.learning import linear_evaluation, training_batches
from tests.evaluation.test_linear import beyond, config, latest
from tests.support.commands import end, start, text, wait_for_step
from tests.support.labeled import CPU, values, write

pytestmark = pytest.mark.slow


@pytest.fixture
def third_epoch_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of 50, 80 and 70 %, and later on 60 %, whatever was learned."""
    scores = iter([50.0, 80.0, 70.0])
    monkeypatch.setattr(learning, "measure", lambda *_: [Score(next(scores, 60.0), 99.0)])


@pytest.mark.usefixtures("third_epoch_worse")
def test_the_best_epoch_is_kept_beside_the_last(weights: Path, tmp_path: Path) -> None:
    chosen = config(weights, tmp_path, optimization__epochs=3)
    result = linear_evaluation(chosen, CPU)
    (best,), (last,) = result.best.values(), result.last.values()
    assert (best.top1, last.top1, result.best_epoch) == (80.0, 70.0, 2)
    written = json.loads((tmp_path / "run-result.json").read_text())
    tops = {when: [score["top1"] for score in written[when].values()] for when in ("best", "last")}
    assert tops == {"best": [80.0], "last": [70.0]}
    best_state, last_state = latest(tmp_path, "best"), latest(tmp_path)
    assert (best_state["epoch"], last_state["epoch"]) == (2, 3)
    name = "heads.0.linear.weight"
    before = {state["step"]: state["classifier"][name] for state in (best_state, last_state)}
    assert not torch.equal(before[40], before[60])
    # What is measured again is the best, not the latest.
    only = config(weights, tmp_path, optimization__epochs=3, meta__training=False)
    assert linear_evaluation(only, CPU).best_epoch == 2
    assert last_state["mean"] == pytest.approx([Digits.MEAN])
    assert last_state["std"] == pytest.approx([Digits.STD])


def test_a_signal_stops_it_with_a_save(weights: Path, tmp_path: Path) -> None:
    """Between the saves that are due anyway, and the same command ends it."""
    sections = values(weights, tmp_path / "run", optimization__lr=2.0)
    file = write(tmp_path / "linear.yaml", sections)
    output = tmp_path / "said"
    process = start(["evaluate", "linear", "--fname", str(file)], output)
    wait_for_step(process, output, 5)
    process.terminate()
    assert end(process, 60) == 130
    err = text(output)
    done = latest(tmp_path / "run")["step"]
    assert 5 <= done < 20
    assert err.strip() == (
        f"stopped after step {done} of 40 and saved; the same command resumes from there"
    )
    linear_evaluation(LinearConfig.model_validate(sections), CPU)
    assert latest(tmp_path / "run")["step"] == 40


def test_what_diverged_is_not_saved(weights: Path, tmp_path: Path) -> None:
    """However seldom there is a line in the log."""
    often: dict[str, Any] = {"logging__checkpoint_freq_itr": 1, "logging__log_freq": 1000}
    with pytest.raises(RunError, match="the loss is not finite") as error:
        linear_evaluation(beyond(config(weights, tmp_path, **often), 3e38), CPU)
    step = latest(tmp_path)["step"]
    assert str(error.value).startswith(f"step {step}: ")  # that after the save
    assert step < 10


def test_the_order_of_images_is_that_of_the_seed(weights: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 3, 3):
        chosen = config(weights, tmp_path, meta__seed=seed)
        job = build_job(
            chosen, read_weights(chosen), train_view=lambda image, *_: image.pixels(),
            val_view=lambda image, *_: image.pixels(), batch_size=64, epochs=1, device=CPU,
        )  # fmt: skip
        orders.append(next(training_batches(chosen, job, 0)).images)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[1], orders[2])
