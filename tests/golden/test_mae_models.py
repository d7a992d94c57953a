"""MAE's models as the official code builds them: names, shapes, groups and first values."""

from typing import Any

import pytest
import torch
from torch import Tensor

from msn.config.kinds import MAEConfig
from msn.config.sizes import ENCODERS, EncoderSize
from msn.evaluation.finetune import build_optimizer
from msn.methods.mae import MAE
from msn.models.classifier import Classifier
from msn.models.vit import build_encoder
from tests.golden.mae_models import join
from tests.golden.record import MAE as FOLDER
from tests.golden.record import golden_json

MODELS: dict[str, Any] = golden_json("models.json", FOLDER)
PRETRAINED = [name for name in MODELS if name.startswith("mae_")]
CLASSIFIERS = [name for name in MODELS if name.startswith("vit_")]
INIT: dict[str, Any] = golden_json("init_stats.json", FOLDER)


def built(name: str) -> MAE:
    """A model of recorded sizes, built by way of a config."""
    sizes = MODELS[name]["config"]
    keys = {"patch_size": "patch", "embed_dim": "dim", "depth": "depth", "num_heads": "heads"}
    decoder = {"decoder_dim": "dec_dim", "decoder_depth": "dec_depth", "decoder_heads": "dec_heads"}
    config = MAEConfig.model_validate(
        {
            "data": {"source": "digits", "image_size": sizes["img"]},
            "criterion": {own: sizes[official] for own, official in decoder.items()},
            "meta": {"encoder": {own: sizes[official] for own, official in keys.items()}},
            "logging": {"folder": "unused"},
        }
    )
    return MAE.build(config, 3, 1)


def official(model: MAE) -> dict[str, Tensor]:
    return join(dict(model.backbone.named_parameters()), dict(model.decoder.named_parameters()))


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained(name: str) -> None:
    record = MODELS[name]
    with torch.device("meta"):
        model = built(name)
    own = official(model)
    assert {key: list(own[key].shape) for key in record["params"]} == record["params"]
    assert {key for key, value in own.items() if not value.requires_grad} == set(record["frozen"])
    assert len(own) == record["n_keys"]
    assert len(model.state_dict()) == record["n_keys"]
    assert len(model.backbone.state_dict()) == record["n_encoder_keys"]
    sizes = {key: value.numel() for key, value in own.items()}
    assert sum(sizes.values()) == record["n_total"]
    assert sum(n for key, n in sizes.items() if own[key].requires_grad) == record["n_trainable"]
    assert sum(value.numel() for value in model.backbone.parameters()) == record["n_encoder"]
    assert model.backbone.norm.eps == model.decoder.norm.eps == record["config"]["norm_eps"]


@pytest.mark.parametrize(
    "name", [name for name in PRETRAINED if isinstance(MODELS[name]["weight_decay_groups"], dict)]
)
def test_what_is_decayed(name: str) -> None:
    with torch.device("meta"):
        model = built(name)
    names = {id(parameter): key for key, parameter in official(model).items()}
    decayed, others = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in model.parameter_groups()
    )
    groups = {key: set(value) for key, value in MODELS[name]["weight_decay_groups"].items()}
    assert groups.pop("no_decay") == others
    assert list(groups.values()) == [decayed]


def classifier_of(pool: str, drop_path_rate: float = 0.0) -> tuple[Classifier, dict[str, str]]:
    """ViT-B/16 with a classifier, and the official names of its parameters."""
    with torch.device("meta"):
        encoder = build_encoder(ENCODERS["deit_base"])
        model = Classifier(encoder, 1000, pool=pool, drop_path_rate=drop_path_rate)
    norm = "norm." if pool == "cls" else "fc_norm."
    return model, {
        name: norm + name[5:] if name.startswith("norm.") else name.removeprefix("encoder.")
        for name, _ in model.named_parameters()
    }


def pool_of(name: str) -> str:
    return "patches" if "global_pool" in name else "cls"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name: str) -> None:
    record = MODELS[name]
    rates = record["drop_path_per_block"]
    model, names = classifier_of(pool_of(name), rates[-1])
    shapes = {names[own]: list(p.shape) for own, p in model.named_parameters()}
    assert shapes == record["params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == record["n_total"]
    assert record["all_trainable"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    blocks: Any = model.encoder.blocks
    assert [block.drop_path2.drop_prob for block in blocks] == pytest.approx(rates, rel=1e-6)


LAYER_DECAY: dict[str, Any] = golden_json("layer_decay.json", FOLDER)


@pytest.mark.parametrize("name", LAYER_DECAY)
def test_layer_decay(name: str) -> None:
    record = LAYER_DECAY[name]
    model, names = classifier_of(pool_of(name))
    decay = float(name.rsplit(".ld", 1)[1])
    optimizer = build_optimizer(model, weight_decay=0.05, layer_decay=decay)
    official_names = {id(p): names[own] for own, p in model.named_parameters()}
    own = [
        (
            pytest.approx(group["lr_scale"], rel=1e-12),
            group["weight_decay"],
            {official_names[id(parameter)] for parameter in group["params"]},
        )
        for group in optimizer.param_groups
    ]
    recorded = [
        (group["lr_scale"], group["weight_decay"], set(group["names"]))
        for group in record["groups"]
    ]
    assert len(own) == len(recorded)
    for group in recorded:
        assert group in own
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        ((0.9, 0.999), 1e-8)
    }


def assert_same_law(values: Tensor, record: dict[str, Any], name: str) -> None:
    """Moments agree within five standard errors of either draw; bounds are kept and reached."""
    own, count = values.detach().double().flatten(), values.numel()
    assert list(values.shape) == record["shape"]
    spread = record["std"]
    slack = 5 * 2**0.5 * max(spread, 1e-12) / count**0.5
    assert float(own.mean()) == pytest.approx(record["mean"], abs=slack), name
    assert float(own.std(correction=0)) == pytest.approx(spread, abs=slack), name
    if record["kurtosis"] is None or not spread:
        assert (float(own.min()), float(own.max())) == (record["min"], record["max"]), name
        return
    kurtosis = float((own - own.mean()).pow(4).mean() / own.var(correction=0) ** 2)
    assert kurtosis == pytest.approx(record["kurtosis"], abs=5 * 2**0.5 * 5 / count**0.5), name
    if "bound" in record:
        assert float(own.abs().max()) <= record["bound"] * (1 + 1e-6), name
        assert float(own.abs().max()) >= record["bound"] * (1 - 30 / count), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in INIT if name.startswith("mae_")])
def test_first_values(name: str) -> None:
    torch.manual_seed(1)
    own = official(built(name))
    for key, record in INIT[name].items():
        assert_same_law(own[key], record, key)


def test_first_values_of_a_classifier() -> None:
    """Encoder and norm come from pre-training or are ones and zeros: the head alone is drawn."""
    (record,) = (record for name, record in INIT.items() if name.startswith("vit_"))
    torch.manual_seed(1)
    encoder = build_encoder(EncoderSize(16, record["head.weight"]["shape"][1], 0, 1))
    model = Classifier(encoder, record["head.weight"]["shape"][0], pool="patches")
    for name in ("head.weight", "head.bias"):
        assert_same_law(model.get_parameter(name), record[name], name)
    for name in ("weight", "bias"):
        assert_same_law(model.get_parameter(f"norm.{name}"), record[f"fc_norm.{name}"], name)
