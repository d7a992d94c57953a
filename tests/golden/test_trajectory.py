"""Twelve whole training steps: losses, gradients, and where all weights and moments end up."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.config.kinds import MSNConfig
from msn.data.batch import Views
from msn.methods.msn.model import MSN, views_of
from msn.methods.optim import build_optimizer
from msn.methods.schedules import msn_schedules
from msn.train.build import Parts, build_model, build_parts
from msn.train.step import train_step
from tests.golden.record import DTYPES, Golden, assert_close, golden, golden_files, natural
from tests.support.experiments import msn_of

pytestmark = pytest.mark.slow

FILES = pytest.mark.parametrize("name", golden_files("trajectory_*.npz"))


def as_config(record: Golden) -> MSNConfig:
    model: dict[str, Any] = record.meta["model"]
    training: dict[str, Any] = record.meta["training"]
    encoder = {"patch_size": model["patch"], "embed_dim": model["dim"], "depth": model["depth"]}
    criterion_keys = ["me_max", "memax_weight", "ent_weight", "use_ent", "use_sinkhorn"]
    criterion_keys += ["start_sharpen", "final_sharpen"]
    optimization_keys = ("epochs", "warmup", "start_lr", "lr", "final_lr", "clip_grad")
    return MSNConfig.model_validate(
        {
            "criterion": {
                "batch_size": training["B"],
                "num_proto": training["K"],
                "temperature": training["tau"],
                **{key: training[key] for key in criterion_keys},
            },
            "data": {
                "source": "digits",
                "label_smoothing": training["label_smoothing"],
                "patch_drop": training["patch_drop"],
                "rand_size": training["rand"],
                "focal_size": training["focal"],
                "rand_views": training["rand_views"],
                "focal_views": training["focal_views"],
            },
            "logging": {"folder": "unused"},
            "meta": {
                "encoder": {
                    **encoder,
                    "num_heads": model["heads"],
                    "mlp_ratio": float(model.get("mlp_ratio", 4)),
                },
                "hidden_dim": model["hidden"],
                "output_dim": model["out"],
                "use_bn": model["bn"],
                "precision": "fp32",
            },
            "optimization": {
                **{key: training[key] for key in optimization_keys},
                "weight_decay": training["wd"],
                "final_weight_decay": training["final_wd"],
            },
        }
    )


def rebuild(record: Golden, dtype: torch.dtype) -> Parts:
    """The parts of a run at the recorded starting point, with the recorded masks."""
    config = as_config(record)
    steps_per_epoch = record.meta["training"]["ipe"]
    schedules = msn_schedules(config.optimization, steps_per_epoch)
    model = build_model(MSN, config, record["views0_q4"].shape[2], steps_per_epoch)
    assert isinstance(model, MSN)
    start = record.tensors("init.")
    model.anchor.load_state_dict(start)
    model.target.load_state_dict(start)
    model.prototypes.data = record.tensor("init_prototypes")
    model.to(dtype)
    kept = int((len(record["perms"][0])) * (1.0 - record.meta["training"]["patch_drop"]))
    keep = record.tensor("perms", torch.int64)[:, :kept]
    model.draw_keep = lambda views, step: [keep[step]]  # type: ignore[method-assign]
    parts = build_parts(config, torch.device("cpu"))
    optimizer = build_optimizer(model.parameter_groups())
    return replace(parts, model=model, replica=model, optimizer=optimizer, schedules=schedules)


def recorded_views(record: Golden, step: int, dtype: torch.dtype) -> Views:
    count = len(record.names("views"))
    random = record.meta["training"]["rand_views"]
    views = [torch.from_numpy(record[f"views{i}_q4"][step]).to(dtype) / 4 for i in range(count)]
    return views_of(views[0], torch.stack(views[1 : 1 + random]), torch.stack(views[1 + random :]))


def total_norm(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).norm()


def numbers(parts: Parts, step: int, views: Views, seen: dict[str, Tensor]) -> dict[str, float]:
    """One step, and what the record says of it."""
    model = msn_of(parts)
    unclipped: dict[str, float] = {}

    def note(parameter: torch.nn.Parameter, name: str) -> None:
        assert parameter.grad is not None
        unclipped[name] = float(parameter.grad.norm())

    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: note(p, name))
        for name, parameter in model.anchor.named_parameters()
    ]
    output, _, grad_norm = train_step(parts, views, step)
    for hook in hooks:
        hook.remove()
    losses, features = output.details
    targets = losses.log_targets.exp()
    seen["h"], seen["targets"] = features, targets
    assert model.prototypes.grad is not None
    matrices = {
        name: norm
        for name, norm in unclipped.items()
        if not name.endswith("bias") and model.anchor.get_parameter(name).ndim > 1
    }
    qkv = [norm for name, norm in sorted(matrices.items()) if "qkv" in name]
    return {
        "loss": float(output.loss.detach()),
        "ploss": float(losses.cross_entropy.detach()),
        "rloss": float(losses.regularizer.detach()),
        "ent": float(losses.entropy.detach()),
        "lr": parts.optimizer.param_groups[-1]["lr"],
        "wd": parts.optimizer.param_groups[0]["weight_decay"],
        "m": msn_of(parts).momentum(step),
        "T": msn_of(parts).sharpening(step),
        "grad_norm": float(grad_norm),
        "proto_grad_norm": float(model.prototypes.grad.norm()),
        "gl_first": qkv[0],
        "gl_last": qkv[-1],
        "gl_min": min(matrices.values()),
        "gl_max": max(matrices.values()),
        "gl_avg": sum(matrices.values()) / len(matrices),
        "np": float(targets.argmax(dim=1).unique().numel()),
        "max_t": float(targets.amax(dim=1).mean()),
        "min_t": float(targets.amin(dim=1).mean()),
        "enc_norm": float(total_norm(list(model.anchor.parameters()))),
        "tgt_norm": float(total_norm(list(model.target.parameters()))),
        "proto_norm": float(model.prototypes.detach().norm()),
    }


def limits_of(record: Golden, group: str) -> dict[str, Any]:
    limits: dict[str, Any] = record.meta["maxabs_f32_vs_f64"][group]
    return limits


def relative_noise(record: Golden) -> float:
    """Rounding grows from step to step: a column's own difference is a single draw of that
    noise, the largest relative difference of all columns is its size.
    """
    return max(diff / scale for diff, scale in limits_of(record, "columns").values())


def has_null_gradient(record: Golden, name: str) -> bool:
    """Weights whose gradient is rounding noise, which Adam in float32 turns into real moves."""
    batch_norm = record.meta["model"]["bn"]
    before_norm = {"norm.bias", "fc.fc1.bias", "fc.fc2.bias"} if batch_norm else set()
    return name in before_norm or name.endswith(("attn.qkv.bias", "running_mean"))


@FILES
@DTYPES
def test_twelve_steps(name: str, dtype: torch.dtype) -> None:
    record = golden(name)
    float64 = dtype == torch.float64
    parts = rebuild(record, dtype)
    noise = relative_noise(record)
    steps = record["steps64"]
    for step in range(len(steps)):
        seen: dict[str, Tensor] = {}
        own = numbers(parts, step, recorded_views(record, step, dtype), seen)
        for column, expected in zip(record.meta["columns"], steps[step], strict=True):
            assert_close(
                torch.tensor(own[column], dtype=torch.float64),
                torch.tensor(expected, dtype=torch.float64),
                float64=float64,
                tolerance=noise * limits_of(record, "columns")[column][1],
                what=f"step {step} {column}",
            )
        if float64:
            for key, value in seen.items():
                assert_close(value, record[f"{key}64"][step], float64=True, what=key)
    check_weights(record, parts, float64)
    check_moments(record, parts, float64)


def check_weights(record: Golden, parts: Parts, float64: bool) -> None:
    limits = limits_of(record, "final")
    noise = max(
        natural(limit)
        for key, limit in limits.items()
        if not has_null_gradient(record, key.removeprefix("enc.").removeprefix("tgt."))
    )
    for short, encoder in (("enc", msn_of(parts).anchor), ("tgt", msn_of(parts).target)):
        state = encoder.state_dict()
        expected = record.tensors(f"{short}64.")
        assert expected.keys() <= state.keys()
        for key, value in expected.items():
            if float64 or not has_null_gradient(record, key):
                limit = 0.0 if float64 else noise
                assert_close(state[key], value, float64=float64, tolerance=limit, what=key)
        for key in record.names(f"{short}32."):
            if key.endswith("num_batches_tracked"):
                assert state[key] == record[f"{short}32.{key}"], key
    assert_close(
        msn_of(parts).prototypes,
        record["prototypes64"],
        float64=float64,
        tolerance=noise,
        what="prototypes",
    )


def check_moments(record: Golden, parts: Parts, float64: bool) -> None:
    limits = limits_of(record, "moments")
    live = [limit for name, limit in limits.items() if not has_null_gradient(record, name)]
    noise = max(max(a / a_scale, b / b_scale) for a, a_scale, b, b_scale in live)
    parameters = dict(msn_of(parts).anchor.named_parameters()) | {
        "PROTOTYPES": msn_of(parts).prototypes
    }
    names = record.names("exp_avg64.")
    assert set(names) == parameters.keys()
    for name in names:
        if not float64 and has_null_gradient(record, name):
            continue
        state = parts.optimizer.state[parameters[name]]
        _, first, _, second = limits[name]
        for key, scale in (("exp_avg", first), ("exp_avg_sq", second)):
            expected = record.tensor(f"{key}64.{name}")
            assert_close(
                state[key],
                expected,
                float64=float64,
                tolerance=0.0 if float64 else noise * scale,
                what=f"{key} {name}",
            )
