"""Steps of fine-tuning against the recipe written out, and what of a config reaches a run."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msn.data.augment import Augment, Center, seeded
from msn.evaluation.finetune import FinetuneLearner, build_model, prepare
from msn.evaluation.job import read_weights
from msn.runtime import collectives
from msn.runtime.keyed import Stream, seed64
from tests.evaluation.test_finetune import PLAIN, config, learner
from tests.support.labeled import CPU

STEPS = 20  # of an epoch of 1,297 digits in batches of 64
LABELS = torch.arange(64) % 10


def images(seed: int = 0) -> Tensor:
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def rate(step: int, warmup: float, peak: float, final: float) -> float:
    """MAE's schedule, counted in steps: a line from 0, then half a cosine to the end, 2 epochs."""
    start, end = warmup * STEPS, 2 * STEPS
    if step < start:
        return peak * step / start
    return final + (peak - final) * (1 + math.cos(math.pi * (step - start) / (end - start))) / 2


def soft(labels: Tensor, smoothing: float) -> Tensor:
    return torch.eye(10)[labels] * (1 - smoothing) + smoothing / 10


def draws_of(step: int, of: FinetuneLearner) -> Any:
    return seeded(seed64(of.seed, Stream.STEP, step, 0))


class Recipe:
    """Fine-tuning as the paper of MAE writes it down: AdamW, layer decay, clipping, average."""

    def __init__(self, of: FinetuneLearner, **settings: float) -> None:
        self.model, self.of, self.settings = copy.deepcopy(of.model).train(), of, settings
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.average]
        self.count = 0

    def step(self, step: int) -> float:
        s, of = self.settings, self.of
        self.model.zero_grad()
        with draws_of(step, of):
            seen = of.erase(images(step).clone())
            targets = soft(LABELS, s["label_smoothing"])
            if of.mix:
                seen, targets = of.mix(seen, LABELS)
            loss = -(targets * self.model(seen).log_softmax(dim=1)).sum(dim=1).mean()
        loss.backward()
        self.update(rate(step, s["warmup"], s["lr"], s["final_lr"]))
        return float(loss.detach())

    @torch.no_grad()
    def update(self, lr: float) -> None:
        s = self.settings
        self.count += 1
        named = dict(self.model.named_parameters())
        norm = torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None]).norm()
        clip = min(1.0, s["clip_grad"] / (float(norm) + 1e-6))
        for (name, p), (m, v), average in zip(
            named.items(), self.moments, self.average, strict=True
        ):
            assert p.grad is not None
            layer = 3 if name.startswith(("norm", "head")) else 0
            if ".blocks." in name:
                layer = 1 + int(name.split(".")[2])
            own = lr * s["layer_decay"] ** (3 - layer)
            decayed = p.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))
            grad = p.grad * clip
            m.mul_(0.9).add_(grad, alpha=0.1)
            v.mul_(0.999).add_(grad**2, alpha=0.001)
            move = m / (1 - 0.9**self.count)
            move /= (v / (1 - 0.999**self.count)).sqrt() + 1e-8
            p.sub_(own * (move + s["weight_decay"] * decayed * p))
            average += (1 - s["ema"]) * (p - average)


SETTINGS = {
    "lr": 3e-3,
    "final_lr": 1e-3,
    "warmup": 0.2,
    "layer_decay": 0.7,
    "weight_decay": 0.3,
    "clip_grad": 0.5,
    "ema": 0.8,
}


@pytest.mark.parametrize(
    "random", [{}, {"criterion__mixup": 0.8, "data__erasing": 1.0, "meta__drop_path_rate": 0.5}]
)
def test_steps_are_those_of_the_recipe(
    weights: Path, tmp_path: Path, random: dict[str, Any]
) -> None:
    """Before and after the warm-up; parts that are random draw what the step is keyed to."""
    optimization = {f"optimization__{key}": value for key, value in SETTINGS.items()}
    chosen = {**PLAIN, **optimization, "optimization__accumulate": 1, **random}
    own = learner(weights, tmp_path, criterion__label_smoothing=0.2, **chosen)
    recipe = Recipe(own, **SETTINGS, label_smoothing=0.2)
    for step in (0, 3, 17, 38):
        losses = own.train_step(images(step), LABELS, step)
        assert float(losses[0]) == pytest.approx(recipe.step(step), abs=1e-5)
    assert own.average is not None
    for mine, other in (
        (own.model.parameters(), recipe.model.parameters()),
        (own.average.module.parameters(), recipe.average),
    ):
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


def test_processes_draw_each_its_own(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for rank in (0, 0, 1):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        own = learner(weights, tmp_path, data__erasing=1.0)
        losses.append(float(own.train_step(images(), LABELS, 3)))
    assert losses[0] == losses[1] != losses[2]


def test_a_gradient_that_is_not_finite_changes_nothing(weights: Path, tmp_path: Path) -> None:
    own = learner(weights, tmp_path, **PLAIN)
    own.train_step(images(), LABELS, 1)
    before = [parameter.clone() for parameter in own.model.parameters()]
    own.model.head.weight.register_hook(lambda grad: grad * torch.inf)
    assert not own.train_step(images(), LABELS, 2).isfinite().any()
    for parameter, value in zip(own.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_nothing_is_random_in_what_is_measured(weights: Path, tmp_path: Path) -> None:
    own = learner(weights, tmp_path, optimization__ema=None, meta__drop_path_rate=0.9)
    for step in range(3):
        own.train_step(images(), LABELS, step)
    assert torch.equal(own.logits(images()), own.logits(images()))


def test_the_config_reaches_the_run(weights: Path, tmp_path: Path) -> None:
    """The views, the mix and the model are those that it asks for."""
    chosen = config(
        weights, tmp_path,
        data__crop_scale=[0.5, 0.7], data__flip=0.3, data__crop_pct=0.9,
        data__interpolation="bilinear", criterion__mixup=0.3, criterion__cutmix=0.6,
        criterion__switch_prob=0.4, criterion__label_smoothing=0.2,
        meta__seed=5, meta__pool="patches", meta__drop_path_rate=0.4,
    )  # fmt: skip
    job, own = prepare(chosen, CPU)
    assert own.mix
    assert job.train_view == Augment(8, (0.5, 0.7), 0.3, "rand-m1-n1", "bilinear", 5)
    assert job.val_view == Center(8, 0.9, "bilinear")
    assert (job.batch_size, job.steps_per_epoch, job.total_steps) == (64, STEPS, 2 * STEPS)
    assert (own.mix.mixup_alpha, own.mix.cutmix_alpha, own.mix.switch_prob) == (0.3, 0.6, 0.4)
    assert own.mix.label_smoothing == 0.2
    assert own.model.pool == "patches"
    blocks: Any = own.model.encoder.blocks
    assert [block.drop_path1.drop_prob for block in blocks] == [0.0, 0.4]


def test_the_head_is_drawn_from_the_seed(weights: Path, tmp_path: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        chosen = config(weights, tmp_path, meta__seed=seed)
        torch.rand(3)  # of the global generator, which is not to matter
        heads.append(build_model(chosen, read_weights(chosen), 10).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("key", ["checkpoint_activations", "compile"])
def test_blocks_that_are_recomputed_or_compiled_change_no_value(
    weights: Path, tmp_path: Path, key: str
) -> None:
    if key == "compile" and not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    plain, other = (
        prepare(config(weights, tmp_path, **PLAIN, **{f"meta__{key}": on}), CPU)[1]
        for on in (False, True)
    )
    assert plain.model.state_dict().keys() == other.model.state_dict().keys()
    for step in range(1, 3):
        losses = [each.train_step(images(step), LABELS, step) for each in (plain, other)]
        torch.testing.assert_close(*losses)
    block = other.model.encoder.stages()[1]
    assert (block._compiled_call_impl is not None) == (key == "compile")
    assert other.model.encoder._recompute == (key == "checkpoint_activations")
    torch.testing.assert_close(plain.logits(images()), other.logits(images()))
