"""What a dry run says, against arithmetic done by hand."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from msn.cli.main import main
from msn.config.kinds import MSNConfig
from msn.config.load import load
from msn.methods.base import activation_bytes
from msn.methods.msn.build import build_anchor
from msn.methods.msn.plan import flops_per_image
from msn.train.plan import notes
from tests.support.experiments import tiny_config, tiny_parts, write_tiny

pytestmark = pytest.mark.slow

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
    config = load(MSNConfig, RECIPE, ["data.source=digits", "meta.model_name=deit_tiny"])
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
    estimate = 2 * activation_bytes(anchor.blocks, 197, bf16=False)
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.15)


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path)
    wrong = [f"data.root_path={tmp_path / 'none'}", "data.source=folder"]
    assert main(["pretrain", "--fname", str(config), "--dry-run", *wrong]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error
    assert len(error.strip().splitlines()) == 1


def facts_of(text: str) -> dict[str, str]:
    """The first column of a plan, and what stands behind it."""
    pairs = (re.split("  +", line, maxsplit=1) for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_a_run_says_first_what_it_is_as_its_dry_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")
    words = ["pretrain", "--fname", str(config), "--devices", "cpu"]
    short = ["optimization.epochs=1", "optimization.warmup=0", "data.num_workers=0"]

    def said(*more: str) -> dict[str, str]:
        assert main([*words, *short, *more]) == 0
        return facts_of(capsys.readouterr().out)

    first = ("device", "precision", "images", "global batch", "steps", "output", "start")
    planned = said("--dry-run")
    assert not (tmp_path / "run").exists()
    assert {name: planned[name] for name in first[1:]} == {
        "precision": "fp32",
        "images": "1,297",
        "global batch": "32 = 32 x 1 micro-batch x 1 process",
        "steps": "40 per epoch x 1 epoch = 40",
        "output": f"{tmp_path}/run/tiny-*",
        "start": "from the beginning",
    }
    assert re.fullmatch(r"cpu \(.+, 1 thread\)", planned["device"])
    ran = said()
    assert {name: ran[name] for name in first} == {name: planned[name] for name in first}
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    exists = f"a run {tmp_path}/run/tiny-* exists and would be"
    assert said("--dry-run")["start"] == f"{exists} resumed after 40 of 40 steps"
    assert said("--dry-run", "optimization.epochs=2")["start"].endswith("after 40 of 80 steps")
    latest = tmp_path / "run/tiny-latest.pth.tar"
    for change, reason in (
        ("criterion.num_proto=9", "'prototypes' is of another model"),
        ("meta.encoder.embed_dim=24", "'encoder' is of another model"),
        ("criterion.batch_size=16", "was made with a global batch of 32"),
    ):
        refused = said("--dry-run", change)["start"]
        assert refused.startswith(f"{exists} refused: {latest}: {reason}"), refused
        assert "another logging.write_tag" in refused
        assert f"meta.init_from={latest}" in refused
    warm = [f"meta.init_from={latest}", "logging.write_tag=other"]
    assert said("--dry-run", *warm)["start"] == f"from {latest}, after 0 of 40 steps"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert said()["start"] == "after 40 of 40 steps"


def test_a_dry_run_leaves_a_damaged_save_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_tiny(tmp_path / "tiny.yaml", tmp_path)
    (tmp_path / "tiny-latest.pth.tar").write_bytes(b"PK")
    assert main(["pretrain", "--fname", str(config), "--devices", "cpu", "--dry-run"]) == 0
    start = facts_of(capsys.readouterr().out)["start"]
    assert "would be refused: " in start
    assert "tiny-latest.pth.tar: " in start
    assert (tmp_path / "tiny-latest.pth.tar").read_bytes() == b"PK"


def test_what_is_probably_not_meant(tmp_path: Path) -> None:
    warmup = "optimization.warmup 3 is more than a tenth of the run of 10 epochs"
    lr = "optimization.lr 0.001 is the recipe's, for batches of about 1,024 images"
    prototypes = "criterion.num_proto 2000 is more than the 1280 images of an epoch"
    recipe = {"optimization__lr": 0.001, "optimization__warmup": 1.0, "optimization__epochs": 10}
    for changes, expected in (
        ({"optimization__lr": 0.0009}, []),
        ({"optimization__lr": 0.001}, [lr]),
        ({"criterion__batch_size": 64}, []),
        ({"optimization__warmup": 3.0, "optimization__lr": 0.01}, [warmup]),
        ({"criterion__num_proto": 2000}, [lr, prototypes]),
    ):
        config = tiny_config(tmp_path, **{**recipe, **changes})
        found = notes(config, tiny_parts(tmp_path, **{**recipe, **changes}))
        assert len(found) == len(expected), found
        assert all(note.startswith(start) for note, start in zip(found, expected, strict=True))
