"""SimMIM's ViT-B/16 as the official code builds it: names, shapes, groups and first values."""

from typing import Any

import pytest
import torch

from msn.config.sizes import ENCODERS
from msn.methods.simmim import SimMIM
from msn.models.beit import Beit
from msn.models.mask_token import MaskToken
from tests.golden.record import SIMMIM, golden_json
from tests.golden.simmim_models import official_names

RECORD: dict[str, Any] = golden_json("models.json", SIMMIM)["pretrain_vit_base"]


def built() -> SimMIM:
    encoder = Beit(ENCODERS["deit_base"], image_size=224, drop_path_rate=0.1)
    return SimMIM(encoder, MaskToken(encoder))


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        own = official_names(built())
    shapes = {name: list(parameter.shape) for name, parameter in own.items()}
    # The index of relative positions is computed, not kept.
    index = "encoder.rel_pos_bias.relative_position_index"
    recorded = {name: shape for name, (_, shape) in RECORD["state_dict"].items() if name != index}
    assert shapes == recorded
    assert len(own) == RECORD["n_tensors"]
    assert sum(parameter.numel() for parameter in own.values()) == RECORD["n_params"]


def test_groups() -> None:
    with torch.device("meta"):
        model = built()
    names = {id(parameter): name for name, parameter in official_names(model).items()}
    for own, recorded in zip(model.parameter_groups(), RECORD["groups"], strict=True):
        assert {names[id(parameter)] for parameter in own["params"]} == set(recorded["params"])
        assert own["decayed"] == bool(recorded["weight_decay"])


@pytest.mark.slow
def test_first_values() -> None:
    torch.manual_seed(1)
    for name, parameter in official_names(built()).items():
        recorded, values = RECORD["init"][name], parameter.detach().double()
        noise = 5 * max(recorded["std"], 1e-7) / values.numel() ** 0.5  # five standard errors
        assert float(values.mean()) == pytest.approx(recorded["mean"], abs=2 * noise), name
        if recorded["std"] > 1e-6:
            deviation = float(values.std())
            assert deviation == pytest.approx(recorded["std"], abs=2 * noise), name
            assert float(values.abs().max()) == pytest.approx(recorded["absmax"], rel=0.02), name
