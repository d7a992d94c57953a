"""A run means the same on any number of processes: that of the global batch."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msn.config.load import load_config
from msn.data.bad_images import BadImages
from msn.data.image import BadImage
from msn.data.loader import training_batches
from msn.data.order import Order
from msn.methods.msn.losses import log_mean, log_sinkhorn
from msn.methods.optim import build_optimizer
from msn.models.batch_norm import BatchNorm
from msn.runtime import collectives
from msn.runtime.errors import RunError
from msn.train.build import build_parts
from msn.train.pretraining import batches
from msn.train.step import train_step
from tests.support.experiments import msn_of, tiny_config
from tests.support.processes import run_on
from tests.train.test_pretraining import ROOT

pytestmark = pytest.mark.processes

STEPS = 5


def train(folder: Path, dtype: torch.dtype, changes: dict[str, Any]) -> dict[str, Any]:
    """Five steps from the start: weights, running statistics, metrics of each step."""
    config = tiny_config(
        folder, criterion__batch_size=None, criterion__global_batch_size=32, **changes
    )
    parts = build_parts(config, torch.device("cpu"))
    parts.model.to(dtype)
    optimizer = build_optimizer(parts.model.parameter_groups())
    parts = replace(parts, optimizer=optimizer).replicated()
    metrics, norms = [], []
    for step, batch in zip(range(STEPS), batches(config, parts, 0), strict=False):
        views = batch.views.normalized(parts.mean.to(dtype), parts.std.to(dtype))
        result = train_step(parts, views, step)
        metrics.append(torch.stack(list(parts.model.metrics(result.output).values())))
        norms.append(result.grad_norm)
    return {
        "weights": parts.model.state_dict(),
        "metrics": torch.stack(metrics),
        "norms": torch.stack(norms),
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance", "scope", "others"),
    [
        (torch.float64, 1e-9, "global", (2, 4)),
        (torch.float64, 1e-9, "image", (2,)),
        (torch.float32, 1e-5, "global", (2, 4)),
    ],
    ids=["f64", "f64-image", "f32"],
)
def test_the_same_global_batch_on_1_2_and_4_processes(
    tmp_path: Path, dtype: torch.dtype, tolerance: float, scope: str, others: tuple[int, ...]
) -> None:
    changes = {"data__mask_scope": scope, "data__rand_views": 2}
    (alone,) = run_on(1, train, tmp_path, dtype, changes)
    for processes in others:
        together = run_on(processes, train, tmp_path, dtype, changes)
        for own in together:
            assert own["weights"].keys() == alone["weights"].keys()
            for name, value in alone["weights"].items():
                null = has_null_gradient(name)
                if null and dtype == torch.float32:
                    continue
                difference = (own["weights"][name] - value).abs().max()
                assert float(difference) < tolerance * (10 if null else 1), name
            torch.testing.assert_close(
                own["metrics"], alone["metrics"], rtol=tolerance, atol=tolerance
            )
            torch.testing.assert_close(own["norms"], alone["norms"], rtol=1e-4, atol=0)
        for own in together[1:]:  # and to the last bit with one another
            for name, value in together[0]["weights"].items():
                assert torch.equal(own["weights"][name], value), name


def quickstart_losses(steps: int) -> Tensor:
    """Losses of the quickstart as it is, but in float64."""
    config = load_config(ROOT / "configs/quickstart.yaml", ["logging.folder=unused"])
    parts = build_parts(config, torch.device("cpu"))
    parts.model.double()
    optimizer = build_optimizer(parts.model.parameter_groups())
    parts = replace(parts, optimizer=optimizer).replicated()
    losses = []
    for step, batch in zip(range(steps), batches(config, parts, 0), strict=False):
        views = batch.views.normalized(parts.mean.double(), parts.std.double())
        losses.append(train_step(parts, views, step).loss)
    return torch.stack(losses)


def test_the_quickstart_is_the_same_on_two_processes() -> None:
    """Over the end of its first epoch, of 20 steps, too."""
    (alone,) = run_on(1, quickstart_losses, 24)
    assert alone.dtype == torch.float64
    for together in run_on(2, quickstart_losses, 24):
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def has_null_gradient(name: str) -> bool:
    """Rounding noise is all the gradient there is: Adam in float32 turns it into real moves."""
    null = (".qkv.bias", ".norm.bias", "fc.fc1.bias", "fc.fc2.bias", "running_mean")
    return name.endswith(null)


def masks_and_images(folder: Path, scope: str) -> tuple[Tensor, Tensor]:
    parts = build_parts(
        tiny_config(folder, criterion__batch_size=8, data__mask_scope=scope), torch.device("cpu")
    )
    views = next(batches(tiny_config(folder, criterion__batch_size=8), parts, 0)).views
    (keep,) = msn_of(parts).draw_keep(views.normalized(parts.mean, parts.std), step=3)
    assert keep is not None
    return keep, views["target"][0]


def test_by_default_each_process_draws_its_own_masks(tmp_path: Path) -> None:
    (first, images), (second, others) = run_on(2, masks_and_images, tmp_path, "batch")
    assert not torch.equal(first, second)
    assert not torch.equal(images, others)
    (first, _), (second, _) = run_on(2, masks_and_images, tmp_path, "global")
    assert torch.equal(first, second)


def norm_of(rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Output, gradient and buffers of our BatchNorm on this process's share of the rows."""
    share = rows.chunk(collectives.world_size())[collectives.rank()].clone().requires_grad_()
    norm = BatchNorm(rows.shape[1]).to(rows.dtype)
    with torch.no_grad():
        norm.weight.copy_(weights)
    output = norm(share)
    # Weighted by position in the whole batch, so that no two rows are alike.
    positions = torch.arange(len(rows), dtype=rows.dtype).chunk(collectives.world_size())
    (output.square() * positions[collectives.rank()][:, None]).sum().backward()
    assert share.grad is not None
    assert norm.weight.grad is not None
    buffers = dict(norm.named_buffers())
    return {
        "output": output.detach(),
        "gradient": share.grad,
        "weight": collectives.mean(norm.weight.grad) * collectives.world_size(),
        "mean": buffers["running_mean"],
        "var": buffers["running_var"],
        "count": buffers["num_batches_tracked"],
        "evaluated": norm.eval()(share).detach(),
    }


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_batch_norm_is_that_of_all_rows(offset: float) -> None:
    """Also where the mean is far larger than the spread."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 5, generator=generator, dtype=torch.float64) + offset
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    reference = nn.BatchNorm1d(5).double()
    with torch.no_grad():
        reference.weight.copy_(weights)
    whole = rows.clone().requires_grad_()
    output = reference(whole)
    (output.square() * torch.arange(12.0)[:, None]).sum().backward()
    assert whole.grad is not None
    assert reference.weight.grad is not None
    for processes in (1, 3):
        found = run_on(processes, norm_of, rows, weights)

        def joined(key: str, found: list[dict[str, Tensor]] = found) -> Tensor:
            return torch.cat([own[key] for own in found])

        torch.testing.assert_close(joined("output"), output.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(joined("gradient"), whole.grad, rtol=1e-9, atol=1e-8)
        for own in found:
            torch.testing.assert_close(own["weight"], reference.weight.grad, rtol=1e-9, atol=1e-8)
            torch.testing.assert_close(own["mean"], reference.running_mean)
            torch.testing.assert_close(own["var"], reference.running_var)
            assert own["count"] == 1
        torch.testing.assert_close(joined("evaluated"), reference.eval()(rows).detach())
        reference.train()


def half_norm_of(rows: Tensor) -> Tensor:
    """Output of our fp32 BatchNorm for this process's share of the rows."""
    return BatchNorm(rows.shape[1])(rows.chunk(collectives.world_size())[collectives.rank()])


def test_batch_norm_takes_no_statistics_in_half_precision() -> None:
    rows = (100 + torch.randn(64, 5, generator=torch.Generator().manual_seed(0))).bfloat16()
    found = torch.cat(run_on(2, half_norm_of, rows))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), nn.BatchNorm1d(5)(rows.float()), rtol=0, atol=0.02)


def counted(folder: Path) -> tuple[int, str]:
    """Bad images that a process counts before the others' are known, and what is said then."""
    rank = collectives.rank()
    path = folder / f"{rank}.csv"
    images = BadImages(path, images=100, max_bad=0.02, start_step=0)
    images.record(0, [BadImage(name, "empty") for name in ("ab", "bc")[rank]])
    before = images.count
    with pytest.raises(RunError) as caught:
        images.exchange()
    return before, str(caught.value)


def test_bad_images_are_those_of_all_processes(tmp_path: Path) -> None:
    """Each met as many as are allowed; together they are one too many, which all say at once."""
    for rank, (before, said) in enumerate(run_on(2, counted, tmp_path)):
        assert before == 2
        assert said.startswith("3 of 100 images are bad, more than data.max_bad 0.02 allows")
        assert f"repair those listed in {tmp_path / str(rank)}.csv and by the other proc" in said


def neighbors() -> tuple[int, int]:
    together = collectives.sharing_cores()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[collectives.rank() % len(cores)]})
    return together, collectives.sharing_cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_processes_on_the_same_cores_share_them_out() -> None:
    """And SLURM may give each its own."""
    apart = 1 if len(os.sched_getaffinity(0)) > 1 else 2
    assert run_on(2, neighbors) == [(2, apart)] * 2


def balanced(log_p: Tensor) -> tuple[Tensor, Tensor]:
    share = log_p.chunk(collectives.world_size())[collectives.rank()]
    return log_sinkhorn(share, 3), log_mean(share)


def test_sinkhorn_and_mean_assignment_stay_finite_where_probabilities_underflow() -> None:
    log_p = torch.log_softmax(300 * torch.randn(8, 6, generator=torch.Generator()), dim=1)
    ((alone, alone_mean),) = run_on(1, balanced, log_p)
    assert alone_mean.min() < -110  # its exponential is zero in float32
    together = run_on(2, balanced, log_p)
    for balance in (torch.cat([own for own, _ in together]), *(m[None] for _, m in together)):
        assert balance.isfinite().all()
    torch.testing.assert_close(torch.cat([own for own, _ in together]), alone)
    torch.testing.assert_close(together[0][1], alone_mean)


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_a_global_batch_are_the_batch(tmp_path: Path, processes: int) -> None:
    parts = build_parts(tiny_config(tmp_path), torch.device("cpu"))

    def load(rank: int, size: int) -> list[Tensor]:
        order = Order(
            length=len(parts.source),
            batch_size=32 // size,
            steps_per_epoch=parts.steps_per_epoch,
            seed=0,
            rank=rank,
            world_size=size,
        )
        loader = training_batches(
            parts.source,
            parts.views,
            order,
            start_step=parts.steps_per_epoch - 1,
            stop_step=parts.steps_per_epoch + 1,  # over the end of an epoch
            num_workers=0,
        )
        return [batch.views["random"].clone() for batch in loader]

    shares = [load(rank, processes) for rank in range(processes)]
    for step, whole in enumerate(load(0, 1)):
        assert torch.equal(torch.cat([share[step] for share in shares], dim=1), whole)
