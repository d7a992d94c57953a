"""What a dry run says, against arithmetic done by hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from msn.cli.main import main
from msn.config.load import load_config
from msn.methods.msn.build import build_anchor
from msn.methods.msn.plan import activation_bytes, flops_per_image
from tests.support.experiments import tiny_config, write_tiny

RECIPE = Path(__file__).parents[2] / "configs/pretrain/msn_vits16.yaml"


def test_the_plan_of_the_published_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "train" / "class"
    images.mkdir(parents=True)
    for i in range(130):
        cv2.imwrite(str(images / f"{i}.png"), np.zeros((4, 4, 3), np.uint8))
    arguments = ["pretrain", "--fname", str(RECIPE), "--dry-run", "--devices", "cpu"]
    assert main([*arguments, f"data.root_path={tmp_path}", "logging.folder=/proc/no"]) == 0
    plan = capsys.readouterr().out
    for fact in (
        "1 x 224 px: 196 patches, 166 kept, 30 dropped; 167 tokens",
        "10 x 96 px: 36 patches, 36 kept, 0 dropped; 37 tokens",
        "encoder 21,665,664, head 5,517,568, prototypes 262,144; trained 27,445,376",
        "2 per epoch x 800 epochs = 1,600",
        "0.996 -> 0.999",
    ):
        assert fact in plan
    assert list(tmp_path.iterdir()) == [tmp_path / "train"]  # nothing was written


def test_flops_of_the_tiny_encoder(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with torch.device("meta"):
        anchor = build_anchor(config, channels=1)

    def forward(patches: int, kept: int) -> int:
        tokens, width, heads, hidden = kept + 1, 16, 2, 64
        embed = 2 * patches * 4 * width
        block = 2 * tokens * (3 * width * width + width * width + 2 * width * hidden)
        attention = 2 * 2 * tokens * tokens * width
        # The last block asks with the class token alone, and forms no keys and values.
        last = 2 * (4 * width * width + 2 * width * hidden) + 2 * 2 * heads * tokens * width
        head = 2 * (16 * 24 + 24 * 24 + 24 * 8)
        return embed + block + attention + last + head

    target, random, focal = forward(16, 16), forward(16, 12), forward(9, 9)
    # A backward pass is two products for each of the forward pass, but for the input's gradient.
    pixels = 2 * (16 + 2 * 9) * 4 * 16
    expected = target + 3 * random + 2 * 3 * focal - pixels
    assert flops_per_image(config, anchor) == pytest.approx(expected, rel=1e-9)


def test_activation_estimate_is_near_what_autograd_keeps() -> None:
    config = load_config(RECIPE, ["data.source=digits", "meta.model_name=deit_tiny"])
    anchor = build_anchor(config, channels=3)
    own = {parameter.untyped_storage().data_ptr() for parameter in anchor.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = anchor(torch.zeros(2, 3, 224, 224))
    assert output.requires_grad
    estimate = 2 * activation_bytes(anchor, 197, bf16=False)
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.15)


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path)
    wrong = [f"data.root_path={tmp_path / 'none'}", "data.source=folder"]
    assert main(["pretrain", "--fname", str(config), "--dry-run", *wrong]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error
    assert len(error.strip().splitlines()) == 1
