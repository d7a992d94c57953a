"""Reconstructions against loops over patches and pixels; as a command and a report make them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

import msn
from msn.cli.main import main
from msn.config.kinds import Config
from msn.data.batch import normalize
from msn.data.sources.digits import Digits
from msn.methods import Method
from msn.methods.mae import MAE, denormalized, normalized
from msn.methods.simmim import SimMIM
from msn.runtime.errors import UserError
from msn.train.build import build_model
from msn.visualize.reconstruction import HIDDEN, Reconstructions, reconstruct
from msn.visualize.sheet import GAP, HEADER, LEAST, sheet
from tests.methods.test_mae import VALUES as MAE_VALUES
from tests.methods.test_mae import mae_config
from tests.support.experiments import changed, write_tiny
from tests.support.simmim import RESNET, simmim_config


def built(method: type[Method], config: Config, channels: int) -> Method:
    """A method whose predictions are far from 0: its last layer has large weights."""
    model = build_model(method, config, channels, 1)
    (*_, last) = (weight for name, weight in model.named_parameters() if "decoder" in name)
    with torch.no_grad():
        last.normal_()
    return model


def tried(model: Method, channels: int, side: int) -> tuple[Reconstructions, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, side, side, channels), dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor([0.4, 0.5, 0.6][:channels]), torch.tensor([0.2, 0.3, 0.25][:channels])
    model.train()
    found = reconstruct(model, images, mean, std, step=5)
    assert found is not None
    assert model.training
    return found, normalize(images, mean, std)


def assert_pictured(found: Reconstructions, masked: Any, pixels: Any, channels: int) -> None:
    """Compare all arrays with loops; `masked` (i, y, x) and `pixels` (i, y, x, c) are functions."""
    count, side, _, _ = found.original.shape
    for i in range(count):
        errors, plain, hidden = [], [], []
        shown = [
            found.original[i, y, x] / 255
            for y in range(side)
            for x in range(side)
            if not masked(i, y, x)
        ]
        color = np.mean(shown, axis=0)
        for y in range(side):
            for x in range(side):
                hidden.append(masked(i, y, x))
                for c in range(channels):
                    truth = found.original[i, y, x, c]
                    if not hidden[-1]:
                        assert found.seen[i, y, x, c] == found.predicted[i, y, x, c] == truth
                        continue
                    guess = pixels(i, y, x, c)
                    assert found.seen[i, y, x, c] == HIDDEN
                    level = min(max(255 * guess, 0), 255)
                    assert abs(found.predicted[i, y, x, c] - level) <= 0.51
                    errors.append((guess - truth / 255) ** 2)
                    plain.append((color[c] - truth / 255) ** 2)
        assert found.masked[i] == pytest.approx(np.mean(hidden))
        assert found.errors[i] == pytest.approx(np.mean(errors), rel=1e-4)
        assert found.plain_errors[i] == pytest.approx(np.mean(plain), rel=1e-6)


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.mark.parametrize(("norm_pix", "channels"), [(False, 1), (True, 1), (True, 3)])
def test_mae(tmp_path: Path, norm_pix: bool, channels: int) -> None:
    model = built(MAE, mae_config(tmp_path, criterion__norm_pix_loss=norm_pix), channels)
    assert isinstance(model, MAE)
    found, images = tried(model, channels, 16)
    kept = model.draw_kept(images, 5)
    with torch.no_grad():
        patches = model.eval().decoder(model.backbone.tokens(images, kept.indices), kept)

    def pixel(i: int, y: int, x: int, c: int) -> float:
        patch = (y // 4) * 4 + x // 4
        place = ((y % 4) * 4 + x % 4) * channels + c
        value = float(patches[i, patch, place])
        if norm_pix:  # by statistics of all values of the original patch
            top, left = y // 4 * 4, x // 4 * 4
            own = images[i, :, top : top + 4, left : left + 4].double().numpy()
            value = value * float(np.sqrt(own.var(ddof=1) + 1e-6)) + float(own.mean())
        return value * STD[c] + MEAN[c]

    def masked(i: int, y: int, x: int) -> bool:
        return (y // 4) * 4 + x // 4 not in kept.indices[i].tolist()

    assert found.masked.tolist() == [0.75] * 3
    assert bool(found.given) == norm_pix
    assert_pictured(found, masked, pixel, channels)


@pytest.mark.parametrize(("encoder", "channels"), [(None, 3), (RESNET, 1)])
def test_simmim(tmp_path: Path, encoder: Any, channels: int) -> None:
    changes = {"meta__encoder": encoder} if encoder else {}
    model = built(SimMIM, simmim_config(tmp_path, **changes), channels)
    assert isinstance(model, SimMIM)
    found, images = tried(model, channels, 32)
    units = model.draw_units(images, 5)
    with torch.no_grad():
        predicted, _ = model.eval().reconstruct(images, units)
    assert not found.given
    assert_pictured(
        found,
        lambda i, y, x: bool(units[i, y // 8, x // 8]),
        lambda i, y, x, c: float(predicted[i, c, y, x]) * STD[c] + MEAN[c],
        channels,
    )


def test_what_is_normalized_can_be_put_back() -> None:
    patches = torch.randn(2, 4, 48, dtype=torch.float64) * 3 + 1
    torch.testing.assert_close(denormalized(normalized(patches), patches), patches)


def test_the_sheet_has_a_row_for_each_image(tmp_path: Path) -> None:
    columns = {name: np.full((2, 16, 16, 1), 10 * i, np.uint8) for i, name in enumerate("abc")}
    columns["b"][1] = 77
    drawn = sheet(columns)
    zoomed = LEAST
    assert drawn.shape == (HEADER + 2 * (zoomed + GAP), GAP + 3 * (zoomed + GAP), 3)
    left, top = GAP + zoomed + GAP, HEADER + zoomed + GAP
    assert (drawn[top : top + zoomed, left : left + zoomed] == 77).all()
    assert (drawn[HEADER : HEADER + zoomed, left : left + zoomed] == 10).all()


# --- of a run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE with a report, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    logging = {
        "probe": {"every": 0, "report": True, "max_images": 100},
        "tensorboard": False,
        "write_tag": "tiny",
    }
    values = changed({**MAE_VALUES, "logging": logging}, folder / "out")
    values["optimization"] = {**values["optimization"], "epochs": 1}
    values["criterion"] = {**values["criterion"], "batch_size": 128}
    (folder / "mae.yaml").write_text(yaml.safe_dump(values))
    return msn.pretrain(folder / "mae.yaml", device="cpu")


@pytest.mark.slow
def test_the_report_of_a_run_has_a_sheet(weights: Path) -> None:
    sheet_path = weights.parent / "tiny-reconstruction.png"
    assert PIL.Image.open(sheet_path).size == (
        GAP + 3 * (LEAST + GAP),
        HEADER + 8 * (LEAST + GAP),
    )
    numbers = json.loads(sheet_path.with_suffix(".json").read_text())
    assert numbers["masked"] == 0.75
    assert len(numbers["images"]["masked_mse"]) == 8


@pytest.mark.slow
def test_the_command_draws_the_same_twice_and_what_python_gives(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["visualize", "reconstruction", "--weights", str(weights), "--images", "4"]
    outs = [tmp_path / name for name in ("a.png", "new/b.png", "c.png")]
    for out, more in zip(outs, ([], [], ["--step", "1"]), strict=True):
        assert main([*words, "--out", str(out), *more, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "75.0% masked; mean squared error" in said
    assert said.endswith(f"wrote {outs[2]}\nwrote {outs[2].with_suffix('.json')}\n")
    first, second, other = (out.read_bytes() for out in outs)
    assert first == second != other
    numbers = json.loads(outs[0].with_suffix(".json").read_text())
    source = Digits(split="val")
    assert numbers["names"] == [source.name(i) for i in (0, 125, 250, 375)]
    held_out = [source.read(i).image.pixels() for i in (0, 125, 250, 375)]
    found = msn.reconstruct(weights, held_out, device="cpu")
    assert numbers["masked_mse"] == pytest.approx(found.errors.mean(), rel=1e-6)
    assert (found.picture() == np.asarray(PIL.Image.open(outs[0]))).all()


@pytest.mark.slow
def test_wrong_requests(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny(tmp_path / "msn.yaml", tmp_path / "msn", optimization__epochs=1)
    of_msn = msn.pretrain(config, device="cpu")
    encoder_alone = tmp_path / "encoder.pth.tar"
    assert main(["import", str(weights), str(encoder_alone), "--as", "official"]) == 0
    capsys.readouterr()
    for change, message in (
        ({"--out": "a.jpg"}, "--out a.jpg: must be a name that ends in .png"),
        ({"--weights": str(of_msn)}, "msn predicts no pixels; give weights of MAE or SimMIM"),
        ({"--weights": str(encoder_alone)}, "does not say how it was trained"),
        ({"--weights": str(tmp_path / "none")}, "no such checkpoint"),
        ({"--images": "0"}, "--images 0: must be a whole number from 1"),
    ):
        options = {"--weights": str(weights), "--out": str(tmp_path / "x.png")} | change
        words = [word for pair in options.items() for word in pair]
        assert main(["visualize", "reconstruction", *words]) == 2, message
        captured = capsys.readouterr()
        assert message.lower() in captured.err.lower()
        assert captured.err.count("\n") == 1
        assert not (tmp_path / "x.png").exists()
    with pytest.raises(UserError, match=r"must be uint8, 16 x 16 px"):
        msn.reconstruct(weights, torch.zeros(1, 8, 8, 1, dtype=torch.uint8), device="cpu")
