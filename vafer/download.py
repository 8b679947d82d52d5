"""A file from the network, held against a pinned digest. Nothing else in vafer reaches the network.

`urllib` honours the proxies of the environment: `http_proxy`, `https_proxy`, `no_proxy`.
"""

import errno
import hashlib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from vafer.errors import ModelError

TIMEOUT_S = 30.0  # for each wait on the network, not for the whole download
CHUNK_BYTES = 1 << 20
MOST_BYTES = 64 << 20  # of a file whose length is not pinned
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What is to be downloaded, and how it is known to be right.

    digest: hexadecimal, a SHA-256 (64 digits), or a git blob id (40 digits), which covers the
    length too. n_bytes: the length; None where it is not known.
    """

    url: str
    digest: str
    n_bytes: int | None = None

    @property
    def digest_kind(self) -> str:
        return "SHA-256" if len(self.digest) == 64 else "git blob id"

    def digest_of(self, path: Path) -> str:
        """The digest of a file, of the kind that is pinned. Raises OSError."""
        return sha256(path) if len(self.digest) == 64 else git_blob_id(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read piece by piece. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_id(path: Path) -> str:
    """What git calls a file's content: SHA-1 of `blob <length>`, a zero byte, the content.

    Equal to `git hash-object FILE`. Raises OSError.
    """
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def download(
    file: RemoteFile, path: Path, on_bytes: Callable[[int], None] = lambda n_bytes: None
) -> None:
    """Write a remote file to `path`, and check it. Redirects are followed to http and https only.

    on_bytes: is given how many bytes there are by now. What is at `path` after an error is of no
    use. Raises ModelError: no network, another answer than the file, too few or too many bytes,
    another digest, no room on the disk.
    """
    try:
        problem = _fetch(file, path, on_bytes)
    except (OSError, HTTPException, ValueError) as error:
        # ValueError: a redirect to what is no address
        if isinstance(error, HTTPError):
            error.close()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise ModelError(f"{path.parent}: {in_one_line(error)}") from error
        problem = in_one_line(error)
        if isinstance(error, URLError) and (proxy := _proxy_of(file.url)):
            problem += f" (through the proxy {proxy})"
    if problem:
        raise ModelError(f"{file.url}: {problem}")


def _proxy_of(url: str) -> str | None:
    """Host and port of the proxy that the environment names for an address, if any."""
    asked = urlsplit(url)
    if urllib.request.proxy_bypass(asked.netloc):
        return None
    proxy = urllib.request.getproxies().get(asked.scheme)
    return proxy and proxy.rpartition("//")[2].rpartition("@")[2].strip("/")  # no password


def in_one_line(error: Exception) -> str:
    """What an exception says, that of a failed connection without its wrapping, or its kind where
    it says nothing."""
    if isinstance(error, URLError) and isinstance(error.reason, OSError):
        return f"cannot connect: {in_one_line(error.reason)}"
    return " ".join(str(error).split()).strip("<>") or type(error).__name__


def _fetch(file: RemoteFile, path: Path, on_bytes: Callable[[int], None]) -> str | None:
    """Write the file; returns what is wrong with it. Raises OSError, HTTPException, ValueError."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "vafer"})
    opener = urllib.request.build_opener(_WebRedirects)
    limit = MOST_BYTES if file.n_bytes is None else file.n_bytes
    n_bytes = 0
    with opener.open(request, timeout=TIMEOUT_S) as response, path.open("wb") as target:
        expected = response.length if file.n_bytes is None else file.n_bytes
        while n_bytes <= limit and (chunk := response.read(CHUNK_BYTES)):
            target.write(chunk)
            n_bytes += len(chunk)
            on_bytes(n_bytes)
    if n_bytes > limit:
        most = "" if file.n_bytes is not None else "at most "
        return f"sent at least {n_bytes} bytes, expected {most}{limit}"
    if expected is not None and n_bytes != expected:
        return f"sent {n_bytes} bytes, expected {expected}"
    if (found := file.digest_of(path)) != file.digest:
        return f"sent {file.digest_kind} {found} ({n_bytes} bytes), expected {file.digest}"
    return None


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does, at most ten and no loop, but only to http and https, and
    never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        expected = ("https",) if urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in expected:
            raise URLError(f"redirects to {newurl}, expected {' or '.join(expected)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
