"""The examples of docs/extending.md work as they stand, all of them in one copy of the code."""

import contextlib
import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.toy import Toy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text("utf-8")
FILES = re.findall(
    r"^\*\*(src/[\w/]+\.py)\*\*\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE
)
COMMANDS = re.findall(r"```bash\npython -m msn (.*)\n```", PAGE)
SHORT = [
    *("optimization.epochs=1", "optimization.warmup=0", "logging.probe=null"),
    *("data.source=npz", "data.root_path=DATA"),  # two steps an epoch
]


def edits() -> Iterator[tuple[str, str, str]]:
    """The file, the lines that are there, and what takes their place, for each hunk of a diff."""
    for block in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL):
        for hunk in block.split("--- ")[1:]:
            name, *lines = hunk.splitlines(keepends=True)
            sides = ("".join(line[1:] for line in lines if line[0] in " " + sign) for sign in "-+")
            yield name.strip(), *sides


def make_npz(folder: Path) -> None:
    """Two classes that any representation tells apart: dark images and bright ones."""
    folder.mkdir()
    labels = np.arange(128) % 2
    noise = np.random.default_rng(0).integers(0, 60, (128, 16, 16, 1))
    for split in ("train", "val"):
        images = (noise + 190 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)


@contextlib.contextmanager
def code_of(folder: Path) -> Iterator[None]:
    """Import `msn` from a folder; in this process, as to load torch in another takes longest."""

    def ours() -> dict[str, ModuleType]:
        return {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "msn"}

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in ours():
            patch.delitem(sys.modules, name)
        try:
            yield
        finally:
            for name in ours():
                del sys.modules[name]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the additions of the page, after the commands of the page."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copytree(
        ROOT / "src/msn", copy / "src/msn", ignore=shutil.ignore_patterns("__pycache__")
    )
    (copy / "configs").symlink_to(ROOT / "configs")
    make_npz(copy / "DATA")
    for name, text in FILES:
        assert not (copy / name).exists(), name
        (copy / name).write_text(text, encoding="utf-8")
    for name, old, new in edits():
        text = (copy / name).read_text("utf-8")
        assert text.count(old) == 1, f"docs/extending.md: {name} does not have, once:\n{old}"
        (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        with code_of(copy / "src"):
            main = importlib.import_module("msn.cli.main").main
            for words in map(shlex.split, COMMANDS):
                assert main([*words, *SHORT] if words[0] == "pretrain" else words) == 0, words
    return copy


def state(extended: Path, run: str) -> dict[str, Any]:
    path = extended / "runs" / run / "quickstart-latest.pth.tar"
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_all_of_the_page_is_used() -> None:
    assert len(FILES) == PAGE.count("```python") == 5
    assert len(COMMANDS) == PAGE.count("```bash") == 4
    assert len(list(edits())) == 7


def test_a_source_is_trained_on(extended: Path) -> None:
    found = state(extended, "npz")
    assert found["config"]["data"]["source"] == "npz"
    assert found["step"] == 2
    assert found["mean"][0] == pytest.approx((29.5 + 95) / 255, abs=0.01)


def test_an_encoder_size_has_a_name(extended: Path) -> None:
    weights = state(extended, "micro")["target_encoder"]
    assert weights["cls_token"].shape == (1, 1, 96)
    assert sum(name.endswith("attn.qkv.weight") for name in weights) == 4


def test_another_kind_of_encoder_is_trained_measured_and_fine_tuned(extended: Path) -> None:
    with code_of(extended / "src"):
        load = importlib.import_module
        encoder = load("msn.models.convnet").ConvNet()
        frozen = load("msn.evaluation.frozen").FrozenEncoder
        images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
        taken = frozen(encoder, image_size=16, mean=[0.5], std=[0.2], digest="")
        assert taken.features(list(images)).shape == (2, 64)
        encoder.requires_grad_(True).recompute_activations(True)
        pair = torch.randn(2, 4, 1, 16, 16)
        method = load("msn.methods.toy").Toy(encoder)
        method({"pair": pair}, step=0).loss.backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        tokens = encoder.patch_tokens(pair[0])
        assert tokens.shape[1] == np.prod(encoder.grid(16, 16))
        torch.testing.assert_close(encoder.features(pair[0]), tokens.mean(dim=1))
        model = load("msn.models.classifier").Classifier(encoder, 5, trained_blocks=1)
        assert model(pair[0]).shape == (4, 5)
        build = load("msn.evaluation.finetune").build_optimizer
        groups = build(model, weight_decay=0.1, layer_decay=0.5).param_groups
        assert {group["lr_scale"] for group in groups} == {0.5, 1.0}


def test_a_method_is_trained(extended: Path) -> None:
    assert inspect.getsource(Toy) in PAGE  # which is killed and resumed elsewhere
    rows = (extended / "runs/toy/quickstart_r0.csv").read_text("utf-8").splitlines()
    assert rows[0].endswith(",variance")
    assert state(extended, "toy").keys() >= {"target_encoder", "opt"}
    assert state(extended, "toy")["config"]["meta"]["method"] == "toy"


def test_an_evaluation_is_a_command(extended: Path) -> None:
    path = extended / "runs/npz/quickstart-latest-centroids.json"
    assert json.loads(path.read_text("utf-8")) == {"unit": "percent", "top1": 100.0}
