"""ResNets: torchvision's names, timm's numbers, a map that can be changed on the way."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from msn.config.sizes import RESNETS, ResNetSize
from msn.models.resnet import ResNet
from msn.runtime import collectives
from msn.runtime.sharding import full, shard
from tests.support.processes import run_on

NARROW = ResNetSize("bottleneck", (1, 2, 1, 1), width=8)
BASIC = ResNetSize("basic", (1, 1, 2, 1), width=8)


def narrow(size: ResNetSize = NARROW, **settings: float) -> ResNet:
    """With random norms, so that no block is only its shortcut."""
    torch.manual_seed(0)
    model = ResNet(size, **settings)  # type: ignore[arg-type]
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return model


def picture(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_names_and_shapes_are_those_of_timm_and_torchvision(name: str) -> None:
    with torch.device("meta"):
        own = ResNet(RESNETS[name])
        others = [timm.create_model(name, num_classes=0)]
        if hasattr(torchvision.models, name):
            others.append(getattr(torchvision.models, name)())
    shapes = {key: tensor.shape for key, tensor in own.state_dict().items()}
    for other in others:
        expected = {key: tensor.shape for key, tensor in other.state_dict().items()}
        assert shapes == {key: s for key, s in expected.items() if not key.startswith("fc.")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_statistics_are_those_of_torchvision(name: str, training: bool) -> None:
    own = narrow(RESNETS[name]).train(training)
    reference = getattr(torchvision.models, name)()
    reference.fc = nn.Identity()
    reference.load_state_dict(own.state_dict())
    images = picture(2, 3, 70, 64)
    expected = reference.train(training)(images)
    torch.testing.assert_close(own(images), expected, rtol=1e-5, atol=1e-5)
    for key, tensor in reference.state_dict().items():
        torch.testing.assert_close(own.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [NARROW, BASIC])
@pytest.mark.parametrize("sides", [(64, 64), (65, 33), (28, 28), (1, 1)])
def test_the_map_has_the_announced_shape(size: ResNetSize, sides: tuple[int, int]) -> None:
    model = narrow(size).eval()
    images = picture(2, 3, *sides)
    maps = model.map(images)
    assert maps.shape == (2, model.embed_dim, *model.grid(*sides))
    tokens = model.patch_tokens(images)
    assert torch.equal(tokens[:, -1], maps[:, :, -1, -1])
    torch.testing.assert_close(model(images), tokens.mean(dim=1))


@pytest.mark.parametrize("size", [NARROW, BASIC])
@pytest.mark.parametrize("at", range(4))
def test_the_input_of_any_stage_can_be_changed(size: ResNetSize, at: int) -> None:
    model, images = narrow(size).eval(), picture(2, 3, 64, 96)
    seen: list[Tensor] = []

    def change(maps: Tensor) -> Tensor:
        seen.append(maps)
        return torch.zeros_like(maps)

    maps = model.map(images, at, change)
    (entered,) = seen
    stride = model.stride(at)
    assert entered.shape == (2, model.channels(at), 64 // stride, 96 // stride)
    expected = model.stem(images)
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4)[:at]:
        expected = layer(expected)
    assert torch.equal(entered, expected)
    assert torch.equal(maps, model.map(images * 2, at, torch.zeros_like))  # saw nothing else
    assert not torch.equal(maps, model.map(images))
    assert torch.equal(model.map(images, at, lambda tensor: tensor), model.map(images))


def test_a_fresh_block_is_its_shortcut_and_convolutions_are_kaiming() -> None:
    torch.manual_seed(0)
    model = ResNet(ResNetSize("bottleneck", (1, 2, 1, 1), width=64))
    spread = float(model.conv1.weight.detach().std())
    assert abs(spread / (2 / (64 * 49)) ** 0.5 - 1) < 0.05  # fan-out
    block = model.layer2[1].eval()
    maps = picture(1, 512, 4, 4)
    assert torch.equal(block(maps), maps.relu())


def test_recomputation_changes_neither_gradients_nor_statistics() -> None:
    plain = narrow(drop_path_rate=0.5)
    again = copy.deepcopy(plain)
    again.recompute_activations(True)
    images = picture(3, 3, 32, 32)
    for model in (plain, again):
        torch.manual_seed(2)
        model(images).square().sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    buffers = dict(again.named_buffers())
    assert int(buffers["bn1.num_batches_tracked"]) == 1
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_stochastic_depth_grows_from_the_first_block_to_the_last() -> None:
    rates = [block.drop_path for block in narrow(drop_path_rate=0.4).blocks]
    assert rates[0] is None
    assert [rate.drop_prob for rate in rates[1:]] == pytest.approx([0.1, 0.2, 0.3, 0.4])


class Doubling(nn.Module):
    """Changes the input of the first stage, as a method does."""

    def __init__(self, encoder: ResNet) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder.map(images, 0, lambda tensor: tensor * 2)
        return maps.mean(dim=(2, 3)) + self.encoder.features(images)


def step_of(kind: str) -> dict[str, Tensor]:
    """Output, gradients and statistics of this process's share of a batch."""
    model = Doubling(narrow().double())
    model.encoder.recompute_activations("recomputed" in kind)
    if "sharded" in kind:
        shard(model, [model.encoder], torch.device("cpu"))
    images = picture(6, 3, 64, 64).double().chunk(collectives.world_size())[collectives.rank()]
    output = model(images)
    output.square().mean().backward()
    found = {"output": output.detach(), **dict(model.named_buffers())}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gradient = full(parameter.grad)
        found[name] = gradient if "sharded" in kind else collectives.mean(gradient)
    return found


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["replicated, recomputed", "sharded", "sharded, recomputed"])
def test_two_processes_compute_what_one_does(kind: str) -> None:
    whole, parts = step_of("plain"), run_on(2, step_of, kind)
    joined = torch.cat([part.pop("output") for part in parts])
    torch.testing.assert_close(joined, whole.pop("output"), rtol=1e-9, atol=1e-9)
    for part in parts:
        for name, tensor in whole.items():
            torch.testing.assert_close(part[name], tensor, rtol=1e-9, atol=1e-9)


def test_stages_hold_every_weight_once() -> None:
    model = narrow()
    held = [id(parameter) for stage in model.stages() for parameter in stage.parameters()]
    assert sorted(held) == sorted(map(id, model.parameters()))
