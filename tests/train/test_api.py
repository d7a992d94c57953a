"""The work of the commands, called from Python."""

import logging
from pathlib import Path

import pytest
import torch

import msn
from msn.config.kinds import LinearConfig
from msn.runtime import log
from msn.runtime.errors import UserError
from msn.train.learning import linear_evaluation
from tests.support.experiments import write_tiny
from tests.support.labeled import values

pytestmark = pytest.mark.slow


def test_pretrain_and_evaluate_from_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    weights = msn.pretrain(config, ["logging.write_tag=mine"], device="cpu")
    assert weights == tmp_path / "run/mine-latest.pth.tar"
    assert torch.load(weights, weights_only=True)["step"] == 40
    encoder = msn.load_encoder(weights)
    assert encoder.features(torch.zeros(3, 8, 8, 1, dtype=torch.uint8)).shape == (3, 16)
    assert "epoch 1  step 1/40" in capsys.readouterr().out
    own, other = (
        LinearConfig.model_validate(values(weights, tmp_path / name, optimization__epochs=1))
        for name in ("own", "other")
    )
    assert msn.evaluate(own, device="cpu") == linear_evaluation(other, torch.device("cpu"))


def test_a_program_can_silence_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    log.logger.setLevel(logging.CRITICAL)
    try:
        msn.pretrain(config, ["optimization.epochs=1"], device="cpu")
    finally:
        log.logger.setLevel(logging.INFO)
    assert capsys.readouterr().out == ""


def test_what_is_wrong_is_an_exception(tmp_path: Path) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        msn.pretrain(config, ["optimization.epocs=3"])
