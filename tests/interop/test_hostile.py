"""Weights that are not what they claim: one line each, and nothing in the output folder."""

import argparse
import json
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import msn
from msn.cli import main as cli
from msn.interop import huggingface, reading, timm_vit
from msn.interop.tensorfile import read_tensors
from msn.runtime.errors import UserError
from tests.support.encoders import TINY, random_weights

WEIGHTS = random_weights(classes=3)
GOOD = WEIGHTS.encoder
HEADED = GOOD | WEIGHTS.head


def changed(**changes: Any) -> dict[str, Any]:
    """A file of a small encoder: keys of `tensors` and of the file itself replaced."""
    tensors = HEADED | changes.pop("tensors", {})
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return {"target_encoder": tensors, "num_heads": 4, **changes}


def tensors(**changes: Any) -> dict[str, Any]:
    return changed(tensors={name.replace("__", "."): value for name, value in changes.items()})


def filled(name: str, value: float) -> Tensor:
    tensor = GOOD[name].clone()
    tensor.view(-1)[1] = value
    return tensor


def blocks(number: str) -> dict[str, Any]:
    return changed(tensors={f"blocks.{number}.norm1.weight": torch.ones(48)})


NAN = {"patch_embed.proj.weight": filled("patch_embed.proj.weight", float("nan"))}
CASES: list[tuple[dict[Any, Any], str]] = [
    (changed(tensors={3: torch.zeros(2)}), "3 is no name of a tensor"),
    (changed(tensors={(1, 2): torch.zeros(2)}), r"\(1, 2\) is no name of a tensor"),
    (changed(tensors={"a\nb" * 999: torch.zeros(2)}), r"a\\nba\\nb.*\.\.\. unknown"),
    (blocks("9" * 5000), r"blocks\.9999.*unknown"),
    (blocks("1000000000"), "blocks.1000000000.norm1.weight unknown"),
    (blocks("9999"), "has 4 blocks with numbers to 9999"),
    (blocks("٣"), "unknown"),
    (tensors(patch_embed__proj__weight=torch.zeros(48, 3, 0, 0)), r"shape \(48, 3, 0, 0\)"),
    (tensors(patch_embed__proj__weight=torch.zeros(48, 0, 4, 4)), r"shape \(48, 0, 4, 4\)"),
    (tensors(patch_embed__proj__weight=torch.zeros(48)), r"shape \(48,\), must have 4 axes"),
    (tensors(patch_embed__proj__weight=torch.zeros(48, 3, 4, 5)), r"is \(48, 3, 4, 5\)|square"),
    (tensors(pos_embed=torch.zeros(1, 0, 48)), r"shape \(1, 0, 48\)"),
    (tensors(pos_embed=torch.zeros(1, 1, 48)), "for 0 patches"),
    (tensors(pos_embed=torch.zeros(1, 9, 48)), "for 8 patches of 4 px; they must form a square"),
    (tensors(pos_embed=torch.zeros(1).expand(1, 10**8 + 1, 48)), "claims 19,200,"),
    (tensors(cls_token=torch.zeros(())), r"cls_token has the shape \(\)"),
    (tensors(cls_token=torch.zeros(1).expand(1, 1, 10**12)), "claims 4,000,"),
    (
        tensors(norm__bias=torch.zeros(48, dtype=torch.int64)),
        "norm.bias is of torch.int64, must be",
    ),
    (tensors(norm__bias=torch.zeros(48, dtype=torch.bool)), "norm.bias is of torch.bool"),
    (tensors(norm__bias=torch.zeros(48, dtype=torch.complex64)), "norm.bias is of torch.complex64"),
    (tensors(norm__bias=torch.zeros(48).to_sparse()), "norm.bias is sparse or nested"),
    (tensors(norm__bias=torch.zeros(48, device="meta")), "norm.bias is without values"),
    (changed(tensors=NAN), "patch_embed.proj.weight has values that are not finite"),
    (tensors(norm__bias=filled("norm.bias", float("inf"))), "norm.bias has values that are not f"),
    (tensors(fc__bn1__num_batches_tracked=torch.tensor(1.5)), "is of torch.float32, must be of"),
    (tensors(fc__fc1__weight=torch.zeros(3)), "fc.fc1.weight unknown"),
    (changed(prototypes=torch.zeros(8, 17)), r"is \(8, 17\) and must be \(8, 16\)"),
    (changed(prototypes=torch.zeros(8)), "'prototypes' is not a matrix"),
    (changed(prototypes=torch.zeros(0, 16)), "'prototypes' is not a matrix"),
    (changed(prototypes="x"), "'prototypes' is not a matrix"),
    (changed(prototypes=torch.full((8, 16), torch.nan)), "prototypes has values that are not fin"),
    (changed(num_heads=-4), "-4 attention heads do not divide the width 48"),
    (changed(num_heads=0), "0 attention heads"),
    (changed(num_heads="x"), "x attention heads"),
    (changed(num_heads=True), "True attention heads"),
    (changed(num_heads=4.0), "4.0 attention heads"),
    (changed(mean="abc", std="abc"), "mean is abc, must be 3 finite numbers"),
    (changed(mean=[0.5], std=[0.5]), r"mean is \[0.5\], must be 3"),
    (changed(mean=[0.5] * 3, std=[0.0] * 3), "std is .* finite numbers above 0"),
    (changed(mean=[0.5, 0.5, float("nan")], std=[1.0] * 3), "mean is .*nan.*, must be 3 finite"),
    (changed(config="text"), "config is text, must be a mapping"),
    (changed(config={"meta": 3}), "meta is 3, must be a mapping"),
    (changed(num_heads=None, config={"meta": {"encoder": [1]}}), "encoder is .1., must be a map"),
    (changed(num_heads=None, config={"meta": {"model_name": [1]}}), "48 wide and 3 deep"),
    (changed(config={"data": {"rand_size": 10**9}}), "data.rand_size is 1000000000, must be"),
    (changed(config={"data": {"rand_size": "x"}}), "data.rand_size is x"),
    ({"target_encoder": "text"}, "'target_encoder' is not a state dict"),
    ({"model": {"model": {}}}, "is not a state dict"),
    ({"classifier": {"head.weight": torch.zeros(3, 48), **GOOD}}, "without an encoder"),
    (
        {"classifier": {"head.weight": torch.zeros(3, 47), "head.bias": torch.zeros(3), **GOOD}}
        | {"num_heads": 4},
        r"classifier.weight is \(3, 47\) and must be \(3, 48\)",
    ),
    (
        {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(4)}
        | random_weights(TINY._replace(embed_dim=192)).encoder,
        "'classifier.bias' is not a number for each of its classes",
    ),
]


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `msn import` says of a bad file: one line, without a warning, and nothing written."""
    before = sorted(path.parent.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = cli.main(["import", str(path), str(path.parent / "OUT"), "--as", "official"])
    said = capsys.readouterr()
    assert code == 2, said
    assert said.err.startswith("error: ")
    assert (said.err.count("\n"), said.out) == (1, ""), said
    assert len(said.err) < 900 + 2 * len(str(path))
    assert sorted(path.parent.iterdir()) == before
    return said.err


@pytest.mark.slow
def test_files_that_are_not_what_they_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth.tar"
    torch.save(changed(), path)
    assert reading.read(path).architecture == WEIGHTS.architecture
    for state, problem in CASES:
        torch.save(state, path)
        said = refused(path, capsys)
        with pytest.raises(UserError, match=problem):
            reading.read(path)
        assert str(path) in said
    with pytest.raises(UserError, match=CASES[-1][1]):  # by the same reader
        msn.load_encoder(path)


def raw_safetensors(path: Path, dtype: str) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")


def test_safetensors_of_odd_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.safetensors"
    for dtype in ("F8_E8M0", "I8", "X"):
        raw_safetensors(path, dtype)
        assert str(path) in refused(path, capsys)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "truncated, damaged" in refused(path, capsys)
    path.unlink()
    os.mkfifo(path)
    assert "neither a file nor a folder" in refused(path, capsys)


HF_CASES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 47}, "hidden_size is 47, but the tensors beside it are of 48"),
    ({"num_hidden_layers": "3"}, "num_hidden_layers is 3, but"),
    ({"intermediate_size": 48}, "intermediate_size is 48, but .* of 96"),
    ({"image_size": 24}, "image_size is 24, but .* of 16"),
    ({"patch_size": [8, 8]}, r"patch_size is \[8, 8\], but .* of 4"),
    ({"num_channels": 1}, "num_channels is 1"),
    ({"id2label": {"0": "a"}}, "id2label is 1, but .* of 3"),
    ({"num_attention_heads": "x"}, "x attention heads"),
    ({"num_attention_heads": -4}, "-4 attention heads"),
    ({"model_type": ["vit"]}, "model_type is"),
    ({"model_type": "dinov2"}, "which scales each branch of a block"),
    ({"hidden_act": {"a": 1}}, "hidden_act .* is not MSN's 'gelu'"),
]
TIMM_CASES: list[tuple[dict[str, Any], str]] = [
    ({"architecture": 5}, "architecture is 5, must be text"),
    ({"pretrained_cfg": {"mean": "x"}}, "mean is x, must be 3 finite numbers"),
    ({"pretrained_cfg": {"std": [1, 1, 1]}}, "mean is None, must be 3 finite numbers"),
    ({"model_args": "x"}, "model_args is x, must be a mapping"),
    ({"model_args": {"num_heads": "x"}}, "x attention heads"),
    ({"model_args": {"num_heads": 4, "depth": 2}}, "depth is 2, but"),
    ({"pretrained_cfg": [1]}, "pretrained_cfg is .1., must be a mapping"),
    ({"pretrained_cfg": {"mean": "abc", "std": [1, 1, 1]}}, "mean is abc"),
    ({"num_classes": 5}, "num_classes is 5, but .* of 3"),
]


def test_folders_whose_parts_contradict_each_other(tmp_path: Path) -> None:
    for form, cases in ((huggingface, HF_CASES), (timm_vit, TIMM_CASES)):
        folder = tmp_path / form.__name__
        form.write(folder, WEIGHTS)
        config = folder / "config.json"
        good = json.loads(config.read_text())
        for change, problem in cases:
            config.write_text(json.dumps(good | change))
            with pytest.raises(UserError, match=problem):
                reading.read(folder)
        config.write_text(json.dumps(good))
    file = tmp_path / huggingface.__name__ / "model.safetensors"
    good_tensors = read_tensors(file.parent)
    key = "vit.encoder.layer.1.attention.attention.key.weight"
    for change, problem in (
        ({key: torch.zeros(47, 48)}, "query, key and value have the shapes"),
        ({key: torch.tensor(1.0)}, "query, key and value have the shapes"),
        ({"classifier.weight": torch.zeros(3, 9)}, "classifier.weight"),
    ):
        save_file(good_tensors | change, file)
        with pytest.raises(UserError, match=problem):
            reading.read(file.parent)
    (file.parent / "preprocessor_config.json").write_text('{"image_mean": [1], "image_std": "x"}')
    save_file(good_tensors, file)
    with pytest.raises(UserError, match=r"mean is \[1\]"):
        reading.read(file.parent)


def wrapped(which: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of other projects that hold the same encoder, by name."""
    for prefix in (
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_fsdp_wrapped_module.module.",
        "module.backbone.",
        "backbone._orig_mod.encoder.module.",
        "model.backbone.",
    ):
        renamed = {prefix + name: tensor for name, tensor in GOOD.items()}
        renamed = {n.replace("blocks.1.", "blocks.1._orig_mod."): t for n, t in renamed.items()}
        for place in ("model", "state_dict", "teacher", "student", "encoder"):
            yield f"{place} {prefix}", {place: renamed, "args": argparse.Namespace(lr=0.1)}
    mae = GOOD | {"mask_token": torch.zeros(1), "decoder_blocks.0.x": torch.zeros(1)}
    yield "MAE", {"model": mae}
    dino = {f"module.backbone.{n}": t for n, t in GOOD.items()}
    head = {"module.head.mlp.0.weight": torch.zeros(2, 2)}
    other = {n: t + 1 for n, t in dino.items()}
    pair = {"teacher": dino | head, "student": other} if which == "target" else None
    yield "DINO", pair or {"teacher": other, "student": dino | head}
    lightning = {f"teacher.backbone.{n}": t for n, t in GOOD.items()}
    yield "Lightning", {"state_dict": lightning, "epoch": 3}


@pytest.mark.slow
def test_files_of_other_projects(tmp_path: Path) -> None:
    for name, state in wrapped("target"):
        buffer = tmp_path / "w.pth"
        torch.save(state, buffer)
        found = reading.read(buffer, num_heads=4)
        assert found.architecture == WEIGHTS.architecture, name
        assert found.encoder.keys() == GOOD.keys(), name
        assert all(torch.equal(tensor, GOOD[key]) for key, tensor in found.encoder.items()), name
    student = dict(wrapped("anchor"))["DINO"]
    torch.save(student, buffer)
    found = reading.read(buffer, which="anchor", num_heads=4)
    assert torch.equal(found.encoder["norm.bias"], GOOD["norm.bias"])
    torch.save({"model": GOOD | {"module.norm.bias": torch.zeros(48)}}, buffer)
    with pytest.raises(UserError, match="twice, with and without a wrapper's prefix"):
        reading.read(buffer)
