"""ResNets in and out, against torchvision, timm, transformers and onnxruntime themselves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from msn.config.sizes import RESNETS, ResNetSize
from msn.data.normalization import Normalization
from msn.interop import huggingface, official, reading, timm_vit
from msn.interop.architecture import infer_architecture
from msn.interop.graph import Graph, Tap, write_onnx, write_torch
from msn.interop.weights import Weights
from msn.models.resnet import ResNet
from msn.runtime.errors import UserError
from tests.support.encoders import NARROW, images, random_resnet, relative, same

BASIC = ResNetSize("basic", (1, 1, 2, 1), width=16)
GROUPED = ResNetSize("bottleneck", (1, 1, 1, 1), groups=4, group_width=8)
SHORT = ResNetSize("bottleneck", (1, 1, 2, 1))
SHORT_BASIC = ResNetSize("basic", (1, 2, 1, 1))
OTHERS = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def features(weights: Weights, views: Tensor) -> Tensor:
    """What another model is to give: the mean of the last map, or logits."""
    found = weights.build().features(views)
    if weights.classifier is None:
        return found
    return found @ weights.classifier.weight.T + weights.classifier.bias


@pytest.mark.parametrize("name", RESNETS)
def test_the_size_follows_from_the_shapes(name: str) -> None:
    with torch.device("meta"):
        tensors = ResNet(RESNETS[name], in_chans=1).state_dict()
    found = infer_architecture(tensors, path=Path("file"))
    assert found == (RESNETS[name], 1, 224, None)


@pytest.mark.parametrize("size", [NARROW, BASIC, GROUPED, SHORT._replace(width=24)])
def test_a_size_of_its_own_follows_too(size: ResNetSize) -> None:
    assert random_resnet(size).architecture == (size, 3, 64, None)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_files_of_torchvision_are_read(tmp_path: Path, name: str) -> None:
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    weights = reading.read(tmp_path / "theirs.pth", model_name=name)
    assert weights.architecture == (RESNETS[name], 3, 224, None)
    views = images(64)
    assert relative(features(weights, views), theirs(views)) < 1e-5


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 5])
def test_the_file_that_torchvision_takes(tmp_path: Path, classes: int) -> None:
    weights = replace(random_resnet(RESNETS["resnet18"], classes=classes), stated=OTHERS)
    official.write(tmp_path / "a.pth", weights)
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    theirs = torchvision.models.resnet18(num_classes=classes or 1).eval()
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == ([] if classes else ["fc.weight", "fc.bias"])
    if not classes:
        theirs.fc = torch.nn.Identity()
    views = images(64)
    assert relative(features(weights, views), theirs(views)) < 1e-5
    back = reading.read(tmp_path / "a.pth")
    assert back.normalization == OTHERS
    assert same(back.encoder, weights.encoder)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("size", [RESNETS["resnet50"], SHORT, SHORT_BASIC, GROUPED])
@pytest.mark.parametrize("classes", [0, 5])
def test_folders_of_timm_there_and_back(tmp_path: Path, size: ResNetSize, classes: int) -> None:
    weights = random_resnet(size, in_chans=1, image_size=96, classes=classes)
    timm_vit.write(tmp_path / "a", weights)
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    views = images(70, channels=1)
    assert relative(features(weights, views), model(views)) < 1e-5
    assert_same(reading.read(tmp_path / "a"), weights)


@torch.no_grad()
@pytest.mark.parametrize("size", [NARROW, BASIC, SHORT])
@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.slow
def test_folders_of_transformers_there_and_back(
    tmp_path: Path, size: ResNetSize, classes: int
) -> None:
    weights = replace(random_resnet(size, image_size=96, classes=classes), stated=OTHERS)
    huggingface.write(tmp_path / "a", weights)
    views = images(70, 64)
    if classes:
        model: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
        found = model.eval()(views).logits
    else:
        model = AutoModel.from_pretrained(tmp_path / "a")
        found = model.eval()(views).pooler_output.flatten(1)
    assert relative(features(weights, views), found) < 1e-5
    assert_same(reading.read(tmp_path / "a"), weights)
    model.save_pretrained(tmp_path / "theirs")
    assert same(reading.read(tmp_path / "theirs").encoder, weights.encoder)


def assert_same(back: Weights, weights: Weights) -> None:
    assert back.architecture == weights.architecture
    assert back.normalization == weights.normalization
    assert same(back.encoder, weights.encoder)
    assert (back.classifier is None) == (weights.classifier is None)
    if back.classifier and weights.classifier:
        assert same(back.classifier.tensors(), weights.classifier.tensors())


@torch.no_grad()
@pytest.mark.slow
def test_graphs_compute_the_mean_of_the_map(tmp_path: Path) -> None:
    weights, views = random_resnet(classes=5), images(64, batch=3)
    graph = Graph(weights, None, normalize=False)
    expected = weights.build().features(views)
    write_onnx(tmp_path / "a.onnx", graph, images(64))
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (found,) = session.run(None, {"images": views.numpy()})
    assert relative(torch.from_numpy(found), expected) < 1e-5
    write_torch(tmp_path / "a.pt2", graph, images(64))
    assert relative(torch.export.load(tmp_path / "a.pt2").module()(views), expected) < 1e-5
    taps: dict[Tap, Tensor] = {
        "patches": weights.build().patch_tokens(views),
        "logits": features(weights, views),
    }
    for tap, values in taps.items():
        assert relative(Graph(weights, tap, normalize=False)(views), values) < 1e-5
    with pytest.raises(UserError, match="no class token; choose patch_mean"):
        Graph(weights, "cls", normalize=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True, but only False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but only 'relu'"),
        ({"depths": [1, 1, 1, 1]}, r"depths is \[1, 1, 1, 1\], but the tensors"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label is 2, but the tensors"),
    ],
)
def test_a_config_that_says_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    huggingface.write(tmp_path / "a", random_resnet(classes=5))
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=said):
        reading.read(tmp_path / "a")


def test_forms_without_such_a_resnet_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the stem of timm's ResNet has 64 channels.*16"):
        timm_vit.write(tmp_path / "a", random_resnet())
    with pytest.raises(UserError, match="neither groups nor wider blocks"):
        huggingface.write(tmp_path / "a", random_resnet(GROUPED))
    theirs = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128], depths=[1, 1, 1])
    )
    theirs.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="stage 4 has 0 blocks"):
        reading.read(tmp_path / "three")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors = dict(random_resnet().encoder)
    del tensors["layer2.0.bn1.running_mean"]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"not the tensors of a ResNet.*layer2.0.bn1.running_mean"):
        reading.read(tmp_path / "a.safetensors")
    tensors["conv1.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"conv1.weight is of the shape \(3, 3\)"):
        reading.read(tmp_path / "a.safetensors")


def test_another_model_than_the_named_is_refused(tmp_path: Path) -> None:
    official.write(tmp_path / "a.pth", random_resnet())
    with pytest.raises(UserError, match=r"another model \(width 512, 1-2-1-1 bottleneck blocks"):
        reading.read(tmp_path / "a.pth", model_name="resnet50")
