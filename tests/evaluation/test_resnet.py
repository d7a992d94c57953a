"""ResNets in the evaluations: frozen features, linear classifiers, fine-tuning."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import msn
from msn.cli.main import main
from msn.config.kinds import FinetuneConfig, LinearConfig
from msn.config.sizes import ResNetSize
from msn.data.batch import normalize
from msn.data.sources.digits import Digits
from msn.evaluation.finetune import build_optimizer
from msn.evaluation.frozen import FrozenEncoder
from msn.interop.reading import read
from msn.models.classifier import Classifier
from msn.models.encoder import Taps
from msn.models.resnet import ResNet
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.learning import finetune, linear_evaluation
from tests.support.labeled import CPU, values

SIZE = ResNetSize("bottleneck", (1, 1, 1, 1), width=16)
ENDS = {"data__image_size": 64}


def spread(encoder: ResNet) -> ResNet:
    """No block is its shortcut, and running statistics are not those of a fresh norm."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            for name, buffer in module.named_buffers():
                if name != "num_batches_tracked":
                    nn.init.uniform_(buffer, 0.5, 1.5)
    return encoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a method whose encoder is a ResNet: drawn, and its norms fit to digits."""
    path = tmp_path_factory.mktemp("weights") / "run-latest.pth.tar"
    torch.manual_seed(0)
    encoder = ResNet(SIZE, in_chans=1)
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    with torch.no_grad():
        for _ in range(30):
            encoder((nn.functional.interpolate(pixels[:256], 64) - Digits.MEAN) / Digits.STD)
    state = {
        "encoder": encoder.state_dict(),
        "mean": [Digits.MEAN],
        "std": [Digits.STD],
        "config": {
            "meta": {"method": "simmim", "encoder": SIZE._asdict()},
            "data": {"image_size": 64},
        },
    }
    checkpoint.save(path, state)
    return path


def test_it_has_no_class_token_to_read_or_not(weights: Path) -> None:
    assert not read(weights).has_idle_class_token


@pytest.fixture(scope="module")
def frozen(weights: Path) -> FrozenEncoder:
    return msn.load_encoder(weights)


@torch.no_grad()
def test_frozen_features_are_the_mean_of_the_last_map(frozen: FrozenEncoder) -> None:
    assert (frozen.image_size, frozen.width()) == (64, 512)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    statistics = torch.tensor([[Digits.MEAN], [Digits.STD]])
    images = normalize(torch.from_numpy(pixels), *statistics)
    found = frozen.features(torch.from_numpy(pixels))
    assert isinstance(frozen.model, ResNet)
    torch.testing.assert_close(found, frozen.model.map(images).mean(dim=(2, 3)))
    averaged = frozen.features(torch.from_numpy(pixels), Taps(blocks=0, patch_average=True))
    assert torch.equal(averaged, found)


@pytest.mark.parametrize(
    ("taps", "said"),
    [
        (Taps(blocks=2), "--blocks: a ResNet has features of its last map only"),
        (Taps(norm=True), "--norm: a ResNet ends without a norm"),
        (Taps(mask=0.5), "--mask: a ResNet sees whole images"),
        (Taps(patch_average=True), "--patch-average: a ResNet has no class token"),
    ],
)
def test_taps_that_it_has_not_are_refused(frozen: FrozenEncoder, taps: Taps, said: str) -> None:
    with pytest.raises(UserError, match=said):
        frozen.features(np.zeros((32, 32, 1), dtype=np.uint8), taps)


def test_learning_rates_fall_block_by_block_to_the_stem() -> None:
    model = Classifier(ResNet(ResNetSize("basic", (1, 2, 1, 1), width=8)), 5)
    optimizer = build_optimizer(model, weight_decay=0.05, layer_decay=0.5)
    found = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    layers = {"layer1.0": 1, "layer2.0": 2, "layer2.1": 3, "layer3.0": 4, "layer4.0": 5}
    for name, parameter in model.named_parameters():
        layer = 6 if name.startswith("head") else layers.get(name[8:16], 0)
        expected = 0.5 ** (6 - layer), 0.05 * (parameter.ndim > 1)
        assert found[id(parameter)] == expected, name


def test_some_last_blocks_are_trained_and_the_rest_is_as_in_evaluation() -> None:
    model = Classifier(spread(ResNet(SIZE)), 5, trained_blocks=1, drop_path_rate=0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nn.init.normal_(model.head.weight)
    optimizer = build_optimizer(model, weight_decay=0.05, layer_decay=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model.train()(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert {name.rpartition(".")[0] for name in changed} == {"head"} | {
        f"encoder.layer4.0.{part}"
        for part in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")
    }


@pytest.mark.slow
def test_fine_tuning_learns_and_is_read_back(weights: Path, tmp_path: Path) -> None:
    """BatchNorm is trained with the rest; what is saved computes the same logits."""
    changes = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    sections = values(weights, tmp_path, **ENDS, meta__drop_path_rate=0.1)
    sections["data"] |= {"auto_augment": "rand-m1-n1", "erasing": 0.0}
    sections["criterion"] = changes
    sections["optimization"] |= {"lr": 0.01, "warmup": 0.2, "layer_decay": 1.0}
    chosen = FinetuneConfig.model_validate(sections)
    assert finetune(chosen, CPU).last["finetune"].top1 > 50
    saved = tmp_path / "run-latest.pth.tar"
    state = checkpoint.load(saved, "classifier")["classifier"]
    assert not torch.equal(
        state["encoder.bn1.running_mean"],
        checkpoint.load(weights, "encoder")["encoder"]["bn1.running_mean"],
    )
    read = msn.interop.reading.read(saved)
    assert read.architecture.size == SIZE
    assert read.classifier is not None
    assert torch.equal(read.classifier.weight, state["head.weight"])


@pytest.mark.slow
def test_linear_classifiers_on_frozen_features(weights: Path, tmp_path: Path) -> None:
    changes = {"optimization__lr": [2.0], "optimization__num_blocks": [1]}
    chosen = LinearConfig.model_validate(values(weights, tmp_path, **ENDS, **changes))
    (scores,) = linear_evaluation(chosen, CPU).last.values()
    assert scores.top1 > 40
    chosen = chosen.model_copy(
        update={"optimization": chosen.optimization.model_copy(update={"num_blocks": (2,)})}
    )
    with pytest.raises(UserError, match="num_blocks 2 is more than the 1 block of the encoder"):
        linear_evaluation(chosen, CPU)


@pytest.mark.slow
def test_few_labels_and_the_table_of_all(weights: Path, tmp_path: Path) -> None:
    """The commands, on features that the norms make of drawn weights: far above chance, 10 %."""
    common = ["--weights", str(weights), "--draws", "2", "--precision", "fp32"]
    few = ["--images-per-class", "1", "5", "--out", str(tmp_path / "few.json")]
    assert main(["evaluate", "logistic", *common, *few, "data.source=digits"]) == 0
    one, five = json.loads((tmp_path / "few.json").read_text())["points"]
    assert (one["sets"], five["sets"]) == (2, 2)
    assert 25 < one["mean"] < five["mean"]
    table = tmp_path / "all.md"
    short = ["--max-images", "200", "--out", str(table)]
    assert main(["evaluate", "all", *common, *short, "data.source=digits"]) == 0
    rows = dict(re.findall(r"^\| (.+?) \| (\d+\.\d)", table.read_text(), re.MULTILINE))
    assert rows.keys() == {"raw pixels", "untrained encoder", "trained encoder"}
    assert float(rows["trained encoder"]) > 40
