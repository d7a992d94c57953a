"""Linear evaluation by MAE's protocol; its arithmetic is compared with golden numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from msn.config.kinds import LinearConfig
from msn.config.load import load
from msn.data.labeled import RandomCrop
from msn.evaluation.accuracy import Result
from msn.evaluation.linear import LinearLearner, prepare
from msn.interop import reading
from msn.interop.classifiers import with_linear_head
from msn.models.encoder import Taps
from msn.models.linear import LinearHead
from msn.models.resnet import ResNet
from msn.runtime import checkpoint
from msn.train.learning import linear_evaluation
from tests.support.encoders import images
from tests.support.labeled import CPU, ROOT, values
from tests.support.processes import run_on
from tests.support.runs import Broken, assert_same, break_at

pytestmark = pytest.mark.slow

MAE = {
    "meta__protocol": "mae",
    "optimization__lr": [2.0, 6.0],
    "optimization__warmup": 0.5,
    "optimization__num_blocks": [1, 2],
}


def config(weights: Path, folder: Path, **changes: Any) -> LinearConfig:
    return LinearConfig.model_validate(values(weights, folder, **{**MAE, **changes}))


def latest(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "run-latest.pth.tar", "classifier")


@pytest.fixture(scope="module")
def unbroken(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run of two epochs, 40 steps, with four classifiers."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, linear_evaluation(config(weights, folder), CPU)


def test_it_learns(weights: Path, tmp_path: Path) -> None:
    """Its steps are a share of the weights: it takes a few more than SGD."""
    longer = {"optimization__epochs": 8, "optimization__lr": [6.0, 12.0]}
    result = linear_evaluation(config(weights, tmp_path, **longer), CPU)
    assert max(score.top1 for score in result.last.values()) > 60


def test_resumed_it_ends_as_if_unbroken(
    unbroken: tuple[Path, Result], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(weights, tmp_path / "run", logging__checkpoint_freq_itr=7)
    with monkeypatch.context() as patched:
        break_at(patched, LinearLearner, 24)
        with pytest.raises(Broken):
            linear_evaluation(chosen, CPU)
    assert latest(tmp_path / "run")["step"] == 21
    linear_evaluation(chosen, CPU)
    assert_same(latest(tmp_path / "run"), latest(unbroken[0]))


def test_the_state_is_all_that_it_is(weights: Path, tmp_path: Path) -> None:
    """Moments of the optimizer and running statistics; the next step tells."""
    seen, labels = torch.randn(3, 8, 1, 8, 8), torch.arange(8)
    _, one = prepare(config(weights, tmp_path), CPU)
    _, other = prepare(config(weights, tmp_path), CPU)
    for step in (3, 4):
        one.train_step(seen[step - 3], labels, step)
    checkpoint.save(tmp_path / "state.pth.tar", one.state())
    loaded = checkpoint.load(tmp_path / "state.pth.tar", "classifier")
    other.load_state(checkpoint.Found(tmp_path / "state.pth.tar", loaded))
    losses = [each.train_step(seen[2], labels, 5) for each in (one, other)]
    assert torch.equal(*losses)
    assert_same(one.state(), other.state())
    assert torch.equal(one.logits(seen[0]), other.logits(seen[0]))


def on_several(weights: Path, folder: Path, batch_size: int) -> Result:
    return linear_evaluation(config(weights, folder, optimization__batch_size=batch_size), CPU)


@pytest.mark.processes
def test_two_processes_are_one_with_the_whole_batch(
    unbroken: tuple[Path, Result], weights: Path, tmp_path: Path
) -> None:
    """Also the statistics are those of all images of a step."""
    first, second = run_on(2, on_several, weights, tmp_path, 32)
    assert first == second
    one, two = latest(unbroken[0])["classifier"], latest(tmp_path)["classifier"]
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-3), name


def test_what_the_config_asks_for(weights: Path, tmp_path: Path) -> None:
    job, learner = prepare(config(weights, tmp_path), CPU)
    assert isinstance(job.train_view, RandomCrop)
    assert job.train_view.clamp
    assert learner.taps == Taps(2, norm=True)
    plain = prepare(config(weights, tmp_path, meta__protocol="msn"), CPU)[0].train_view
    assert isinstance(plain, RandomCrop)
    assert not plain.clamp
    (note,) = config(weights, tmp_path, optimization__normalize=False).notices()
    assert note == "without effect in meta.protocol: mae: optimization.normalize"


def test_a_classifier_leaves_with_its_encoder(weights: Path, tmp_path: Path) -> None:
    """The BatchNorm becomes part of the linear layer, behind the encoder's own norm."""
    chosen = config(
        weights, tmp_path, optimization__num_blocks=[1], optimization__lr=[6.0],
        optimization__epochs=1,
    )  # fmt: skip
    linear_evaluation(chosen, CPU)
    both = with_linear_head(reading.read(weights), tmp_path / "run-latest.pth.tar")
    head = LinearHead(48, 10, normalize=False, batch_norm=True).eval()
    state = latest(tmp_path)["classifier"]
    head.load_state_dict({name.removeprefix("heads.0."): t for name, t in state.items()})
    views = images(8, batch=5, channels=1)
    assert both.classifier
    with torch.no_grad():
        features = both.build().features(views, Taps(norm=True))
        own = features @ both.classifier.weight.T + both.classifier.bias
        encoder = reading.read(weights).build()
        torch.testing.assert_close(own, head(encoder.features(views, Taps(norm=True))))


def test_a_resnet_is_read_as_it_ends() -> None:
    from msn.config.sizes import ResNetSize
    from msn.evaluation.linear import Training
    from msn.models.linear import HeadSettings

    encoder = ResNet(ResNetSize("basic", (1, 1, 1, 1), width=8), in_chans=1)
    training = Training(3, protocol="mae")
    learner = LinearLearner(encoder, [HeadSettings(1.0, 1)], training, classes=3, bf16=False)
    seen, labels = torch.randn(6, 1, 32, 32), torch.arange(6) % 3
    assert learner.train_step(seen, labels, 0).isfinite().all()


def test_the_recipe_for_imagenet() -> None:
    recipe = load(LinearConfig, ROOT / "configs/eval/lineval_mae_vitb16.yaml")
    assert not recipe.notices()
    assert (recipe.meta.protocol, recipe.optimization.lr) == ("mae", (6.4,))
    assert (recipe.optimization.epochs, recipe.optimization.warmup) == (90, 10)
    assert recipe.optimization.batch_size * 32 == 16_384
    assert recipe.data.interpolation == "bicubic"
    assert recipe.data.crop_scale == (0.08, 1.0)
