"""What is remote → the file that vafer uses, in its cache: whole, or not at all."""

import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from vafer.download import NO_ROOM, download, in_one_line, sha256
from vafer.errors import ModelError, OutputError
from vafer.remote import Pack, Pair

TOLD_EVERY = 25 << 20  # bytes of a download
BROKEN_OFF_S = 24 * 3600  # age from which a folder of a download is of one that was killed


class Licence(str):
    """A notice that has a licence to tell, so that it is shown whatever is kept quiet."""


def pull(item: Pack | Pair, cache: Path, on_notice: Callable[[str], None]) -> Path:
    """Download what is named, and keep of it the file that vafer uses, at `<cache>/<name>/`.

    `on_notice` is given the licence first, as a `Licence`, then how far it is. All or nothing, even
    in two processes at once. Raises ModelError.
    """
    files = item.files
    target = cache / item.name / item.file_name
    on_notice(
        Licence(
            f"{item.name}, {item.origin}. Licence: {item.licence} ({item.terms}). "
            f"Downloading {item.n_bytes / 1e6:.0f} MB from "
            f"{' and '.join(file.url for file in files)}"
        )
    )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_broken_off(cache, item.name)
        opened = tempfile.TemporaryDirectory(dir=cache, prefix=f".{item.name}-")
    except OSError as error:
        raise ModelError(
            f"{cache}: nothing can be kept there: {(error.strerror or str(error)).lower()}. Let "
            "$XDG_CACHE_HOME name a folder that can be written"
        ) from error
    try:
        with opened as folder:
            downloaded = [Path(folder) / PurePosixPath(file.url).name for file in files]
            tell, n_before = _teller(item, on_notice), 0
            for file, path in zip(files, downloaded, strict=True):
                download(file, path, partial(tell, n_before))
                n_before += path.stat().st_size
            made = Path(folder) / item.file_name
            _make(item, downloaded, made)
            target.parent.mkdir(exist_ok=True)
            made.replace(target)
            return target
    except (ModelError, OutputError) as error:
        problem = str(error)
    except (OSError, zipfile.BadZipFile) as error:
        is_full = isinstance(error, OSError) and error.errno in NO_ROOM
        problem = f"{cache if is_full else files[0].url}: {in_one_line(error)}"
    raise ModelError(f"{problem}. Nothing was kept. To fetch it by hand, {item.by_hand(target)}")


def _remove_broken_off(cache: Path, name: str) -> None:
    """What was left by processes that were killed."""
    for folder in cache.glob(f".{name}-*"):
        with suppress(OSError):  # another process may be at it
            if time.time() - folder.stat().st_mtime > BROKEN_OFF_S:
                shutil.rmtree(folder, ignore_errors=True)


def _teller(item: Pack | Pair, on_notice: Callable[[str], None]) -> Callable[[int, int], None]:
    """Tells, every `TOLD_EVERY` bytes, how far a download is, given those of earlier files, too."""
    next_at = TOLD_EVERY

    def tell(n_before: int, n_of_file: int) -> None:
        nonlocal next_at
        n_bytes = n_before + n_of_file
        if n_bytes >= next_at:
            next_at = n_bytes + TOLD_EVERY
            on_notice(f"{item.name}: {n_bytes / 1e6:.0f} of {item.n_bytes / 1e6:.0f} MB")

    return tell


def _make(item: Pack | Pair, downloaded: Sequence[Path], path: Path) -> None:
    if isinstance(item, Pack):
        _unpack(item, downloaded[0], path)
    else:
        from vafer.convert import convert  # which imports PyTorch

        convert(downloaded[0], downloaded[1], path)


def _unpack(pack: Pack, archive: Path, path: Path) -> None:
    """Write the detector of a pack. Raises ModelError, OSError, BadZipFile."""
    url = pack.files[0].url
    with zipfile.ZipFile(archive) as zipped:
        # Names inside the archive are only compared, never written to: `../` in them is harmless.
        names = [n for n in zipped.namelist() if PurePosixPath(n).name == pack.file_name]
        if len(names) != 1:
            raise ModelError(f"{url}: holds {len(names)} files named {pack.file_name}, expected 1")
        with zipped.open(names[0]) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
    if (found := sha256(path)) != pack.file_sha256:
        raise ModelError(
            f"{url}: holds a {pack.file_name} with SHA-256 {found}, expected {pack.file_sha256}"
        )
