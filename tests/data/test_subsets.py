import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from msn.data import subsets
from msn.data.sources import Source
from msn.data.subsets import Listed, fetch, official_lists, official_url, read_subset, write_subset
from msn.runtime.errors import UserError
from tests.support.imagenet import make_tree
from tests.support.made import encoded, images
from tests.support.sources import opened

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("imagenet")
    make_tree(root)
    return opened({"root_path": str(root), "image_folder": "images"})


def names(source: Source, indices: np.ndarray) -> list[str]:
    return [source.name(int(index)) for index in indices]


def test_an_official_list(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"n02096294_17.JPEG\r\n\r\n  \nn01440764_3.JPEG\nn02096294/n02096294_3.JPEG")
    assert names(source, read_subset(path, source)) == [
        "n02096294/n02096294_17.JPEG",
        "n01440764/n01440764_3.JPEG",
        "n02096294/n02096294_3.JPEG",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("\n \n", "lists no images"),
        ("n01440764_3.JPEG\n\nn99999999_3.JPEG", "line 3 'n99999999_3.JPEG': its class is unknown"),
        ("n01440764_4.JPEG", "line 1 'n01440764_4.JPEG': no such file"),
        ("n01440764/n01440764_4.JPEG", "line 1 .*: no such file"),
        ("n01440764_3.JPEG\nn01440764/n01440764_3.JPEG", "line 2 .*: is on line 1 too"),
        ("a\nb\nc\nd\ne", "line 3 'c': its class is unknown; and 2 more"),
    ],
)
def test_lines_that_name_no_image(source: Source, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_subset(path, source)


def test_lists_that_are_not_there(source: Source, tmp_path: Path) -> None:
    fetched = tmp_path / "imagenet_subsets" / "imagenet_subsets1" / "1imgs_class.txt"
    for given in ("imagenet_subsets1/1imgs_class.txt", "imagenet_subsets/1imgs_class.txt"):
        with pytest.raises(UserError) as caught:
            read_subset(tmp_path / given, source)
        assert str(caught.value) == (
            f"{tmp_path / given}: no such list of images, nor is it at {fetched}; get it with:"
            f" python -m msn subsets fetch --folder {tmp_path}/imagenet_subsets"
        )
    with pytest.raises(UserError, match=f"^{fetched}: no such list of images; get it with"):
        read_subset(fetched, source)
    with pytest.raises(UserError, match=r"mine\.txt: no such list of images; check --subset-path"):
        read_subset(tmp_path / "mine.txt", source)
    with pytest.raises(UserError, match="cannot be read"):
        read_subset(tmp_path, source)


def test_the_official_paths_find_the_lists_that_were_fetched(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        fetched = tmp_path / f"imagenet_subsets/imagenet_subsets{number}/5imgs_class.txt"
        write_subset(fetched, source, np.array([number]))
    monkeypatch.chdir(tmp_path)
    for given, index in {
        "imagenet_subsets1/5imgs_class.txt": 1,
        "imagenet_subsets2/5imgs_class.txt": 2,
        "imagenet_subsets/5imgs_class.txt": 1,
        "imagenet_subsets/imagenet_subsets2/5imgs_class.txt": 2,
    }.items():
        assert read_subset(Path(given), source).tolist() == [index]
        assert read_subset(tmp_path / given, source).tolist() == [index]


def test_a_list_of_windows_or_of_names_that_are_no_utf8(tmp_path: Path) -> None:
    for name in (b"a\xff.png", "b\u0085.png".encode()):
        path = os.path.join(os.fsencode(tmp_path), b"train", b"ant", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(encoded(images(20)[0]))
    source = opened({"root_path": str(tmp_path)})
    write_subset(tmp_path / "list.txt", source, np.array([1, 0]))
    assert read_subset(tmp_path / "list.txt", source).tolist() == [1, 0]
    text = (tmp_path / "list.txt").read_bytes()
    assert b"ant/a\xff.png\n" in text
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert read_subset(tmp_path / "list.txt", source).tolist() == [1, 0]


def test_a_written_list_reads_back(source: Source, tmp_path: Path) -> None:
    indices = np.array([5, 30, 2])
    path = tmp_path / "new" / "list.txt"
    write_subset(path, source, indices)
    assert path.read_text().splitlines()[0] == "n01440764_38.JPEG"
    assert read_subset(path, source).tolist() == indices.tolist()
    digits = opened({"source": "digits"})
    write_subset(path, digits, indices)
    assert read_subset(path, digits).tolist() == indices.tolist()


def test_the_manifest_is_that_of_the_official_lists() -> None:
    lists = official_lists()
    assert len(lists) == 10
    assert [listed.lines for listed in lists] == [
        *(1000, 12811, 2000, 5000),
        *(1000, 2000, 5000),
        *(1000, 2000, 5000),
    ]
    assert lists[-1].name == "imagenet_subsets3/3imgs_class.txt"
    assert lists[-1].images_per_class == 5
    page = (ROOT / "imagenet_subsets" / "README.md").read_text()
    for listed in lists:
        numbers = f"{listed.images_per_class} | {listed.lines:,}"
        assert f"| `{listed.name}` | {numbers} | `{listed.sha256}` |" in page
    commit = "4388dc1eadbe3042b85d3296d41b9b207656e043"
    assert official_url() == f"https://raw.githubusercontent.com/facebookresearch/msn/{commit}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Lists like the official ones, and the manifest of them."""
    contents = {
        f"imagenet_subsets{draw}/{count}imgs_class.txt": f"n{draw}_{count}.JPEG\n".encode()
        for draw in (1, 2)
        for count in (1, 2)
    }
    manifest = [
        Listed(name, 1, 1, len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    ]
    monkeypatch.setattr(subsets, "official_lists", lambda: manifest)
    for name, content in contents.items():
        path = tmp_path / "www" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return contents


@pytest.fixture
def url(lists: dict[str, bytes], tmp_path: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_fetching(lists: dict[str, bytes], url: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    assert fetch(here, f"{url}/") == [here / name for name in lists]
    assert {name: (here / name).read_bytes() for name in lists} == lists


def test_lists_that_are_there_are_left_alone(
    lists: dict[str, bytes], url: str, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    fetch(here, url)
    assert fetch(here, "http://127.0.0.1:1") == []  # stays off the network
    wrong, gone, *_ = (here / name for name in lists)
    wrong.write_bytes(wrong.read_bytes() + b"more\n")
    gone.unlink()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(here, "http://127.0.0.1:1")
    assert fetch(here, url) == [wrong, gone]
    assert {name: (here / name).read_bytes() for name in lists} == lists


@pytest.mark.parametrize("content", [b"other\n", b"", b"n2_2.JPEG\n and more"])
def test_a_list_that_is_another_installs_nothing(url: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "www" / "imagenet_subsets2" / "2imgs_class.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"2imgs_class\.txt: SHA-256 is .* the manifest has"):
        fetch(tmp_path / "here", url)
    assert not (tmp_path / "here").exists()


def test_a_list_that_is_missing_and_no_network(url: str, tmp_path: Path) -> None:
    (tmp_path / "www" / "imagenet_subsets2" / "2imgs_class.txt").unlink()
    with pytest.raises(UserError, match=r"cannot be fetched \(.*\); check the connection"):
        fetch(tmp_path / "here", url)
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(tmp_path / "here", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(tmp_path / "here", "no url")
    assert not (tmp_path / "here").exists()


def test_the_manifest_is_valid_json() -> None:
    text = (ROOT / "src" / "msn" / "data" / "imagenet_subsets.json").read_text()
    assert set(json.loads(text)) == {"repository", "commit", "files"}
