"""The page of all pictures: whole, offline, escaped, and without what an encoder lacks."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from msn.cli.main import main
from msn.cli.options.pictures import PICTURES
from msn.cli.visualize import DRAWN
from msn.cli.visualize_all import SHOWS
from msn.interop.weights import Weights
from msn.visualize.index import Entry, index_page
from tests.support.encoders import random_resnet, random_weights
from tests.support.pictures import photographs, saved


def test_texts_are_escaped_and_nothing_is_fetched() -> None:
    page = index_page("<img src=x>", [Entry("map", "a & b")], ["<b>"])
    assert "&lt;img src=x&gt;" in page
    assert "a &amp; b" in page
    assert "&lt;b&gt;" in page
    assert "<img src=x" not in page
    assert not re.search(r"https?:|//|@import|url\(", page)
    assert re.findall(r'(?:src|href)="(.*?)"', page) == ["map.json", "map.png"]


def test_there_is_one_list_of_pictures() -> None:
    assert DRAWN.keys() == PICTURES.keys() == SHOWS.keys()


@pytest.mark.parametrize(
    ("weights", "lacks"),
    [(random_weights(), set()), (random_resnet(), {"attention", "prototypes"})],
    ids=["vit", "resnet"],
)
def test_the_command(
    weights: Weights, lacks: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path / "w&w.pth.tar", weights)
    folder = photographs(tmp_path / "images", *[(20 + i, 30, 3) for i in range(5)])
    words = ["visualize", "all", "--weights", str(file), "--images", str(folder)]
    out = tmp_path / "new" / "pictures"
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    capsys.readouterr()
    names = set(SHOWS) - lacks
    endings = (".png", ".json")
    assert {path.name for path in out.iterdir()} == {
        "index.html",
        *(name + end for name in names for end in endings),
    }
    page = (out / "index.html").read_text("utf-8")
    assert "w&amp;w.pth.tar" in page
    assert all(f"Not drawn: {name}" in page for name in lacks)
    for linked in re.findall(r'(?:src|href)="(.*?)"', page):
        if linked.endswith(".png"):
            assert np.asarray(PIL.Image.open(out / linked)).shape[2] == 3
        else:
            assert json.loads((out / linked).read_text())["weights"] == str(file)
    assert main([*words, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
