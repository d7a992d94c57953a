"""Fine-tuning: what it learns, layer-wise rates, parts that stay frozen, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msn.cli.main import main
from msn.config.kinds import FinetuneConfig
from msn.config.load import load
from msn.config.sections.evaluation import FinetuneCriterion, FinetuneOptimization
from msn.config.sizes import EncoderSize
from msn.data.labeled import CenterCrop
from msn.evaluation.accuracy import Result
from msn.evaluation.finetune import FinetuneLearner, build_model, build_optimizer
from msn.evaluation.job import build_job, read_weights
from msn.interop.reading import read
from msn.models.beit import Beit
from msn.models.classifier import Classifier
from msn.models.encoder import NORMED
from msn.models.vit import build_encoder
from msn.runtime import checkpoint
from msn.runtime.errors import UserError
from msn.train.learning import finetune
from tests.support.labeled import CPU, ROOT, listed, values, write
from tests.support.processes import run_on
from tests.support.runs import Broken, assert_same, break_at

pytestmark = pytest.mark.slow

# Every part of the recipe, at strengths that two epochs bear.
RECIPE: dict[str, Any] = {
    "data__auto_augment": "rand-m1-n1",
    "data__erasing": 0.2,
    "data__crop_pct": 1.0,
    "criterion__mixup": 0.1,
    "criterion__cutmix": 0.1,
    "meta__drop_path_rate": 0.1,
    "optimization__lr": 5e-3,
    "optimization__warmup": 0.2,
    "optimization__ema": 0.8,
    "optimization__accumulate": 2,
    "optimization__batch_size": 32,
    "optimization__clip_grad": 1.0,
}

# What is drawn for a batch as a whole would differ between shares of it.
PLAIN: dict[str, Any] = {
    "criterion__mixup": 0.0,
    "criterion__cutmix": 0.0,
    "data__erasing": 0.0,
    "meta__drop_path_rate": 0.0,
    "optimization__clip_grad": None,
}


def config(weights: Path, folder: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig.model_validate(values(weights, folder, **{**RECIPE, **changes}))


def latest(folder: Path, name: str = "latest") -> dict[str, Any]:
    return checkpoint.load(folder / f"run-{name}.pth.tar", "classifier")


def learner(weights: Path, folder: Path, **changes: Any) -> FinetuneLearner:
    chosen = config(weights, folder, **changes)
    found = read_weights(chosen)
    view = CenterCrop(8)
    job = build_job(
        chosen, found, train_view=view, val_view=view, batch_size=64, epochs=2, device=CPU
    )
    return FinetuneLearner(chosen, build_model(chosen, found, job.classes), job)


@pytest.fixture(scope="module")
def unbroken(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run of two epochs, 40 steps."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, finetune(config(weights, folder), CPU)


def test_it_learns(unbroken: tuple[Path, Result]) -> None:
    assert unbroken[1].last["finetune"].top1 > 50


def test_resumed_it_ends_as_if_unbroken(
    unbroken: tuple[Path, Result], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the learner saves is all that it is; that a killed run resumes is a test of the loop."""
    sections = values(weights, tmp_path / "run", **RECIPE, logging__checkpoint_freq_itr=7)
    chosen = FinetuneConfig.model_validate(sections)
    with monkeypatch.context() as patched:
        break_at(patched, FinetuneLearner, 16)
        with pytest.raises(Broken):
            finetune(chosen, CPU)
    assert latest(tmp_path / "run")["step"] == 14
    finetune(chosen, CPU)
    for name in ("latest", "best"):
        assert_same(latest(tmp_path / "run", name), latest(unbroken[0], name))


def test_learning_rates_by_layer_are_those_of_mae() -> None:
    """decay ** (depth + 1 - layer); the stem is 0, block i is i + 1, norm and head the last."""
    model = Classifier(build_encoder(EncoderSize(4, 8, 3, 2), image_size=8), 5)
    optimizer = build_optimizer(model, weight_decay=0.05, layer_decay=0.5)
    found = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        layer = 4 if name.startswith(("norm", "head")) else 0
        if ".blocks." in name:
            layer = 1 + int(name.split(".")[2])
        whole = parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))
        assert found[id(parameter)] == (0.5 ** (4 - layer), 0.05 * whole), name


@pytest.mark.parametrize("pool", ["cls", "patches"])
def test_what_the_classifier_sees(pool: str) -> None:
    encoder = build_encoder(EncoderSize(4, 8, 2, 2), image_size=8)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    images = torch.randn(3, 3, 8, 8)
    tokens = encoder.embed(images)
    for block in encoder.blocks:
        tokens = block(tokens)
    cls = encoder.features(images, NORMED)
    model = Classifier(encoder, 5, pool=pool).eval()
    nn.init.normal_(model.head.weight)
    mean = nn.functional.layer_norm(tokens[:, 1:].mean(dim=1), (8,), eps=1e-6)
    expected = model.head(cls if pool == "cls" else mean)
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_the_last_block_alone(weights: Path, tmp_path: Path) -> None:
    """Partial fine-tuning: the rest of the encoder stays, and is as in evaluation."""
    partial = learner(weights, tmp_path, meta__trained_blocks=1, meta__drop_path_rate=0.9)
    before = {name: tensor.clone() for name, tensor in partial.model.state_dict().items()}
    partial.train_step(torch.randn(64, 1, 8, 8), torch.arange(64) % 10, 9)
    changed = {
        n for n, tensor in partial.model.state_dict().items() if not torch.equal(tensor, before[n])
    }
    assert {name.rsplit(".", 1)[0] for name in changed} >= {"head", "norm"}
    assert {name for name in changed if name.startswith("encoder")} <= {
        name for name in before if name.startswith("encoder.blocks.1.")
    }
    _, first, last = partial.model.encoder.stages()
    assert not first.training
    assert last.training


def test_accumulation_is_one_batch(weights: Path, tmp_path: Path) -> None:
    """Without random parts, two micro-batches give the gradient of the whole."""
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    gradients = []
    for parts in (1, 2):
        one = learner(weights, tmp_path, optimization__accumulate=parts, **PLAIN)
        one.train_step(images.clone(), labels, 5)
        gradients.append([parameter.grad for parameter in one.model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def on_several(weights: Path, folder: Path, batch_size: int, parts: int) -> Result:
    alike = {**PLAIN, "optimization__accumulate": parts, "optimization__batch_size": batch_size}
    return finetune(config(weights, folder, optimization__epochs=1, **alike), CPU)


@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_are_one_with_the_whole_batch(
    weights: Path, tmp_path: Path, parts: int
) -> None:
    """Gradients are averaged, each image is measured once, and one process writes."""
    alone = on_several(weights, tmp_path / "one", 64, 1)
    first, second = run_on(2, on_several, weights, tmp_path / "two", 32 // parts, parts)
    assert first == second
    assert first.last["finetune"] == pytest.approx(alone.last["finetune"], abs=0.41)  # two images
    one, two = latest(tmp_path / "one"), latest(tmp_path / "two")
    for part in ("classifier", "average"):
        for name, tensor in one[part].items():
            assert torch.allclose(two[part][name], tensor, atol=1e-3), name
    one_s, two_s = ({path.name for path in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one_s == two_s


def test_a_list_of_images_to_learn_from(weights: Path, tmp_path: Path) -> None:
    few = config(
        weights,
        tmp_path / "run",
        data__subset=listed(tmp_path / "list.txt", range(0, 240, 2)),
        optimization__batch_size=20,
    )
    finetune(few, CPU)
    assert latest(tmp_path / "run")["steps_per_epoch"] == 3  # of 120 images, 2 x 20 a step


def test_a_step_depends_on_its_number_alone(weights: Path, tmp_path: Path) -> None:
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10

    def loss(step: int) -> float:
        one = learner(weights, tmp_path, meta__drop_path_rate=0.5)
        torch.rand(step)
        return float(one.train_step(images.clone(), labels, step))

    # The loss of an untrained, all but zero classifier says little: compare in full precision.
    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_the_average_is_what_is_measured(weights: Path, tmp_path: Path) -> None:
    one = learner(weights, tmp_path)
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    start = one.model.head.bias.detach().clone()
    one.train_step(images.clone(), labels, 9)
    assert one.average is not None
    own = one.average.module.head.bias
    assert torch.allclose(own, 0.8 * start + 0.2 * one.model.head.bias, atol=1e-7)
    assert torch.equal(one.logits(images)[0], one.average.module.eval()(images))


@pytest.mark.parametrize(
    ("method", "asked", "pool"),
    [
        (None, None, "cls"),
        ("msn", None, "cls"),
        ("mae", None, "patches"),
        ("simmim", None, "patches"),
        ("mae", "cls", "cls"),
    ],
)
def test_the_class_token_is_read_where_it_was_trained(
    weights: Path,
    tmp_path: Path,
    said: list[str],
    method: str | None,
    asked: str | None,
    pool: str,
) -> None:
    """MAE and SimMIM have no loss on it; and what is read is kept with the classifier."""
    state = checkpoint.load(weights)
    state["config"]["meta"] |= {"method": method} if method else {}
    checkpoint.save(tmp_path / "weights.pth.tar", state)
    chosen = learner(tmp_path / "weights.pth.tar", tmp_path, meta__pool=asked)
    assert chosen.model.pool == pool
    assert any("reads the mean patch" in line for line in said) == (pool == "patches")
    assert chosen.model.get_parameter("encoder.pos_embed").requires_grad
    file = tmp_path / "finetuned.pth.tar"
    checkpoint.save(file, {**chosen.state(), "config": {}})
    if pool == "cls":
        assert read(file, num_heads=2).classifier
    else:
        with pytest.raises(UserError, match="its classifier reads averaged patches"):
            read(file, num_heads=2)


def test_a_vit_of_simmim_goes_on_from_its_state(weights: Path, tmp_path: Path) -> None:
    """Its blocks have tables of their own by then, which the pre-trained weights have not."""
    state = checkpoint.load(weights)
    encoder = Beit(EncoderSize(4, 48, 2, 2), image_size=8, in_chans=1)
    file = tmp_path / "simmim.pth.tar"
    checkpoint.save(file, {**state, "target_encoder": encoder.state_dict()})
    one, other = (learner(file, tmp_path) for _ in range(2))
    assert one.model.pool == "patches"
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    for step in (3, 4):
        one.train_step(images.clone(), labels, step)
    checkpoint.save(tmp_path / "state.pth.tar", one.state())
    loaded = checkpoint.load(tmp_path / "state.pth.tar", "classifier")
    other.load_state(checkpoint.Found(tmp_path / "state.pth.tar", loaded))
    losses = [each.train_step(images.clone(), labels, 5) for each in (one, other)]
    assert torch.equal(*losses)
    assert_same(one.state(), other.state())
    names = {f"encoder.blocks.{number}.attn.relative_position_bias_table" for number in (0, 1)}
    assert {name for name in one.state()["classifier"] if "table" in name} == names


@pytest.mark.parametrize(
    ("name", "rate", "drop_path", "pool"),
    [("vitb16", 2e-3, 0.2, "cls"), ("mae_vitb16", 2e-3, 0.1, "patches"),
     ("simmim_vitb16", 5e-3, 0.1, "patches")],
)  # fmt: skip
def test_recipes_for_imagenet(name: str, rate: float, drop_path: float, pool: str) -> None:
    """What they share is the recipe of MAE: the defaults."""
    recipe = load(FinetuneConfig, ROOT / f"configs/eval/finetune_{name}.yaml")
    optimization, defaults = recipe.optimization, FinetuneOptimization()
    assert (optimization.lr, recipe.meta.drop_path_rate, recipe.meta.pool) == (
        rate,
        drop_path,
        pool,
    )
    assert recipe.criterion == FinetuneCriterion()
    assert (recipe.criterion.mixup, recipe.criterion.cutmix) == (0.8, 1.0)
    assert recipe.data.interpolation == "bicubic"
    assert (recipe.data.auto_augment, recipe.data.erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    for key in ("epochs", "final_lr", "layer_decay", "weight_decay"):
        assert getattr(optimization, key) == getattr(defaults, key)
    simmim = name.startswith("simmim")
    assert (optimization.warmup, optimization.clip_grad) == ((20, 5) if simmim else (5, None))


WRONG = [
    (["logging.pretrain_path=/nonexistent"], "/nonexistent"),
    (["meta.model_name=deit_base"], "not of deit_base"),
    (["meta.trained_blocks=3"], "meta.trained_blocks 3 is more than the 2 blocks"),
    (["optimization.batch_size=33"], "33 is odd, but images are mixed in pairs"),
    (["optimization.warmup=9"], "optimization.warmup"),
    (["data.auto_augment=rnd-m9"], "data.auto_augment"),
    (["meta.pool=mean"], "meta.pool"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_a_wrong_request_is_one_line(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    file = write(tmp_path / "finetune.yaml", values(weights, tmp_path / "run", **RECIPE))
    assert main(["evaluate", "finetune", "--fname", str(file), *arguments]) == 2
    output = capsys.readouterr()
    assert expected in output.err
    assert len(output.err.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "run-latest.pth.tar").exists()


def test_a_step_that_is_not_finite_changes_nothing(weights: Path, tmp_path: Path) -> None:
    trained = learner(weights, tmp_path, **PLAIN)
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    assert trained.train_step(images, labels, 1).isfinite().all()
    before = [parameter.clone() for parameter in trained.model.parameters()]
    images[5, 0, 0, 0] = torch.nan
    assert not trained.train_step(images, labels, 2).isfinite().any()
    for parameter, value in zip(trained.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
