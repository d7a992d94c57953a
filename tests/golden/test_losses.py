"""The loss against the official one, and against the log-domain truth where that one breaks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from msn.methods.msn.losses import (
    LossSettings,
    MSNLosses,
    log_assignment,
    log_prior,
    log_sinkhorn,
    msn_losses,
)
from tests.golden.record import DTYPES, Golden, assert_close, golden, golden_files, natural

TABLES = [name for name in golden_files("loss_*.npz") if "combo" in golden(name)]


def run(
    record: Golden,
    dtype: torch.dtype,
    *,
    case: str = "",
    tau: float,
    sharpening: float,
    sinkhorn: bool,
    memax_weight: float,
    ent_weight: float,
    smoothing: float = 0.0,
) -> tuple[MSNLosses, Tensor, Tensor]:
    """Losses and the gradients of anchors and prototypes."""
    anchors = record.tensor(f"{case}anchors", dtype).requires_grad_()
    prototypes = record.tensor("prototypes", dtype).requires_grad_()
    losses = msn_losses(
        anchors,
        record.tensor(f"{case}targets_in", dtype),
        prototypes,
        LossSettings(
            temperature=tau,
            sinkhorn_iterations=3 if sinkhorn else 0,
            memax_weight=memax_weight,
            ent_weight=ent_weight,
            label_smoothing=smoothing,
        ),
        sharpening=sharpening,
        log_prior=log_prior(len(prototypes)),
    )
    losses.total.backward()
    assert anchors.grad is not None
    assert prototypes.grad is not None
    return losses, anchors.grad, prototypes.grad


@pytest.mark.parametrize("name", TABLES)
@DTYPES
def test_every_combination(name: str, dtype: torch.dtype) -> None:
    record = golden(name)
    float64 = dtype == torch.float64
    suffix = "64" if float64 else ""
    for w, (memax_weight, ent_weight) in enumerate(record["weights"]):
        for c, (smoothing, sharpening, sinkhorn, me_max, use_ent) in enumerate(record["combo"]):
            losses, grad_anchors, grad_prototypes = run(
                record,
                dtype,
                tau=float(record["tau"]),
                sharpening=float(sharpening),
                sinkhorn=bool(sinkhorn),
                memax_weight=float(memax_weight * me_max),
                ent_weight=float(ent_weight * use_ent),
                smoothing=float(smoothing),
            )
            targets = losses.log_targets.exp()
            results = {
                "ploss": losses.cross_entropy,
                "rloss": losses.regularizer * me_max,
                "sloss": losses.entropy * use_ent,
                "targets": targets,
                "np": torch.tensor(float(targets.argmax(dim=1).unique().numel())),
                "max_t": targets.amax(dim=1).mean(),
                "min_t": targets.amin(dim=1).mean(),
            }
            for key, value in results.items():
                check(record, key, value, record[key + suffix][c], float64)
            check(record, "total", losses.total, record["total" + suffix][w, c], float64)
            check(record, "grad_anchors", grad_anchors, record["grad_anchors"][w, c], float64)
            expected = record["grad_prototypes"][w, c]
            check(record, "grad_prototypes", grad_prototypes, expected, float64)


def check(record: Golden, key: str, value: Tensor, expected: np.ndarray, float64: bool) -> None:
    tolerance = natural(record.meta["maxabs_f32_vs_f64"].get(key, 0.0))
    # Gradients were recorded by the float32 run only: they carry its rounding.
    as_recorded = float64 and not key.startswith("grad")
    assert_close(
        value,
        np.asarray(expected),
        float64=float64,
        tolerance=0.0 if as_recorded else tolerance,
        what=key,
    )


@pytest.mark.parametrize("case", list(golden("loss_extreme.npz").meta["flags"]))
@DTYPES
def test_fragile_cases_are_finite_and_true(case: str, dtype: torch.dtype) -> None:
    record = golden("loss_extreme.npz")
    tau, sharpening, sinkhorn = record[f"{case}.tau_T_sink"].tolist()
    losses, grad_anchors, grad_prototypes = run(
        record,
        dtype,
        case=f"{case}.",
        tau=tau,
        sharpening=sharpening,
        sinkhorn=bool(sinkhorn),
        memax_weight=1.0,
        ent_weight=0.3,
    )
    float64 = dtype == torch.float64
    scalars = torch.stack([losses.cross_entropy, losses.regularizer, losses.entropy, losses.total])
    pairs = {
        "scalars": scalars,
        "targets": losses.log_targets.exp(),
        "grad_anchors": grad_anchors,
        "grad_prototypes": grad_prototypes,
    }
    for key, value in pairs.items():
        assert value.isfinite().all(), key
        expected = record[f"{case}.stable64.{key}"]
        # In float32 a cosine carries half an ulp, which the temperature divides.
        tolerance = 0.0 if float64 else 2.0**-24 / tau * float(np.abs(expected).max())
        assert_close(value, expected, float64=float64, tolerance=tolerance, what=f"{case} {key}")


@DTYPES
def test_sinkhorn(dtype: torch.dtype) -> None:
    record = golden("loss_pieces.npz")
    float64 = dtype == torch.float64
    for size in record.names("sinkhorn.in."):
        for key in record.names("sinkhorn.out"):
            iterations, _, recorded_size = key.partition(".")
            if recorded_size == size and iterations.endswith("_64") == float64:
                log_p = record.tensor(f"sinkhorn.in.{size}", dtype).log()
                balanced = log_sinkhorn(log_p, int(iterations.removesuffix("_64"))).exp()
                assert_close(balanced, record[f"sinkhorn.out{key}"], float64=float64, what=key)


def test_label_smoothing_matrix() -> None:
    """The official code multiplies the assignment by a smoothed identity."""
    record = golden("loss_pieces.npz")
    for smoothing in record.names("one_hot.ls"):
        matrix = record.tensor(f"one_hot.ls{smoothing}", torch.float64)
        features = torch.randn(
            7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        prototypes = torch.randn(
            len(matrix), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )
        plain = log_assignment(features, prototypes, temperature=0.1).exp()
        smoothed = log_assignment(
            features, prototypes, temperature=0.1, label_smoothing=float(smoothing)
        )
        assert float((smoothed.exp() - plain @ matrix).abs().max()) < 1e-7
        assert not math.isnan(float(smoothed.sum()))
