"""`msn export` and `msn import`, as typed."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import msn
from msn.cli import main as cli
from msn.config.sizes import ENCODERS
from msn.interop import official, reading, release, zoo
from msn.interop.reading import read, read_start
from msn.models.encoder import NORMED
from msn.runtime.checkpoint import Found, load
from tests.support.encoders import random_weights, relative, released_state, same
from tests.support.experiments import msn_of, tiny_parts, write_tiny

pytestmark = pytest.mark.slow

READ = {
    "huggingface": (
        "from transformers import ViTMSNModel;"
        "features = ViTMSNModel.from_pretrained(path)(images).last_hidden_state[:, 0]"
    ),
    "timm": (
        "import timm;"
        "features = timm.create_model(f'local-dir:{path}', pretrained=True).eval()(images)"
    ),
    "onnx": (
        "import onnxruntime; session = onnxruntime.InferenceSession(path);"
        "features = torch.from_numpy(session.run(None, {'images': images.numpy()})[0])"
    ),
    "torch": "features = torch.export.load(path).module()(images)",
}


@pytest.fixture(scope="module")
def latest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run."""
    folder = tmp_path_factory.mktemp("run")
    config = write_tiny(folder / "tiny.yaml", folder, data__channels=3)
    assert cli.main(["pretrain", "--fname", str(config)]) == 0
    return folder / "tiny-latest.pth.tar"


@pytest.mark.parametrize("form", READ)
def test_exports_are_read_without_us(latest: Path, tmp_path: Path, form: str) -> None:
    """In a process of its own, which does not know of this project."""
    out, torch_file = tmp_path / "out.onnx", tmp_path / "features.pt"
    assert cli.main(["export", str(latest), str(out), "--to", form]) == 0
    images = torch.rand(3, 3, 8, 8)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; torch.set_grad_enabled(False); _, path, images, out = sys.argv;"
        f"images = torch.load(images); {READ[form]};"
        "assert 'msn' not in sys.modules; torch.save(features, out)"
    )
    command = [sys.executable, "-c", code, str(out), f"{tmp_path}/images.pt", str(torch_file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    encoder = read(latest).trainable().eval()
    with torch.no_grad():
        assert relative(encoder.features(images, NORMED), torch.load(torch_file)) < 1e-5


def test_what_comes_back_starts_a_new_run(latest: Path, tmp_path: Path) -> None:
    """Export, import, `meta.init_from`: the weights of the target, a fresh optimizer."""
    out, weights = str(tmp_path / "out"), str(tmp_path / "weights.pth.tar")
    assert cli.main(["export", str(latest), "--to", "huggingface", out]) == 0
    assert cli.main(["import", out, "--as", "official", weights]) == 0
    parts = tiny_parts(tmp_path / "run", data__channels=3)
    parts.model.load_weights(Found(Path(weights), load(Path(weights))))
    expected = torch.load(latest, weights_only=True)["target_encoder"]["pos_embed"]
    assert torch.equal(msn_of(parts).anchor.pos_embed, expected)
    assert torch.equal(msn_of(parts).target.pos_embed, expected)


def test_every_command_takes_every_form(latest: Path, tmp_path: Path) -> None:
    """A folder, a release, a file of tensors: the same features as of the checkpoint, one key."""
    forms = {"huggingface": "hf", "timm": "timm", "official": "official.pth.tar", "release": "rel"}
    for form, name in forms.items():
        assert cli.main(["export", str(latest), str(tmp_path / name), "--to", form]) == 0
    target = load(latest)["target_encoder"]
    dino = {f"module.backbone.{name}": tensor for name, tensor in target.items()}
    torch.save({"teacher": dino, "args": argparse.Namespace(a=1)}, tmp_path / "dino.pth")
    given = [latest, *(tmp_path / name for name in (*forms.values(), "dino.pth"))]
    given.append(tmp_path / "timm" / "model.safetensors")
    found = [msn.load_encoder(path, num_heads=4, image_size=8) for path in given]
    assert len({encoder.digest for encoder in found}) == 1
    config = str(latest.with_name("tiny-config.yaml"))
    for path in given[1:]:
        common = ["--weights", str(path), "--num-heads", "4", "--image-size", "8"]
        out = tmp_path / "features.npz"
        assert cli.main(["features", *common, "--fname", config, "--out", str(out)]) == 0
        parts = tiny_parts(tmp_path / "run", data__channels=3)
        start = read_start(path, num_heads=4, exact=False)
        parts.model.load_weights(Found(path, start))
        found = parts.model.encoder.state_dict()["pos_embed"]
        assert torch.equal(found, target["pos_embed"]), path
    anchor = load(latest)["encoder"]
    assert same(read_start(latest, num_heads=4, exact=False)["encoder"], anchor)
    assert "opt" in read_start(latest, num_heads=4, exact=True)


def test_the_anchor_can_be_exported(latest: Path, tmp_path: Path) -> None:
    out = tmp_path / "anchor.pth.tar"
    arguments = ["export", str(latest), "--to", "official", str(out), "--encoder", "anchor"]
    assert cli.main(arguments) == 0
    state = torch.load(latest, weights_only=True)
    assert same(torch.load(out, weights_only=True)["target_encoder"], state["encoder"])


def test_a_released_file_given_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = tmp_path / "given.pth.tar"
    torch.save(released_state("vits16_800ep"), given)
    digest = release.sha256(given)
    assert cli.main(["import", "official:vits16_800ep", "--from", str(given)]) == 0
    said = capsys.readouterr().out
    for part in ("deit_small: width 384", digest, "CC BY-NC 4.0", "projection head, 1,024 prot"):
        assert part in said
    assert cli.main(["import", "official:vits16_800ep"]) == 0  # now it is in the cache
    assert zoo.cached_path("vits16_800ep").exists()
    wrong = ["import", "official:vitb16_600ep", "--from", str(given)]
    assert cli.main(wrong) == 2
    assert "the weights are of deit_small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["import", "WEIGHTS", "--model-name", "deit_base"], "the weights are of deit_tiny"),
        (["import", "WEIGHTS", "--model-name", "vit"], "not a model"),
        (["import", "WEIGHTS", "OUT"], "OUT and --as go together"),
        (["import", "none.pth.tar"], "no such checkpoint"),
        (["import", "WEIGHTS", "--as", "run", "OUT"], "cannot be read; download the release again"),
        (["export", "WEIGHTS", "OUT", "--to", "release"], "not TAG-latest.pth.tar"),
        (["export", "WEIGHTS", "OUT", "--to", "onnx", "--opset", "99"], "--opset 99"),
        (["export", "WEIGHTS", "OUT", "--to", "onnx", "--image-size", "8"], "at least 16 px"),
        (["export", "WEIGHTS", "OUT", "--to", "onnx", "--tap", "logits"], "no classifier"),
        (["export", "WEIGHTS", "OUT", "--to", "timm", "--encoder", "anchor"], "has no 'encoder'"),
        (["export", "WEIGHTS", "/proc/none/out", "--to", "timm"], "cannot be written"),
        (["export", "WEIGHTS", "/proc/none/out", "--to", "official"], "cannot be written"),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    size = ENCODERS["deit_tiny"]._replace(depth=12)
    official.write(Path("WEIGHTS"), random_weights(size, image_size=32, with_head=False))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["WEIGHTS"]
    assert reading.read(Path("WEIGHTS")).architecture.size == size
