"""Loss, targets and gradients on 2 and 4 processes, recorded from the official code."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msn.methods.msn.losses import LossSettings, log_prior, msn_losses
from msn.runtime import collectives
from tests.golden.record import DTYPES, assert_close, golden, golden_files, natural
from tests.support.processes import run_on

pytestmark = pytest.mark.processes

FILES = golden_files("dist_ws*.npz")
MEMAX_WEIGHT, ENT_WEIGHT, TAU = 1.0, 0.3, 0.1  # from the record's description


def losses_of_all_cases(name: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """What one process computes of its rows, case by case."""
    record, rank = golden(name), collectives.rank()
    found = []
    for smoothing, sharpening, sinkhorn, me_max, entropy in record["cases"]:
        anchors = record.tensor("anchors", dtype)[rank].requires_grad_()
        prototypes = record.tensor("prototypes", dtype).requires_grad_()
        losses = msn_losses(
            anchors,
            record.tensor("targets_in", dtype)[rank],
            prototypes,
            LossSettings(
                temperature=TAU,
                sinkhorn_iterations=3 if sinkhorn else 0,
                memax_weight=MEMAX_WEIGHT * me_max,
                ent_weight=ENT_WEIGHT * entropy,
                label_smoothing=smoothing,
            ),
            sharpening=sharpening,
            log_prior=log_prior(len(prototypes)),
        )
        losses.total.backward()
        assert anchors.grad is not None
        assert prototypes.grad is not None
        found.append(
            {
                "ploss": losses.cross_entropy.detach(),
                "rloss": losses.regularizer.detach(),
                "sloss": losses.entropy.detach(),
                "targets": losses.log_targets.exp(),
                "ga": anchors.grad,
                "gp": prototypes.grad,
                "gp mean": collectives.mean(prototypes.grad),
                "total mean": collectives.mean(losses.total.detach()),
            }
        )
    return found


@pytest.mark.parametrize("name", FILES)
@DTYPES
def test_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    record = golden(name)
    float64 = dtype == torch.float64
    size, precision = len(record["anchors"]), "64" if float64 else "32"
    by_rank = run_on(size, losses_of_all_cases, name, dtype)
    noise = max(natural(case["f32_vs_f64_ga"]) for case in record.meta["relations"].values())

    def check(own: Any, expected: np.ndarray, what: str) -> None:
        assert_close(own, expected, float64=float64, tolerance=0 if float64 else noise, what=what)

    for case, (_, _, _, me_max, entropy) in enumerate(record["cases"]):
        for rank, cases in enumerate(by_rank):
            own = cases[case]
            # The official code computes the terms that it does not add as zero.
            terms = ["ploss", *["rloss"] * bool(me_max), *["sloss"] * bool(entropy)]
            for term in terms:
                check(own[term], record[f"{term}.{case}.{precision}"][rank], f"{term} {case}")
            check(own["targets"], record[f"targets.{case}.{precision}"][rank], f"targets {case}")
            check(own["targets"], record[f"global.targets.{case}"][rank], f"all targets {case}")
            # Gradients of a process, averaged over processes, are those of the global loss.
            check(own["ga"] / size, record[f"global.ga.{case}"][rank], f"global ga {case}")
            check(own["gp mean"], record[f"global.gp.{case}"], f"global gp {case}")
            if not float64:
                check(own["ga"], record[f"ga.{case}.32"][rank], f"ga {case}")
                check(own["gp"], record[f"gp_local.{case}.32"][rank], f"gp {case}")
                check(own["gp mean"] * size, record[f"gp_sum.{case}.32"][rank], f"gp_sum {case}")
