"""Released files: downloaded from a real server, which fails in all the ways that servers do."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from msn.cli import main as cli
from msn.interop import zoo
from msn.runtime.errors import UserError

CONTENT = bytes(range(256)) * 20_000  # 5 MB
NAME = "vits16_800ep"
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT for any path.

    Attributes:
        cut: the connection ends after so many bytes.
        ranges: whether it answers a request for a part.
        asked: the Range header of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut: int | None = None
        self.ranges = True
        self.asked: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/msn/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(match[1]) if match and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.cut])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "msn" / "released").glob("*"))


def test_downloads_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        path = zoo.fetch(NAME, address=server.address)
        assert path == tmp_path / "msn" / "released" / f"{NAME}.pth.tar"
        assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert cached(tmp_path) == [f"{NAME}.pth.tar", f"{NAME}.pth.tar.sha256"]


def test_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut = 1_000_000
    with pytest.raises(UserError, match="1,000,000 of 5,120,000 bytes; the same command resumes"):
        zoo.fetch(NAME, address=server.address)
    assert cached(tmp_path) == [f"{NAME}.pth.tar.part"]
    server.cut = 2_500_000
    with pytest.raises(UserError, match="2,500,000 of 5,120,000"):
        zoo.fetch(NAME, address=server.address)
    server.cut = None
    assert zoo.fetch(NAME, address=server.address).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=2500000-"]


def test_begins_anew_where_the_server_knows_no_ranges(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = 1_000_000, False
    with pytest.raises(UserError):
        zoo.fetch(NAME, address=server.address)
    server.cut = None
    assert zoo.fetch(NAME, address=server.address).read_bytes() == CONTENT


def test_a_whole_part_is_taken(server: Server, tmp_path: Path) -> None:
    """Interrupted after the last byte: there is nothing more to ask for."""
    (tmp_path / "msn" / "released").mkdir(parents=True)
    (tmp_path / "msn" / "released" / f"{NAME}.pth.tar.part").write_bytes(CONTENT)
    assert zoo.fetch(NAME, address=server.address).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"SHA-256 is {HASH}, must be 0{{64}}; download it again"):
        zoo.fetch(NAME, address=server.address, expected="0" * 64)
    assert cached(tmp_path) == []
    assert zoo.fetch(NAME, address=server.address, expected=HASH.upper()).exists()


def test_a_file_that_rotted_in_the_cache_is_noticed(server: Server, tmp_path: Path) -> None:
    path = zoo.fetch(NAME, address=server.address)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="remove it to download it again"):
        zoo.fetch(NAME, address=server.address)


def test_a_given_file_takes_the_place_of_the_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(CONTENT)
    path = zoo.fetch(NAME, given=tmp_path / "copy", address=server.address)
    assert path.read_bytes() == CONTENT
    assert server.asked == []
    with pytest.raises(UserError, match="no such file; give a copy"):
        zoo.fetch("vitb4_300ep", given=tmp_path / "none")


def test_no_server_and_no_file_are_said(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=r"the server says 404 .* give it with --from FILE"):
        zoo.fetch(NAME, address=f"{server.address}missing/")
    monkeypatch.setattr(zoo, "ADDRESS", "http://127.0.0.1:1/msn/")
    assert cli.main(["import", f"official:{NAME}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be downloaded" in error
    assert cli.main(["import", "official:vits8"]) == 2
    assert "there are vits16_800ep, vitb16_600ep" in capsys.readouterr().err


def test_the_official_address_of_each_file() -> None:
    assert zoo.ADDRESS == "https://dl.fbaipublicfiles.com/msn/"
    assert [path.name for path in map(zoo.cached_path, zoo.MODELS)] == [
        "vits16_800ep.pth.tar",
        "vitb16_600ep.pth.tar",
        "vitl16_600ep.pth.tar",
        "vitb4_300ep.pth.tar",
        "vitl7_200ep.pth.tar",
    ]
