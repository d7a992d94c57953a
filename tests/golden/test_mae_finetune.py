"""MAE's fine-tuning: features, positions at another size, rates by layer, six whole steps."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.config.kinds import FinetuneConfig
from msn.config.sections.mae import MAEOptimization
from msn.config.sizes import EncoderSize
from msn.data.labeled import CenterCrop
from msn.evaluation.finetune import FinetuneLearner
from msn.evaluation.job import Job, build_job, read_weights
from msn.methods.schedules import mae_schedules
from msn.models.classifier import POOLS, Classifier
from msn.models.encoder import NORMED
from msn.models.vit import build_encoder
from tests.golden.mae_models import encoder_of, golden, split
from tests.golden.record import DTYPES, assert_close
from tests.support.labeled import CPU, values

OFFICIAL_NORM = {"cls": "norm.", "patches": "fc_norm."}


def own_names(tensors: dict[str, Tensor], pool: str) -> dict[str, Tensor]:
    """Name the tensors of an official classifier as `Classifier` does."""
    norm = OFFICIAL_NORM[pool]
    return {
        f"norm.{name.removeprefix(norm)}"
        if name.startswith(norm)
        else name
        if name.startswith("head.")
        else f"encoder.{name}": tensor
        for name, tensor in tensors.items()
    }


@DTYPES
@pytest.mark.parametrize("size", ["", "_other"])
@pytest.mark.parametrize("pool", OFFICIAL_NORM)
def test_features(pool: str, size: str, dtype: torch.dtype) -> None:
    """What the classifier reads, at the training's size and, with resized positions, at another."""
    data, key = golden("features.npz"), {"cls": "cls", "patches": "gap"}[pool] + size
    config = dict(data.meta["config"])
    state, _ = split(golden("forward.npz").tensors("sd."))
    if size and dtype == torch.float64:  # the original resizes positions in float32, and before
        config["img"], state["pos_embed"] = config["other_size"], data.tensor("pos_embed_other")
    encoder = encoder_of(config)
    encoder.load_state_dict(state)
    model = Classifier(encoder, config["num_classes"], pool=pool).eval()
    model.head.load_state_dict(data.tensors("head."))
    if pool == "patches":
        model.norm.load_state_dict(data.tensors("fc_norm."))
    images = data.tensor(f"imgs{size}", dtype)
    close = partial(assert_close, float64=dtype == torch.float64)
    model = model.to(dtype)
    with torch.no_grad():
        features = model.norm(model.encoder.features(images, POOLS[pool]))
        logits = model(images)
    for name, own in (("feat", features), ("logits", logits)):
        limit = data.meta["maxabs_f32_vs_f64"][f"{name}_{key}"][0]
        close(own, data[f"{name}_{key}64"], tolerance=limit, what=name)


def test_frozen_features() -> None:
    """The class token behind the final norm is also what the linear probe reads."""
    data = golden("features.npz")
    encoder = encoder_of(data.meta["config"])
    encoder.load_state_dict(split(golden("forward.npz").tensors("sd."))[0])
    own = encoder.double().eval().features(data.tensor("imgs", torch.float64), NORMED)
    assert_close(own, data["feat_cls64"], float64=True)
    positions = encoder.float().resized_pos_embed(*encoder.grid(*data["imgs_other"].shape[-2:]))
    assert_close(positions, data["pos_embed_other"], float64=False, tolerance=5e-6)


@DTYPES
@pytest.mark.parametrize("case", golden("posinterp.npz").names("pos_in."))
def test_positions_at_another_size(case: str, dtype: torch.dtype) -> None:
    data = golden("posinterp.npz")
    given, size = data.tensor(f"pos_in.{case}", dtype), int(data[f"grid_in.{case}"])
    encoder = build_encoder(EncoderSize(1, given.shape[-1], 0, 1), image_size=size).to(dtype)
    encoder.pos_embed.data = given
    side = int(data[f"grid_out.{case}"])
    limit = data.meta["maxabs_f32_vs_f64"][f"pos_out.{case}"][0]
    assert_close(
        encoder.resized_pos_embed(side, side),
        data[f"pos_out64.{case}"],
        float64=dtype == torch.float64,
        tolerance=limit,
    )


def job_of(config: FinetuneConfig, classes: int, steps_per_epoch: int, epochs: int) -> Job:
    """The digits' job, with other counts."""
    job = build_job(
        config,
        read_weights(config),
        train_view=CenterCrop(8),
        val_view=CenterCrop(8),
        batch_size=1,
        epochs=1,
        device=CPU,
    )
    total = steps_per_epoch * epochs
    return replace(job, classes=classes, steps_per_epoch=steps_per_epoch, total_steps=total)


def config_of(weights: Path, folder: Path, recorded: dict[str, Any]) -> FinetuneConfig:
    """The recorded recipe, without what is random."""
    keys = {
        "epochs": "epochs",
        "lr": "lr",
        "final_lr": "min_lr",
        "warmup": "warmup_epochs",
        "layer_decay": "layer_decay",
        "weight_decay": "weight_decay",
    }
    optimization = {
        f"optimization__{own}": recorded[official]
        for own, official in keys.items()
        if official in recorded
    }
    chosen = {
        "criterion__mixup": 0.0,
        "criterion__cutmix": 0.0,
        "criterion__label_smoothing": recorded.get("smoothing", 0.0),
        "data__erasing": 0.0,
        "meta__drop_path_rate": 0.0,
        "meta__pool": "patches",
    }
    return FinetuneConfig.model_validate(values(weights, folder, **chosen, **optimization))


@DTYPES
def test_six_steps(weights: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    data, float64 = golden("finetune_steps.npz"), dtype == torch.float64
    recorded, limits = data.meta["config"], data.meta["maxabs_f32_vs_f64"]
    config = config_of(weights, tmp_path, recorded)
    encoder = encoder_of(recorded).requires_grad_(True)
    model = Classifier(encoder, recorded["num_classes"], pool="patches")
    model.load_state_dict(own_names(data.tensors("sd."), "patches"))
    job = job_of(
        config, recorded["num_classes"], recorded["iterations_per_epoch"], recorded["epochs"]
    )
    learner = FinetuneLearner(config, model.to(dtype), job)
    images, labels = data.tensor("imgs", dtype), data.tensor("labels")
    for step, expected in enumerate(data["loss64"]):
        loss = learner.train_step(images[step], labels[step], step)[0]
        close = partial(assert_close, float64=float64, what=f"step {step}")
        close(loss, torch.tensor(expected), tolerance=limits["loss"][0])
        grads = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
        if float64:
            close(grads.norm(), torch.tensor(data["grad_norm64"][step]))
        own = {
            (round(group["lr_scale"], 12), group["weight_decay"]): group["lr"]
            for group in learner.optimizer.param_groups
        }
        for group, rate in zip(data.meta["groups"], data["lr_groups"][step], strict=True):
            key = (round(group["lr_scale"], 12), group["weight_decay"])
            assert own[key] == pytest.approx(rate, rel=1e-12, abs=1e-20)
    final = own_names(data.tensors("final64."), "patches")
    assert final.keys() == dict(model.named_parameters()).keys()
    official = dict(zip(final, data.names("final64."), strict=True))
    for name, parameter in model.named_parameters():
        limit = limits[f"final.{official[name]}"][0]
        assert_close(parameter, final[name], float64=float64, tolerance=limit, what=name)


RATES = golden("lr_sched.npz")


@pytest.mark.parametrize("recipe", [name for name in RATES.meta["config"] if "pre" in name])
def test_rates_of_pre_training(recipe: str) -> None:
    recorded = RATES.meta["config"][recipe]
    opt = MAEOptimization(
        epochs=recorded["epochs"],
        warmup=recorded["warmup_epochs"],
        lr=recorded["lr"],
        final_lr=recorded["min_lr"],
    )
    rate = mae_schedules(opt, recorded["iterations_per_epoch"], 1.0).learning_rate
    # Read at the step that comes next.
    own = [rate(step + 1) for step in RATES[f"iteration.{recipe}"].tolist()]
    assert own == pytest.approx(RATES[f"lr.{recipe}"].tolist(), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("recipe", [name for name in RATES.meta["config"] if "ft" in name])
def test_rates_of_fine_tuning(recipe: str, weights: Path, tmp_path: Path) -> None:
    recorded = RATES.meta["config"][recipe]
    config = config_of(weights, tmp_path, recorded)
    model = Classifier(read_weights(config).trainable(), 10)
    job = job_of(config, 10, recorded["iterations_per_epoch"], recorded["epochs"])
    learner = FinetuneLearner(config, model, job)
    own = [learner.learning_rate(step) for step in RATES[f"iteration.{recipe}"].tolist()]
    assert own == pytest.approx(RATES[f"lr.{recipe}"].tolist(), rel=1e-9, abs=1e-18)
    # A layer's rate is a share of it, that of the end included.
    scaled = [0.25 * rate for rate in own]
    assert scaled == pytest.approx(RATES[f"lr_scaled.{recipe}"].tolist(), rel=1e-9, abs=1e-18)
