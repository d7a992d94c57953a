"""`MSNForPreTraining`: the same MSN, in the manner of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import msn
from examples import huggingface_trainer
from msn.interop import huggingface
from msn.interop.pretraining import MSNForPreTraining
from msn.methods.msn.losses import LossSettings, log_prior, msn_losses
from msn.models.masking import random_keep
from msn.runtime.errors import UserError
from msn.runtime.keyed import Stream, seed64

pytestmark = pytest.mark.slow


def tiny(seed: int = 0, **changes: Any) -> MSNForPreTraining:
    torch.manual_seed(seed)
    return msn.MSNForPreTraining(
        {
            "criterion": {"num_proto": 6},
            "data": {"rand_size": 16, "focal_size": 8, "patch_drop": 0.5},
            "meta": {
                "encoder": {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4},
                "hidden_dim": 32,
                "output_dim": 8,
            },
            **changes,
        },
        total_steps=10,
    )


def batch(images: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "target": torch.randn(images, 3, 16, 16, generator=generator),
        "random": torch.randn(images, 2, 3, 16, 16, generator=generator),
        "focal": torch.randn(images, 3, 3, 8, 8, generator=generator),
    }


def test_the_loss_is_msn_s() -> None:
    """Written out: views by kind, one mask for the random ones, targets by the target."""
    model, views = tiny(), batch()
    found = model(**views)
    keep = random_keep(16, 0.5, seed=seed64(0, Stream.MASK, 0, 0), images=8, scope="batch")
    anchors = [model.msn.anchor(views["random"].transpose(0, 1).flatten(0, 1), keep)]
    anchors.append(model.msn.anchor(views["focal"].transpose(0, 1).flatten(0, 1)))
    expected = msn_losses(
        torch.cat(anchors),
        model.msn.target(views["target"]),
        model.msn.prototypes,
        LossSettings(temperature=0.1, sinkhorn_iterations=3, memax_weight=1.0),
        sharpening=0.25,
        log_prior=log_prior(6),
    )
    torch.testing.assert_close(found.loss, expected.total)
    assert found[0] is found.loss


def test_focal_views_are_optional() -> None:
    views = batch()
    del views["focal"]
    assert tiny()(**views).loss.isfinite()


def test_views_that_are_no_normalized_images_are_refused() -> None:
    model, views = tiny(), batch()
    rand = torch.rand(4, 2, 3, 16, 16)
    for change, message in (
        (
            {"target": views["target"][0]},
            r"target views of shape \(3, 16, 16\): must be \(images, 3",
        ),
        ({"random": views["random"][:, 0]}, r"random views of shape .* \(images, views, 3, height"),
        (
            {"focal": views["focal"][:3]},
            r"focal views of shape \(3, .* as many images as the target",
        ),
        ({"target": views["target"].movedim(1, 3)}, r"target views of shape \(4, 16, 16, 3\)"),
        (
            {"target": views["target"].to(torch.uint8)},
            "target views of torch.uint8: must be floats",
        ),
        ({"random": rand}, "floats of .* are not normalized; give uint8, or normalize them first"),
        ({"focal": rand * 255}, "floats of .* are no normalized pixels"),
    ):
        with pytest.raises(UserError, match=message):
            model(**views | change)


def test_settings_are_those_of_a_config_file() -> None:
    model = tiny(criterion={"num_proto": 4, "prior": "power_law", "use_sinkhorn": False})
    assert model.msn.loss_settings.sinkhorn_iterations == 0
    weights = torch.arange(1, 5).double() ** -0.25
    torch.testing.assert_close(model.msn.log_prior.double().exp(), weights / weights.sum())
    with pytest.raises(UserError, match=r"settings: criterion.num_protos: unknown key; did you"):
        tiny(criterion={"num_protos": 4})


def test_the_target_follows_after_each_step() -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        before = model.msn.target.pos_embed.clone()
        model(**batch()).loss.backward()
        optimizer.step()
        model.after_step()
        momentum = 0.996 + 0.004 * step / 12.5  # of 10 steps, stretched by 1.25
        expected = momentum * before + (1 - momentum) * model.msn.anchor.pos_embed
        torch.testing.assert_close(model.msn.target.pos_embed, expected)
    assert int(model.step) == 3


def test_save_and_load_keep_every_bit(tmp_path: Path) -> None:
    model = tiny()
    model.after_step()
    model.save_pretrained(tmp_path)
    loaded = MSNForPreTraining.from_pretrained(tmp_path)
    assert int(loaded.step) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    settings = json.loads((tmp_path / "config.json").read_text())["settings"]
    assert settings["data"]["patch_drop"] == 0.5
    loaded.train()
    assert torch.equal(model(**batch()).loss, loaded(**batch()).loss)
    for each in (model, loaded):  # with the momentum of the same step
        torch.nn.init.zeros_(each.msn.anchor.pos_embed)
        each.after_step()
    assert torch.equal(model.msn.target.pos_embed, loaded.msn.target.pos_embed)
    assert int(loaded.step) == 2


def test_its_target_can_be_exported(tmp_path: Path) -> None:
    model = tiny()
    huggingface.write(tmp_path / "a", model.encoder_weights())
    back = huggingface.read(tmp_path / "a")
    assert torch.equal(back.encoder["pos_embed"], model.msn.target.pos_embed)
    assert back.architecture.size.num_heads == 4


def test_the_trainer_of_transformers_learns_the_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example as it is: the loss falls, features beat the untrained ones by far."""
    huggingface_trainer.main(["--epochs", "8", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    first, last = map(float, lines[-3].removeprefix("loss: ").split(" -> "))
    words = lines[-2].replace(",", "").split()
    untrained, trained = (float(words[words.index(w) + 1]) for w in ("untrained", "trained"))
    assert last < first - 1
    assert trained > untrained + 8
    loaded = MSNForPreTraining.from_pretrained(tmp_path / "out")
    assert int(loaded.step) == 8 * (1297 // 64)
