"""Every official constructor: names and shapes of its state, and which parameters are decayed."""

import hashlib
from typing import Any

import pytest
import torch
from torch import nn

from msn.config.sizes import ENCODERS
from msn.methods.msn.build import parameter_groups
from msn.models.head import projection_head
from msn.models.vit import ConvEmbed, VisionTransformer, build_encoder
from tests.golden.record import golden_json

MODELS: dict[str, Any] = {
    name: record for name, record in golden_json("models.json").items() if name != "_doc"
}
GROUPS: dict[str, Any] = {
    name: record for name, record in golden_json("param_groups.json").items() if name in ENCODERS
}


def test_all_constructors_are_there() -> None:
    assert ENCODERS.keys() == MODELS.keys() | {"deit_huge_p14"}  # of MAE


@pytest.mark.parametrize("name", MODELS)
def test_state_dict(name: str) -> None:
    record = MODELS[name]
    with torch.device("meta"):
        model = build_encoder(ENCODERS[name])
    state = model.state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    for key, shape in [*record["non_block_keys"], *record["block0_keys"]]:
        assert shapes[key] == shape
    listing = "\n".join(f"{key}:{','.join(map(str, shape))}" for key, shape in shapes.items())
    assert hashlib.sha256(listing.encode()).hexdigest() == record["sha256_of_listing"]
    assert len(state) == record["n_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == record["params_total"]


@pytest.mark.parametrize("name", MODELS)
def test_sizes_that_shapes_do_not_show(name: str) -> None:
    record = MODELS[name]
    with torch.device("meta"):
        model = build_encoder(ENCODERS[name])
    block = model.blocks[0]
    assert block.attn.num_heads == record["heads"]
    assert block.attn.scale == pytest.approx(record["attn_scale"])
    assert block.norm1.eps == model.norm.eps == record["norm_eps"]
    rows, columns = model.patch_embed.grid(224, 224)
    assert rows * columns == record["num_patches_224"]
    if record["stem"]:
        own = [str(layer).replace(", bias=True", "") for layer in stem_layers(model)]
        assert own == [text.replace(", bias=True", "") for text in record["stem"]]


def stem_layers(model: VisionTransformer) -> nn.Sequential:
    assert isinstance(model.patch_embed, ConvEmbed)
    return model.patch_embed.stem


@pytest.mark.parametrize("name", GROUPS)
def test_parameter_groups(name: str) -> None:
    record = GROUPS[name]
    size = ENCODERS[name]
    with torch.device("meta"):
        # The official head of vitc_4gf does not fit its encoder; ours is sized from the encoder.
        head = projection_head(record["fc1_in_features"], 2048, 256, batch_norm=True)
        model = build_encoder(size, head=head)
        prototypes = nn.Parameter(torch.empty(1024, 256))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    names[id(prototypes)] = "PROTOTYPES"
    groups = parameter_groups(model, prototypes)
    assert len(groups) == len(record["groups"])
    for own, official in zip(groups, record["groups"], strict=True):
        assert [names[id(parameter)] for parameter in own["params"]] == official["params"]
        assert own["decayed"] is not official["WD_exclude"]
        assert sum(parameter.numel() for parameter in own["params"]) == official["numel"]
