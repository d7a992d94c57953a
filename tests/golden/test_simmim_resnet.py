"""SimMIM and A2MIM with a ResNet: maps, reconstruction, loss, gradients, running statistics."""

import ast
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.config.sizes import ResNetSize
from msn.methods.simmim import PixelLoss, SimMIM, UnitMasking
from msn.models.mask_token import MaskToken
from msn.models.resnet import ResNet
from tests.golden.record import Golden, assert_close
from tests.golden.simmim_models import golden, units_of

FILE = "simmim_resnet.npz"
CASES: dict[str, Any] = golden(FILE).meta["cases"]
BY_CASE = pytest.mark.parametrize("case", CASES)
# The official mask is an integer tensor: sum + 1e-5 is float32 there, which costs 6e-9 and less.
MASK_IN_FLOAT32 = 1e-7


def rebuild(data: Golden, case: str) -> SimMIM:
    config, settings = data.meta["config"], CASES[case]
    layers = tuple(config["blocks"])
    encoder = ResNet(ResNetSize("bottleneck", layers, config["channels"]))
    token = MaskToken(
        encoder,
        stage=settings["layer"],
        add=not settings["replace"],
        gate=settings["gamma"] or None,
    )
    head = settings["head"]
    loss = PixelLoss() if head == "simmim" else PixelLoss("focal_l1", ast.literal_eval(head)[1])
    filled = f"{case}.x_filled" in data
    masking = UnitMasking(config["mask_patch"], config["ratio"], "mean" if filled else "none")
    model = SimMIM(encoder, token, masking=masking, loss=loss).double()
    with torch.no_grad():
        for name, parameter in names_of(model).items():
            shared = f"sd.{name}"
            parameter.copy_(data.tensor(shared if shared in data else f"{case}.{shared}"))
    prefix = "sd.backbone."
    buffers = {name: data.tensor(prefix + name) for name in data.names(prefix)}
    model.backbone.load_state_dict(buffers)
    return model


def names_of(model: SimMIM) -> dict[str, torch.nn.Parameter]:
    renamed = {"backbone.": "backbone.", "token.": "backbone.", "decoder.": "neck.decoder."}
    names = {}
    for name, parameter in model.named_parameters():
        own = next(prefix for prefix in renamed if name.startswith(prefix))
        names[renamed[own] + name.removeprefix(own)] = parameter
    return names


def recorded(data: Golden, case: str, key: str) -> Tensor | None:
    """In float64, or rounded to float32, or left out."""
    found = next((name for name in (f"{case}.{key}64", f"{case}.{key}") if name in data), None)
    return data.tensor(found) if found else None


@BY_CASE
def test_forward(case: str) -> None:
    data, settings = golden(FILE), CASES[case]
    model = rebuild(data, case)
    images = data.tensor("x", torch.float64)
    cells = data.meta["config"]["mask_patch"] // settings["stride_at_mask"]
    assert model.token.stride == settings["stride_at_mask"]
    units = units_of(data.tensor(f"{case}.mask"), cells)
    filled, seen = model.filled(images, units), {}

    def masked(maps: Tensor, mask: Tensor) -> Tensor:
        seen["feat_before"] = maps
        seen["feat_after"] = MaskToken.masked(model.token, maps, mask)
        return seen["feat_after"]

    model.token.masked = masked  # type: ignore[method-assign]
    seen["x_filled"] = filled
    seen["z"] = model.token.encode(model.backbone, filled, units)
    seen["rec"] = model.decoder(seen["z"])
    for key, own in seen.items():
        expected = recorded(data, case, key)
        if expected is not None:
            assert_close(own, expected, float64=True, what=key)
    loss = model.loss_of(seen["rec"], images, units)
    assert loss.item() == pytest.approx(settings["loss64"], rel=MASK_IN_FLOAT32)
    loss.backward()
    check_gradients(data, case, model)
    check_statistics(data, case, model)


def check_gradients(data: Golden, case: str, model: SimMIM) -> None:
    parameters = {name: parameter.grad for name, parameter in names_of(model).items()}
    stored = data.names(f"{case}.grad.") + data.names(f"{case}.grad64.")
    assert stored
    for name in stored:
        key = f"{case}.grad64.{name}" if f"{case}.grad64.{name}" in data else f"{case}.grad.{name}"
        expected = data.tensor(key)
        own = parameters[name.replace("decoder_pred", "decoder")]
        largest = float(expected.abs().max())
        close = partial(assert_close, float64=False, what=name)
        assert own is not None
        close(own, expected, tolerance=MASK_IN_FLOAT32 * largest)
    decoder = "neck.decoder.0.weight"
    gradient = parameters[decoder]
    assert gradient is not None
    norm = data[f"{case}.gradnorm64.{decoder}"]
    assert float(gradient.norm()) == pytest.approx(float(norm), rel=MASK_IN_FLOAT32)
    rows = data.tensor(f"{case}.gradrows.{decoder}")
    step = len(gradient) // len(rows)
    own_rows = gradient[::step][: len(rows)].reshape(rows.shape)
    limit = MASK_IN_FLOAT32 * float(rows.abs().max())
    assert_close(own_rows, rows, float64=False, tolerance=limit)


def check_statistics(data: Golden, case: str, model: SimMIM) -> None:
    buffers = dict(model.backbone.named_buffers())
    for name in data.names(f"{case}.buf_after.backbone."):
        expected = data.tensor(f"{case}.buf_after.backbone.{name}")  # of a float32 run
        scale = float(expected.abs().max())
        assert_close(buffers[name], expected, float64=False, tolerance=1e-5 * scale, what=name)
