"""SimMIM's ViT-B/16 for fine-tuning: names, shapes, and the learning rate of each layer."""

from typing import Any

import pytest
import torch

from msn.config.sizes import ENCODERS
from msn.evaluation.finetune import build_optimizer
from msn.models.beit import Beit
from msn.models.classifier import Classifier
from tests.golden.record import SIMMIM, assert_close, golden_json
from tests.golden.simmim_models import golden, vit_of

RECORD: dict[str, Any] = golden_json("models.json", SIMMIM)["finetune_vit_base"]


def official_name(name: str) -> str:
    return f"fc_{name}" if name.startswith("norm.") else name.removeprefix("encoder.")


@pytest.fixture(scope="module")
def model() -> Classifier:
    with torch.device("meta"):
        encoder = Beit(ENCODERS["deit_base"], image_size=224)
        return Classifier(encoder, 1000, pool="patches", drop_path_rate=0.1)


def test_names_and_shapes(model: Classifier) -> None:
    own = {official_name(name): list(p.shape) for name, p in model.named_parameters()}
    # The index of relative positions is computed, not kept.
    assert own == {
        name: shape
        for name, (_, shape) in RECORD["state_dict"].items()
        if not name.endswith("relative_position_index")
    }
    assert len(own) == RECORD["n_tensors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == RECORD["n_params"]


def test_groups(model: Classifier) -> None:
    recorded = {name: group for group in RECORD["groups"] for name in group["params"]}
    names = {id(p): official_name(name) for name, p in model.named_parameters()}
    decay = recorded["blocks.0.norm1.weight"]["lr_scale"] / recorded["cls_token"]["lr_scale"]
    optimizer = build_optimizer(model, weight_decay=0.05, layer_decay=1 / decay)
    assert len(optimizer.param_groups) == len(RECORD["groups"])
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            expected = recorded.pop(names[id(parameter)])
            assert group["lr_scale"] == pytest.approx(expected["lr_scale"], rel=1e-9)
            assert group["weight_decay"] == expected["weight_decay"]
    assert not recorded


@pytest.mark.parametrize("name", ["vit_shared.npz", "vit_meanpool_nobias.npz"])
def test_blocks_with_biases_of_their_own_compute_the_same(name: str) -> None:
    """With a shared table, or one beside those of the blocks; also at another size."""
    data = golden(name)
    encoder = vit_of(data.meta["config"]).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = data.tensor("x", torch.float64)
    side = data.meta["config"]["patch_size"]
    for seen in (images, images[..., side:, side:]):
        before = encoder.tokens(seen)
        unshared = vit_of(data.meta["config"]).double()
        unshared.load_state_dict(encoder.state_dict())
        unshared.unshare()
        assert unshared.rel_pos_bias is None
        assert_close(unshared.tokens(seen), before.detach(), float64=True)
    encoder.tokens(images).square().sum().backward()
    unshared.tokens(images).square().sum().backward()
    tables = [block.attn.relative_position_bias_table.grad for block in unshared.blocks]
    assert encoder.rel_pos_bias is not None
    shared = encoder.rel_pos_bias.relative_position_bias_table.grad
    assert shared is not None
    assert_close(sum(tables), shared, float64=True)
    assert not torch.equal(tables[0], tables[1])
