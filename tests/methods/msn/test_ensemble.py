"""Several heads against plain loops; what learns, follows, and is saved."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import msn
from msn.methods.msn.ensemble import EnsembleMSN, ensemble_losses
from msn.methods.msn.losses import LossSettings, log_prior, msn_losses
from msn.runtime import checkpoint
from msn.train.step import train_step
from tests.reference import loss as naive
from tests.support.experiments import batches, msn_of, tiny_config, tiny_parts

SETTINGS = LossSettings(
    temperature=0.4, sinkhorn_iterations=2, memax_weight=0.7, ent_weight=0.3,
    ensemble_temperature=0.2,
)  # fmt: skip
IMAGES, VIEWS, PROTOTYPES, WIDTH, SHARPENING = 5, 2, 4, 3, 0.5


def draw(heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = [IMAGES * VIEWS, IMAGES, PROTOTYPES]
    rows = torch.randn(heads, sum(sizes), WIDTH, dtype=torch.float64, generator=generator)
    return [tuple(each.split(sizes)) for each in rows]


def loop(heads: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """The loss of the heads as it is written down, over plain probabilities."""
    tau = SETTINGS.temperature
    p, t = [], []
    for anchors, targets, prototypes in (tuple(map(Tensor.tolist, head)) for head in heads):
        p.append([naive.assignment(row, prototypes, tau) for row in anchors])
        rough = [naive.sharpen(naive.assignment(row, prototypes, tau), SHARPENING)
                 for row in targets]  # fmt: skip
        t.append(naive.sinkhorn(rough, SETTINGS.sinkhorn_iterations))
    total = 0.0
    for image in range(IMAGES):
        doubts = [-sum(q * math.log(q) for q in head[image]) for head in t]
        scores = [math.exp(-doubt / SETTINGS.ensemble_temperature) for doubt in doubts]
        for head, score in enumerate(scores):
            for view in range(VIEWS):
                row = p[head][view * IMAGES + image]
                loss = -sum(q * math.log(v) for q, v in zip(t[head][image], row, strict=True))
                total += score / sum(scores) * loss / (IMAGES * VIEWS)
    for rows in p:
        mean = [sum(row[k] for row in rows) / len(rows) for k in range(PROTOTYPES)]
        divergence = sum(m * math.log(m * PROTOTYPES) for m in mean)
        entropy = -sum(v * math.log(v) for row in rows for v in row) / len(rows)
        total += (SETTINGS.memax_weight * divergence + SETTINGS.ent_weight * entropy) / len(p)
    return total


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_equals_the_loop(heads: int) -> None:
    found = draw(heads)
    losses = ensemble_losses(
        found, SETTINGS, sharpening=SHARPENING, log_prior=log_prior(PROTOTYPES)
    )
    assert losses.total.item() == pytest.approx(loop(found), abs=1e-12)


def test_one_head_is_plain_msn() -> None:
    (head,) = draw(1)
    prior = log_prior(PROTOTYPES, exponent=0.5)
    alone = msn_losses(*head, SETTINGS, sharpening=SHARPENING, log_prior=prior)
    found = ensemble_losses([head], SETTINGS, sharpening=SHARPENING, log_prior=prior)
    torch.testing.assert_close(found.total, alone.total, rtol=1e-12, atol=0)
    assert torch.equal(found.log_mean_assignment, alone.log_mean_assignment)


def test_all_heads_learn_and_their_targets_follow(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path, criterion__ensemble=3)
    model = msn_of(parts)
    assert isinstance(model, EnsembleMSN)
    grouped = [p for group in parts.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    before = {name: value.clone() for name, value in model.named_parameters()}
    (views,) = batches(parts, 32, 1)
    train_step(parts, views, 0)
    momentum = model.momentum(0)
    after = dict(model.named_parameters())
    for index in range(2):
        assert not torch.equal(
            after[f"members.{index}.prototypes"], before[f"members.{index}.prototypes"]
        )
        for side, value in after.items():
            if f"members.{index}.target" in side:
                anchor = after[side.replace("target", "anchor")]
                expected = momentum * before[side] + (1 - momentum) * anchor
                torch.testing.assert_close(value, expected)
                assert not value.requires_grad
                if value.ndim == 2:
                    assert not torch.equal(value, before[side])


def test_the_first_head_begins_as_that_of_plain_msn_and_no_two_alike(tmp_path: Path) -> None:
    alone, together = (
        msn_of(tiny_parts(tmp_path, criterion__ensemble=n)).state_dict() for n in (1, 2)
    )
    assert all(torch.equal(together[name], value) for name, value in alone.items())
    first, second = together["anchor.fc.fc1.weight"], together["members.0.anchor.fc1.weight"]
    assert not torch.equal(first, second)
    assert second.std().item() == pytest.approx(0.02, rel=0.2)


def test_parts_of_a_batch_give_the_loss_of_the_whole(tmp_path: Path) -> None:
    changes = {"criterion__ensemble": 2, "meta__use_bn": False}
    whole = tiny_parts(tmp_path, **changes)
    halves = tiny_parts(tmp_path, **changes, optimization__accumulate=2, criterion__batch_size=16)
    (views,) = batches(whole, 32, 1)
    losses = [train_step(each, views, 0) for each in (whole, halves)]
    torch.testing.assert_close(losses[0].loss, losses[1].loss)
    torch.testing.assert_close(losses[0].grad_norm, losses[1].grad_norm, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_its_encoder_is_read(tmp_path: Path) -> None:
    runs = [tiny_config(tmp_path / name, criterion__ensemble=2, optimization__epochs=2)
            for name in ("whole", "parts")]  # fmt: skip
    whole = msn.pretrain(runs[0], device="cpu")
    shorter = tiny_config(
        tmp_path / "parts", criterion__ensemble=2, optimization__epochs=1,
        optimization__schedule_stretch=2.5,
    )  # fmt: skip
    msn.pretrain(shorter, device="cpu")
    resumed = msn.pretrain(runs[1], device="cpu")
    states = [checkpoint.load(path) for path in (whole, resumed)]
    for key in ("encoder", "target_encoder", "ensemble"):
        for name, value in states[0][key].items():
            assert torch.equal(states[1][key][name], value), (key, name)
    notes = msn_of(tiny_parts(tmp_path, criterion__ensemble=2)).load_weights(
        checkpoint.Found(whole, {k: v for k, v in states[0].items() if k != "ensemble"})
    )
    assert "no further heads" in notes[0]
    encoder = msn.load_encoder(whole)
    assert encoder.features(torch.zeros(1, 8, 8, 1, dtype=torch.uint8)).isfinite().all()
