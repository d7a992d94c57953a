from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from msn.cli.main import main
from msn.config.load import load_config
from msn.data.image import ArrayImage
from msn.visualize.contact_sheet import DROPPED, contact_sheet
from msn.visualize.sheet import GAP, HEADER, LEAST, PAPER

RECIPE = Path(__file__).parents[2] / "configs/pretrain/msn_vits16.yaml"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_command_writes_a_picture(tmp_path: Path, photo: Path) -> None:
    """Though the data set of the config is not there."""
    out = tmp_path / "views.png"
    assert main(["views", "--fname", str(RECIPE), "--image", str(photo), "--out", str(out)]) == 0
    picture = np.asarray(PIL.Image.open(out))
    assert picture.shape[0] == HEADER + 4 * (224 + GAP)
    assert picture.shape[1] == GAP + 2 * (224 + GAP) + 5 * (96 + GAP)


def test_keys_that_views_do_not_depend_on_are_put_aside(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unfinished config, and the data set of nobody, are no reason to refuse; a typo is."""
    text = "data: {rand_size: 32, rand_views: 2, focal_views: 0, source: folder, num_workers: no}\n"
    text += "meta: {encoder: {patch_size: 8, embed_dim: 8, depth: 1, num_heads: 1}, precision: x}\n"
    (tmp_path / "c.yaml").write_text(text + "criterion: {batch_size: -1}\noptimization: 3\n")
    words = ["views", "--fname", str(tmp_path / "c.yaml"), "--image", str(photo)]
    out = tmp_path / "new" / "views.png"
    words += ["--epochs", "1", "--out", str(out), "data.root_path=~nobody"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert np.asarray(PIL.Image.open(out)).shape == (HEADER + 96 + GAP, GAP + 3 * (96 + GAP), 3)
    for wrong, message in {
        "data.rand_size=4": "data.rand_size",
        "data.rand_sise=32": "did you mean 'rand_size'",
        "meta.sed=3": "did you mean 'seed'",
        "meta.encoder.depth=0": "meta.encoder.depth = 0",
    }.items():
        assert main([*words, wrong]) == 2
        assert message in capsys.readouterr().err


def test_as_many_patches_are_dark_as_are_dropped() -> None:
    config = load_config(RECIPE, ["data.color_jitter=0", "data.grayscale=0", "data.blur=0"])
    white = ArrayImage(np.full((50, 50, 3), 255, np.uint8), 3)
    sheet = contact_sheet(config, white, epochs=1)[HEADER:]
    left = GAP + 224 + GAP
    random = sheet[:224, left : left + 224].reshape(14, 16, 14, 16, 3)
    patches = random.swapaxes(1, 2).reshape(196, -1)
    assert (patches == patches[:, :1]).all()
    assert set(patches[:, 0]) == {255, int(255 * DROPPED)}
    assert (patches[:, 0] == 255).sum() == 166  # floor(196 * .85)
    assert (sheet[:224, GAP : GAP + 224] == 255).all()  # the target is whole


def test_views_of_a_small_encoder_are_magnified_and_their_names_apart() -> None:
    config = load_config(
        RECIPE.parents[1] / "quickstart.yaml", ["data.rand_views=1", "data.focal_views=4"]
    )
    white = ArrayImage(np.full((20, 20, 1), 255, np.uint8), 1)
    sheet = contact_sheet(config, white, epochs=1)
    assert sheet.shape == (HEADER + LEAST + GAP, GAP + 2 * (LEAST + GAP) + 4 * (48 + GAP), 3)
    inked = np.min(sheet[:HEADER], axis=(0, 2)) < 100  # columns of the heading
    for left in (GAP, GAP + LEAST + GAP, GAP + 2 * (LEAST + GAP)):  # a name begins with its view
        assert inked[left : left + 6].any()
        assert not inked[left - GAP : left].any()
    focal = sheet[HEADER:, GAP + 2 * (LEAST + GAP) :]
    white_views = (focal == 255).all(axis=2)
    assert white_views.sum() == 4 * 48 * 48
    assert (focal[~white_views] == PAPER).all()  # each with an edge around it
    assert PAPER <= 220


def test_gray_images_and_no_focal_views() -> None:
    config = load_config(RECIPE, ["data.focal_views=0", "data.rand_views=3"])
    sheet = contact_sheet(config, ArrayImage(np.zeros((9, 9, 1), np.uint8), 1), epochs=2)
    assert sheet.shape == (HEADER + 2 * (224 + GAP), GAP + 4 * (224 + GAP), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"--image": "missing.jpg"},
            "--image missing.jpg: No such file or directory; name another",
        ),
        ({"--image": str(RECIPE)}, "not an image; name another"),
        ({"--out": "views.txt"}, "--out views.txt: must be a name that ends in .png"),
        ({"--epochs": "0"}, "--epochs 0: must be a whole number from 1 to 1,000"),
    ],
)
def test_wrong_requests(
    change: dict[str, str],
    message: str,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "views.png"
    options = {"--fname": str(RECIPE), "--image": str(photo), "--out": str(out)} | change
    assert main(["views", *(word for pair in options.items() for word in pair)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
