"""Downloads against a local server: right and wrong bytes, redirects, a proxy, no network."""

import hashlib
import subprocess
from collections.abc import Iterator
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest

from tests.servers import Server, serving
from vafer import download as module
from vafer.download import RemoteFile, download, git_blob_id, sha256
from vafer.errors import ModelError

CONTENT = b"weights" * 1000
BLOB = hashlib.sha1(b"blob 7000\0" + CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


def test_a_git_blob_id_is_gits(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    asked = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert git_blob_id(path) == asked.stdout.strip() == BLOB
    path.write_bytes(b"")
    assert git_blob_id(path) == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's empty blob


@pytest.mark.parametrize("digest", [BLOB, hashlib.sha256(CONTENT).hexdigest()])
@pytest.mark.parametrize("n_bytes", [None, len(CONTENT)])
def test_what_is_right_is_written(
    server: Server, tmp_path: Path, digest: str, n_bytes: int | None
) -> None:
    server.serve("/f", status=302, Location=f"{server.url}/there")
    server.serve("/there", CONTENT)
    download(RemoteFile(f"{server.url}/f", digest, n_bytes), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


FLIPPED = b"W" + CONTENT[1:]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"body": FLIPPED}, "sent git blob id "),
        ({"body": FLIPPED}, f"expected {BLOB}"),
        ({"body": CONTENT[:-9], "Content_Length": "7000"}, "sent 6991 bytes, expected 7000"),
        ({"body": CONTENT[:-9]}, "(6991 bytes), expected"),  # the blob id covers the length
        ({"body": CONTENT + b"x"}, "(7001 bytes), expected"),
        ({"body": b"x" * 9001}, "sent at least 9001 bytes, expected at most 9000"),
        ({"body": b""}, "(0 bytes)"),
        ({"status": 404}, "HTTP Error 404"),
        ({"status": 302, "Location": "/f"}, "infinite loop"),
        ({"status": 302, "Location": "file:///etc/hostname"}, "file:///etc/hostname"),
        ({"status": 302, "Location": "ftp://127.0.0.1/x"}, "expected http or https"),
    ],
)
def test_what_is_wrong_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict, says: str
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 9000)
    server.serve("/f", **answer)
    with pytest.raises(ModelError) as caught:
        download(RemoteFile(f"{server.url}/f", BLOB), tmp_path / "f")
    assert str(caught.value).startswith(f"{server.url}/f: ")
    assert says in str(caught.value)


def test_a_pinned_length_bounds_the_download(server: Server, tmp_path: Path) -> None:
    server.serve("/f", CONTENT * 1000)
    file = RemoteFile(f"{server.url}/f", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    with pytest.raises(ModelError, match="sent at least"):
        download(file, tmp_path / "f")
    assert (tmp_path / "f").stat().st_size <= module.CHUNK_BYTES


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9/f: cannot connect: .*refused"):
        download(RemoteFile("http://127.0.0.1:9/f", BLOB), tmp_path / "f")


def test_the_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = "http://models.invalid/f"
    with serving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        proxy.serve(url, CONTENT)  # a proxy is asked for the whole address
        download(RemoteFile(url, BLOB), tmp_path / "f")
        assert proxy.asked == [url]
    assert sha256(tmp_path / "f") == hashlib.sha256(CONTENT).hexdigest()


def test_a_proxy_is_asked_for_a_tunnel_to_an_https_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(ModelError, match=r"models\.invalid/f: .*Tunnel connection failed: 502"):
            download(RemoteFile("https://models.invalid/f", BLOB), tmp_path / "f")
        assert proxy.asked == ["CONNECT models.invalid:443"]


def test_who_speaks_no_tls_is_not_believed(server: Server, tmp_path: Path) -> None:
    server.serve("/f", CONTENT)
    with pytest.raises(ModelError, match="SSL"):
        download(RemoteFile(f"{server.url}/f".replace("http:", "https:"), BLOB), tmp_path / "f")
    assert server.asked == []


def test_no_redirect_leads_from_https_to_http() -> None:
    redirects = module._WebRedirects()
    for old, new, is_followed in (
        ("https", "https", True),
        ("https", "http", False),
        ("http", "http", True),
        ("http", "https", True),
        ("http", "ftp", False),
    ):
        request = Request(f"{old}://models.invalid/f")
        rest = (BytesIO(), 302, "Found", HTTPMessage(), f"{new}://models.invalid/g")
        if is_followed:
            followed = redirects.redirect_request(request, *rest)
            assert followed is not None
            assert followed.full_url == f"{new}://models.invalid/g"
        else:
            with pytest.raises(URLError, match="redirects to"):
                redirects.redirect_request(request, *rest)
