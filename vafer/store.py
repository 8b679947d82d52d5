"""Where models come from: embedded in the package, cached on disk, pulled over the network.

vafer's own models ship in `weights/`. The InsightFace packs, which it may not ship, are read from
where insightface keeps them; one that is not there is downloaded, but only when the user names it.
Every file of a pack is held against a pinned SHA-256, a cached one at each use.
"""

import hashlib
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePath, PurePosixPath
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from vafer.errors import ModelError, UsageError

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "faces-alexnet112"

RELEASE_URL = "https://github.com/deepinsight/insightface/releases/download/v0.7"
TIMEOUT_S = 30.0  # for each wait on the network, not for the whole download
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Pack:
    """An InsightFace model pack, of which only the face detector is used."""

    name: str
    archive_bytes: int
    archive_sha256: str
    member: str  # file name of the detector; some archives nest it in a folder
    member_sha256: str

    @property
    def archive_url(self) -> str:
        return f"{RELEASE_URL}/{self.name}.zip"


_SCRFD_10G = "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
_SCRFD_2_5G = "041f73f47371333d1d17a6fee6c8ab4e6aecabefe398ff32cca4e2d5eaee0af9"
_SCRFD_500M = "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a"

# In order of preference when none is named. Each digest stands in several public projects that pin
# this release independently of each other.
PACKS = {
    pack.name: pack
    for pack in (
        Pack(
            name="buffalo_l",
            archive_bytes=288_621_354,
            archive_sha256="80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
            member="det_10g.onnx",
            member_sha256=_SCRFD_10G,
        ),
        Pack(
            name="buffalo_m",
            archive_bytes=275_951_529,
            archive_sha256="d98264bd8f2dc75cbc2ddce2a14e636e02bb857b3051c234b737bf3b614edca9",
            member="det_2.5g.onnx",
            member_sha256=_SCRFD_2_5G,
        ),
        Pack(
            name="buffalo_s",
            archive_bytes=127_607_557,
            archive_sha256="d85a87f503f691807cd8bb97128bdf7a0660326cd9cd02657127fa978bab8b5e",
            member="det_500m.onnx",
            member_sha256=_SCRFD_500M,
        ),
        Pack(
            name="buffalo_sc",
            archive_bytes=14_969_382,
            archive_sha256="57d31b56b6ffa911c8a73cfc1707c73cab76efe7f13b675a05223bf42de47c72",
            member="det_500m.onnx",
            member_sha256=_SCRFD_500M,
        ),
        Pack(
            name="antelopev2",
            archive_bytes=360_662_982,
            archive_sha256="8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
            member="scrfd_10g_bnkps.onnx",
            member_sha256=_SCRFD_10G,
        ),
    )
}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read piece by piece. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embedded_models() -> tuple[str, ...]:
    """The names of the models that ship with vafer, sorted."""
    return tuple(sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))


def find_model(name_or_path: str | Path | None) -> Path:
    """The file of a model: the default one, an embedded one by its name, or any other by its path.

    An embedded name means the embedded model, whatever lies in the working folder: `./name` is the
    file there. Nothing is opened. Raises ModelError.
    """
    wanted = DEFAULT_MODEL if name_or_path is None else str(name_or_path)
    names = embedded_models()
    if wanted in names:
        return WEIGHTS / f"{wanted}.safetensors"
    if name_or_path is not None and (path := _file(wanted)):
        return path
    choices = ", ".join(names) or "none in this installation"
    raise ModelError(
        f"{wanted}: {_missing(wanted, 'model')}; give the path of a .safetensors file, or the name "
        f"of an embedded model ({choices})"
    )


def find_detector(name_or_path: str | Path | None, *, on_notice: Callable[[str], None]) -> Path:
    """The ONNX file of a face detector: by its path, or by the name of an InsightFace pack.

    None takes the first of `PACKS` that is cached. A pack named but not cached is downloaded, after
    `on_notice` was given its licence. A pack's name means the pack, whatever lies in the working
    folder. Raises UsageError when None finds nothing, ModelError for all else.
    """
    if name_or_path is None:
        for pack in PACKS.values():
            if path := cached_pack(pack):
                return path
        raise UsageError(
            "no face detector: none was named, and no InsightFace pack is in "
            f"{_insightface_folder()} or {_cache_folder()}. Name one with --detector: the path of "
            "an ONNX file (SCRFD, or YuNet, which is Apache-2.0), or a pack, which is for "
            f"non-commercial research only and will be downloaded once: {_pack_choices()}"
        )
    wanted = str(name_or_path)
    if wanted in PACKS:
        return cached_pack(PACKS[wanted]) or _pull(PACKS[wanted], on_notice)
    if path := _file(wanted):
        return path
    raise ModelError(
        f"{wanted}: {_missing(wanted, 'detector')}; give the path of an ONNX file, or the name of "
        f"an InsightFace pack: {_pack_choices()}"
    )


def cached_pack(pack: Pack) -> Path | None:
    """The detector of a pack, if it is on this disk; its digest is checked. Raises ModelError."""
    models = _insightface_folder()
    for path in (
        models / pack.name / pack.member,
        models / pack.name / pack.name / pack.member,  # as insightface unpacks a nesting archive
        _cache_folder() / pack.name / pack.member,
    ):
        try:
            found = sha256(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        if found != pack.member_sha256:
            raise ModelError(
                f"{path}: SHA-256 {found}, expected {pack.member_sha256}: damaged, or not the one "
                f"of {pack.name}. Delete it and name --detector {pack.name} to download it anew; "
                "to use it as it is, give its path"
            )
        return path
    return None


def _file(wanted: str) -> Path | None:
    path = Path(wanted)
    try:
        return path if path.is_file() else None
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise ModelError(f"{wanted}: cannot be read: {error.strerror}") from error


def _missing(wanted: str, kind: str) -> str:
    path = PurePath(wanted)
    if Path(wanted).is_dir():
        return f"is a folder, not a {kind} file"
    return f"no such {'file' if path.suffix or len(path.parts) > 1 else kind}"


def _pack_choices() -> str:
    return ", ".join(f"{p.name} ({p.archive_bytes / 1e6:.0f} MB)" for p in PACKS.values())


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError("no home folder to look for detectors in; set HOME") from error


def _insightface_folder() -> Path:
    return _home() / ".insightface" / "models"


def _cache_folder() -> Path:
    # Not insightface's own folder: it takes any folder named like a pack for the whole pack, so one
    # that holds the detector alone would break recognition in the user's other programs.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else _home() / ".cache") / "vafer"


def _pull(pack: Pack, on_notice: Callable[[str], None]) -> Path:
    """Download a pack and keep its detector: all or nothing, even in two processes at once."""
    on_notice(
        f"InsightFace pack {pack.name}: its models are for non-commercial research only "
        "(https://github.com/deepinsight/insightface#license). "
        f"Downloading {pack.archive_bytes / 1e6:.0f} MB from {pack.archive_url}"
    )
    target = _cache_folder() / pack.name / pack.member
    try:
        _cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cache_folder(), prefix=f".{pack.name}-") as folder:
            archive, member = Path(folder) / "archive.zip", Path(folder) / pack.member
            problem = _download(pack, archive) or _unpack(pack, archive, member)
            if problem is None:
                target.parent.mkdir(exist_ok=True)
                member.replace(target)
                return target
    except (OSError, HTTPException, zipfile.BadZipFile, ValueError) as error:
        # ValueError: a redirect to what is no address
        if isinstance(error, HTTPError):
            error.close()
        problem = " ".join(str(error).split()).strip("<>") or type(error).__name__
    raise ModelError(
        f"{pack.archive_url}: {problem}. Nothing was kept. To fetch it by hand, download that file "
        f"({pack.archive_bytes} bytes, SHA-256 {pack.archive_sha256}) and put the {pack.member} "
        f"inside it at {target}"
    )


def _download(pack: Pack, archive: Path) -> str | None:
    """Write the archive of a pack; returns what is wrong with it. Raises OSError, HTTPException."""
    request = urllib.request.Request(pack.archive_url, headers={"User-Agent": "vafer"})
    opener = urllib.request.build_opener(_WebRedirects)
    digest, n_bytes = hashlib.sha256(), 0
    with opener.open(request, timeout=TIMEOUT_S) as response, archive.open("wb") as file:
        while n_bytes <= pack.archive_bytes and (chunk := response.read(CHUNK_BYTES)):
            file.write(chunk)
            digest.update(chunk)
            n_bytes += len(chunk)
    if n_bytes != pack.archive_bytes:
        more = "at least " if n_bytes > pack.archive_bytes else ""
        return f"sent {more}{n_bytes} bytes, expected {pack.archive_bytes}"
    if digest.hexdigest() != pack.archive_sha256:
        return f"sent SHA-256 {digest.hexdigest()}, expected {pack.archive_sha256}"
    return None


def _unpack(pack: Pack, archive: Path, member: Path) -> str | None:
    """Write the detector of a pack; returns what is wrong with it. Raises OSError, BadZipFile."""
    with zipfile.ZipFile(archive) as zipped:
        # Names inside the archive are only compared, never written to: `../` in them is harmless.
        names = [n for n in zipped.namelist() if PurePosixPath(n).name == pack.member]
        if len(names) != 1:
            return f"holds {len(names)} files named {pack.member}, expected 1"
        with zipped.open(names[0]) as source, member.open("wb") as file:
            shutil.copyfileobj(source, file)
    if (found := sha256(member)) != pack.member_sha256:
        return f"holds a {pack.member} with SHA-256 {found}, expected {pack.member_sha256}"
    return None


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does, at most ten and no loop, but only to http and https."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise URLError(f"redirects to {newurl}, expected http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
