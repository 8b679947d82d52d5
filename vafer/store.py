"""Where models and face detectors come from: embedded in the package, cached on disk, pulled.

vafer's own ship in `weights/`, and they are used when none is named: results must not depend on
what else lies on a machine. What vafer may not ship is read from its cache, and the InsightFace
packs from where insightface keeps them too. One that is not there is downloaded, but only when the
user names it. The file of a pack is held against a pinned SHA-256 at each use.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from vafer.download import sha256 as sha256  # for all who ask what a file is
from vafer.errors import ModelError, UsageError, display_path, why_unreadable
from vafer.pulling import pull
from vafer.remote import PACKS, PAIRS, Pack, Pair

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "vafer-alexnet112"
DEFAULT_DETECTOR = "vafer-faces"

OF_A_RUN = "model.safetensors"  # in its folder

Origin = Literal["embedded", "cached", "file"]

_OF_PYTORCH = (
    "PyTorch's file, expected a .safetensors file that vafer wrote; vafer models convert makes one "
    "of an encoder and a regressor of CAF's authors"
)
NO_MODELS = {  # what is said of a file given as a model, by its ending
    ".onnx": "a detector, not a model: give it with --detector",
    **dict.fromkeys((".pt", ".pth", ".t7"), _OF_PYTORCH),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A model's or a detector's file, and how it was come by.

    origin: `embedded` in the package, `cached` (now pulled or before), or a `file` of the user's.
    is_default: none was named.
    """

    name: str
    path: Path
    origin: Origin
    is_default: bool = False

    def __str__(self) -> str:
        shown = display_path(self.path) if self.origin == "file" else self.name
        return f"{shown} ({self.origin}{', the default' if self.is_default else ''})"


def describe_choice(models: Sequence[Choice], detector: Choice | None) -> str:
    """One line for people, as in `model a (embedded, the default), detector b.onnx (file)`."""
    text = f"model {models[0]}" if len(models) == 1 else f"{len(models)} models"
    return f"{text}, detector {detector}" if detector else text


def embedded_models() -> tuple[str, ...]:
    """The names of the models that ship with vafer, sorted."""
    return _embedded(".safetensors")


def embedded_detectors() -> tuple[str, ...]:
    """The names of the face detectors that ship with vafer, sorted."""
    return _embedded(".onnx")


def is_model_name(name: str) -> bool:
    """Whether this is a model that vafer knows by name, so that no file or folder is meant."""
    return name in PAIRS or name in embedded_models()


def find_model(
    name_or_path: str | Path | None, *, on_notice: Callable[[str], None] = lambda text: None
) -> Path:
    """The file of a model; see `choose_model`."""
    return choose_model(name_or_path, on_notice=on_notice).path


def find_detector(name_or_path: str | Path | None, *, on_notice: Callable[[str], None]) -> Path:
    """The ONNX file of a face detector; see `choose_detector`."""
    return choose_detector(name_or_path, on_notice=on_notice).path


def choose_model(name_or_path: str | Path | None, *, on_notice: Callable[[str], None]) -> Choice:
    """A model: the embedded default for None, else by its name, else by its path.

    A name means what vafer knows by it, whatever lies in the working folder: `./name`, or a Path,
    is the file there. One that is known but not here is downloaded, after `on_notice` was given its
    licence. A path is that of a file, or of a run folder of `vafer train`. Raises ModelError.
    """
    wanted = DEFAULT_MODEL if name_or_path is None else str(name_or_path)
    may_be_name = not isinstance(name_or_path, Path)
    if may_be_name and wanted in embedded_models():
        path = WEIGHTS / f"{wanted}.safetensors"
        return Choice(wanted, path, "embedded", is_default=name_or_path is None)
    if may_be_name and (pair := PAIRS.get(wanted)):
        return Choice(wanted, cached(pair) or _pulled(pair, on_notice), "cached")
    if name_or_path and (file := _file(wanted) or _file(f"{wanted}/{OF_A_RUN}")):
        if problem := NO_MODELS.get(file.suffix.lower()):
            raise ModelError(f"{wanted}: {problem}")
        return Choice(file.stem, file, "file")
    names = ", ".join(embedded_models()) or "none in this installation"
    raise ModelError(
        f"{_missing(wanted, 'model')}; give the path of a .safetensors file or a run folder, the "
        f"name of an embedded model ({names}), or of one to pull ({_sizes(PAIRS.values())})"
    )


def choose_detector(name_or_path: str | Path | None, *, on_notice: Callable[[str], None]) -> Choice:
    """A face detector's ONNX file: the embedded default for None, else by its name, else its path.

    Names are as for models; those that can be pulled are InsightFace's packs. Raises UsageError
    where none was named and none is embedded, ModelError for all else.
    """
    wanted = DEFAULT_DETECTOR if name_or_path is None else str(name_or_path)
    may_be_name = not isinstance(name_or_path, Path)
    if may_be_name and wanted in embedded_detectors():
        return Choice(
            wanted, WEIGHTS / f"{wanted}.onnx", "embedded", is_default=name_or_path is None
        )
    if name_or_path is None:
        raise UsageError(
            f"no face detector: none was named, and this installation has no {DEFAULT_DETECTOR}. "
            "Name one with --detector: the path of an ONNX file (SCRFD, or YuNet, which is "
            "Apache-2.0), or an InsightFace pack, which is for non-commercial research only and "
            f"will be downloaded once: {_sizes(PACKS.values())}"
        )
    if may_be_name and (pack := PACKS.get(wanted)):
        return Choice(wanted, cached(pack) or _pulled(pack, on_notice), "cached")
    if file := _file(wanted):
        if file.suffix.lower() == ".safetensors":
            raise ModelError(f"{wanted} is a model, not a detector: give it with --model")
        return Choice(file.stem, file, "file")
    names = ", ".join(embedded_detectors()) or "none in this installation"
    raise ModelError(
        f"{_missing(wanted, 'detector')}; give the path of an ONNX file, the name of an "
        f"embedded detector ({names}), or of an InsightFace pack: {_sizes(PACKS.values())}"
    )


def pull_named(name: str, *, on_notice: Callable[[str], None]) -> tuple[Path, bool]:
    """What can be pulled by a name: its file, and whether it had to be downloaded.

    Raises UsageError for a name that is not known, ModelError where the download fails.
    """
    item = remote(name)
    if item is None:
        known = _sizes([*PAIRS.values(), *PACKS.values()])
        why = "a file needs no pull" if _file(name) else "nothing of that name can be pulled"
        raise UsageError(f"{name or repr(name)}: {why}; known are {known}")
    found = cached(item)
    return (found, False) if found else (_pulled(item, on_notice), True)


def remote(name: str) -> Pack | Pair | None:
    """What can be pulled by this name, if anything."""
    return PAIRS.get(name) or PACKS.get(name)


def cached(item: Pack | Pair) -> Path | None:
    """The file of what can be pulled, if it is on this disk, and checked.

    In vafer's own cache, else where insightface keeps a pack; what is there and is another, or
    damaged, is passed over. Raises ModelError where vafer's own is, UsageError where there is no
    home to look in.
    """
    own = cache_folder() / item.name / item.file_name
    try:
        is_there = own.exists()
        problem = _damage(item, own) if is_there else None
    except OSError as error:
        raise ModelError(f"{own}: cannot be read: {error.strerror}") from error
    if problem:
        raise ModelError(
            f"{own} is not that of {item.name}, or not whole: {problem}. Delete it and run "
            f"vafer models pull {item.name}; to use it as it is, give its path"
        )
    if is_there:
        return own
    for path in _of_insightface(item):
        with suppress(OSError):
            if path.is_file() and not _damage(item, path):
                return path
    return None


def _of_insightface(item: Pack | Pair) -> tuple[Path, ...]:
    if isinstance(item, Pair):
        return ()
    try:
        models = Path.home() / ".insightface" / "models" / item.name
    except RuntimeError:  # there is no home
        return ()
    # The second is as insightface unpacks an archive that nests its files in a folder.
    return (models / item.file_name, models / item.name / item.file_name)


def _damage(item: Pack | Pair, path: Path) -> str | None:
    """What is wrong with a cached file. Raises OSError."""
    if isinstance(item, Pack):
        found = sha256(path)
        return (
            None if found == item.file_sha256 else f"SHA-256 {found}, expected {item.file_sha256}"
        )
    from vafer.convert import CROP  # which imports PyTorch
    from vafer.model import load_model

    try:
        model = load_model(path)
    except ModelError as error:
        return str(error).removeprefix(f"{path} ").rstrip(".")
    if not model.card.weights_sha256:
        return "it does not say what SHA-256 its weights have"
    blobs = model.card.training.get("git_blob_ids")
    expected = {"encoder": item.encoder_blob, "regressor": item.regressor_blob}
    if blobs != expected:
        made = " and ".join(map(str, blobs.values())) if isinstance(blobs, dict) else "none"
        return (
            f"it calls itself {model.card.name}, made from git blobs {made}, expected "
            f"{' and '.join(expected.values())}"
        )
    if model.card.crop != CROP:
        return "an older vafer made it, with another crop"
    return None


def _pulled(item: Pack | Pair, on_notice: Callable[[str], None]) -> Path:
    return pull(item, cache_folder(), on_notice)


def _embedded(suffix: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in WEIGHTS.glob(f"*{suffix}")))


def _file(wanted: str) -> Path | None:
    path = Path(wanted)
    try:
        return path if path.is_file() else None
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise ModelError(f"{wanted}: cannot be read: {why_unreadable(path, error)}") from error


def _missing(wanted: str, kind: str) -> str:
    """What there is of that name instead."""
    path = PurePath(wanted)
    if not wanted:
        return f"an empty name for a {kind}"
    if Path(wanted).is_dir():
        return f"{wanted} is a folder, not a {kind} file"
    for other, names in (
        ("model", {*PAIRS, *embedded_models()}),
        ("detector", {*PACKS, *embedded_detectors()}),
    ):
        if wanted in names and other == kind:
            return f'no file {wanted}, which a Path means: the {kind} of that name is "{wanted}"'
        if wanted in names:
            return f"{wanted} is a {other}, not a {kind}"
    return f"{wanted}: no such {'file' if path.suffix or len(path.parts) > 1 else kind}"


def _sizes(items: Iterable[Pack | Pair]) -> str:
    return ", ".join(f"{item.name} ({item.n_bytes / 1e6:.0f} MB)" for item in items)


def cache_folder() -> Path:
    """Where vafer keeps what it pulls: `vafer` in $XDG_CACHE_HOME or ~/.cache. Raises UsageError.

    Not insightface's own folder: it takes any folder named like a pack for the whole pack, so one
    that holds the detector alone would break recognition in the user's other programs.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "vafer"
    except RuntimeError as error:
        raise UsageError("no home folder to look for models in; set HOME") from error
