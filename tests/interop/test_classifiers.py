"""Classifiers trained here, with the encoder, in other software: the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTMSNForImageClassification

from msn.cli import main as cli
from msn.config.kinds import FinetuneConfig, LinearConfig
from msn.interop import huggingface, reading
from msn.interop.classifiers import with_linear_head, without_unit_length
from msn.interop.graph import Graph
from msn.models.linear import HeadSettings, LinearHeads
from msn.runtime.checkpoint import load
from msn.runtime.errors import UserError
from msn.train.learning import finetune, linear_evaluation
from tests.support.encoders import images, relative
from tests.support.labeled import CPU, pretrained, values

VIEWS = images(8, batch=5, channels=1)


def by_transformers(folder: Path) -> Tensor:
    with torch.no_grad():
        return ViTMSNForImageClassification.from_pretrained(folder).eval()(VIEWS).logits


def evaluated(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Weights, and the file of a linear evaluation on them."""
    weights = pretrained(folder)
    changes = {"optimization__epochs": 1, "optimization__lr": [0.5, 2.0], **changes}
    linear_evaluation(LinearConfig.model_validate(values(weights, folder, **changes)), CPU)
    return weights, folder / "run-latest.pth.tar"


def ours(weights: Path, head: Path, *, normalize: bool) -> Tensor:
    """Logits of the best classifier, by the modules that were trained."""
    state = load(head, "classifier")
    settings = [HeadSettings(0.5, 1), HeadSettings(2.0, 1)]
    heads = LinearHeads(settings, dim=48, classes=10, normalize=normalize, seed=0)
    heads.load_state_dict(state["classifier"])
    top1 = [score[0] for score in state["accuracy"][-1]]
    with torch.no_grad():
        features = reading.read(weights).build().features(VIEWS)
        return heads(features)[top1.index(max(top1))]


def test_a_linear_classifier_without_unit_length(tmp_path: Path) -> None:
    weights, head = evaluated(tmp_path, optimization__normalize=False)
    words = ["export", str(weights), "--to", "huggingface", str(tmp_path / "out")]
    assert cli.main([*words, "--head", str(head)]) == 0
    expected = ours(weights, head, normalize=False)
    assert relative(by_transformers(tmp_path / "out"), expected) < 1e-5


def test_a_linear_classifier_with_unit_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ViTMSN has no place for the scaling; a graph has."""
    weights, head = evaluated(tmp_path)
    words = ["export", str(weights), "--to", "huggingface", str(tmp_path / "out")]
    assert cli.main([*words, "--head", str(head)]) == 2
    assert "scales each token to length 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    graph = Graph(with_linear_head(reading.read(weights), head), "logits", normalize=False)
    assert relative(graph(VIEWS), ours(weights, head, normalize=True)) < 1e-5


def test_unit_length_behind_a_plain_norm_goes_into_the_linear_layer(tmp_path: Path) -> None:
    weights, head = evaluated(tmp_path)
    state = load(head, "classifier")
    for name, tensor in state["classifier"].items():
        if "norm" in name:
            tensor.fill_(-0.7 if name.endswith("weight") else 0.0)
    torch.save(state, head)
    huggingface.write(tmp_path / "out", with_linear_head(reading.read(weights), head))
    assert relative(by_transformers(tmp_path / "out"), ours(weights, head, normalize=True)) < 1e-5
    plain = reading.read(weights)
    assert without_unit_length(plain, tmp_path) is plain


@pytest.mark.slow
def test_a_fine_tuned_model(tmp_path: Path) -> None:
    sections = values(
        pretrained(tmp_path), tmp_path, optimization__epochs=1, optimization__warmup=0
    )
    finetune(FinetuneConfig.model_validate(sections), CPU)
    file = tmp_path / "run-latest.pth.tar"
    out = tmp_path / "out"
    assert cli.main(["export", str(file), "--to", "huggingface", str(out)]) == 0
    state = load(file, "classifier")["classifier"]
    with torch.no_grad():
        encoder: Any = reading.read(file).build()
        normed = torch.nn.functional.layer_norm(
            encoder.features(VIEWS), [48], state["norm.weight"], state["norm.bias"], 1e-6
        )
    expected = normed @ state["head.weight"].T + state["head.bias"]
    assert relative(by_transformers(out), expected) < 1e-5
    assert encoder.blocks[0].attn.num_heads == 2


def test_classifiers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights, head = evaluated(tmp_path, optimization__num_blocks=[2])
    read = reading.read(weights)
    with pytest.raises(UserError, match=r"sees several blocks.*num_blocks=1"):
        with_linear_head(read, head)
    with pytest.raises(UserError, match="without an encoder; export the weights"):
        reading.read(head)
    with pytest.raises(UserError, match="no key 'classifier'"):
        with_linear_head(read, weights)
    read.encoder["norm.weight"] += 1
    with pytest.raises(UserError, match="trained on another encoder"):
        with_linear_head(read, head)
