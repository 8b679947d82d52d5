"""What models and detectors there are, and what each says of itself."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vafer import store
from vafer.download import sha256
from vafer.errors import ModelError, UsageError, why_unreadable
from vafer.onnx_file import detector_card, onnx_weights_sha256
from vafer.remote import PACKS, PAIRS, Pack, Pair

Kind = Literal["model", "detector"]
OF_WEIGHTS = "of weights"  # a fact, below SHA-256


@dataclass(frozen=True, slots=True)
class Entry:
    """A model or detector that vafer knows by name.

    n_bytes: of the file; of the download where it is remote. scores: short, empty where none are
    known. is_default: it is used when none is named. problem: why it cannot be used, if so.
    """

    name: str
    kind: Kind
    where: Literal["embedded", "cached", "remote"]
    n_bytes: int
    licence: str
    scores: tuple[str, ...] = ()
    is_default: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Info:
    """What a file, or what could be pulled, is: facts in words, then what its card holds.

    training, metrics, text: as in `ModelCard`.
    """

    facts: dict[str, str]
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def entries() -> list[Entry]:
    """All that vafer knows by name: models, then detectors, the embedded ones first.

    The network is not touched, and a damaged file is an entry with its problem.
    """
    return [
        *(_embedded(name, "model") for name in store.embedded_models()),
        *map(_remote, PAIRS.values()),
        *(_embedded(name, "detector") for name in store.embedded_detectors()),
        *map(_remote, PACKS.values()),
    ]


def info(name_or_path: str) -> Info:
    """What is known of a model or detector: a name, a file, or a run folder of `vafer train`.

    The network is not touched. Raises ModelError, UsageError where there is nothing of that name.
    """
    if name_or_path in store.embedded_models():
        return _model_info(store.WEIGHTS / f"{name_or_path}.safetensors", "embedded")
    if name_or_path in store.embedded_detectors():
        return _detector_info(store.WEIGHTS / f"{name_or_path}.onnx", "embedded")
    if item := store.remote(name_or_path):
        path = store.cached(item)
        if path is None:
            return _remote_info(item)
        return _model_info(path, "cached") if isinstance(item, Pair) else _pack_info(item, path)
    path = Path(name_or_path)
    try:
        is_folder = bool(name_or_path) and path.is_dir()
        is_run = is_folder and (path / store.OF_A_RUN).is_file()
        is_file = is_run or path.is_file()
    except OSError as error:
        why = why_unreadable(path, error)
        raise UsageError(f"{name_or_path}: cannot be read: {why}") from error
    if is_run:
        path /= store.OF_A_RUN
    elif is_folder:
        raise UsageError(f"{name_or_path} is a folder without a model.safetensors: no run folder")
    if not is_file:
        names = ", ".join(entry.name for entry in entries())
        raise UsageError(
            f"{name_or_path or repr(name_or_path)}: no such file, and no name that vafer knows. "
            f"Expected a .safetensors or .onnx file, a run folder, or one of {names}"
        )
    ending = path.suffix.lower()
    if ending == ".onnx":
        return _detector_info(path)
    if problem := store.NO_MODELS.get(ending):
        raise UsageError(f"{name_or_path}: {problem}")
    if ending == ".safetensors" or _is_safetensors(path):
        return _model_info(path)
    return _detector_info(path)


def _is_safetensors(path: Path) -> bool:
    """By its content: the length of a header in JSON, and the header."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {why_unreadable(path, error)}") from error


OF_DETECTORS = {"recall": "recall", "false_per_100": "false"}


def short_scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Of each set: CCC of valence and arousal, or what matters of a detector, or what is first."""
    for name, found in sorted(metrics.items(), key=lambda item: str(item[0]).casefold()):
        if isinstance(found, Mapping):
            cccs = [
                found[dimension].get("ccc")
                for dimension in ("valence", "arousal")
                if isinstance(found.get(dimension), Mapping)
            ]
            if any(ccc is not None for ccc in cccs):
                yield f"CCC {' '.join(_ccc(ccc) for ccc in cccs)} {name}"
                continue
            numbers = [key for key, value in found.items() if _is_number(value)]
            told = [key for key in OF_DETECTORS if key in numbers] or numbers[:2]
            shown = [f"{OF_DETECTORS.get(key, key)} {_number(found[key])}" for key in told]
            if shown:
                yield f"{', '.join(shown)} {name}"
        elif _is_number(found):
            yield f"{name} {_number(found)}"


def _ccc(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) or not math.isfinite(value) else f"{value:.3g}"


def _embedded(name: str, kind: Kind) -> Entry:
    suffix = ".safetensors" if kind == "model" else ".onnx"
    path = store.WEIGHTS / f"{name}{suffix}"
    licence, problem = "unknown", None
    scores: tuple[str, ...] = ()
    try:
        licence, metrics = _licence_and_metrics(path, kind)
        scores = tuple(short_scores(metrics))
    except ModelError as error:
        problem = str(error)
    default = store.DEFAULT_MODEL if kind == "model" else store.DEFAULT_DETECTOR
    return Entry(
        name=name,
        kind=kind,
        where="embedded",
        n_bytes=path.stat().st_size,
        licence=licence,
        scores=scores,
        is_default=name == default,
        problem=problem,
    )


def _licence_and_metrics(path: Path, kind: Kind) -> tuple[str, Mapping[str, Any]]:
    if kind == "model":
        from vafer.model import read_card

        card = read_card(path)
        return card.licence, card.metrics
    values = detector_card(path)
    return str(values.get("licence", "unknown")), values.get("metrics", {})


def _remote(item: Pack | Pair) -> Entry:
    kind: Kind = "model" if isinstance(item, Pair) else "detector"
    problem, path = None, None
    try:
        path = store.cached(item)
    except ModelError as error:
        problem = str(error)
    except UsageError:  # there is no home to look in
        pass
    is_here = path is not None or problem is not None
    return Entry(
        name=item.name,
        kind=kind,
        where="cached" if is_here else "remote",
        n_bytes=path.stat().st_size if path else item.n_bytes,
        licence=item.licence,
        problem=problem,
    )


def _file_facts(name: str, kind: str, where: str, path: Path) -> dict[str, str]:
    n_bytes = path.stat().st_size
    return {
        "name": name,
        "kind": kind,
        "where": where,
        "file": str(path),
        "size": f"{n_bytes / 1e6:.1f} MB ({n_bytes:,} bytes)",
        "SHA-256": sha256(path),
    }


def _checked(path: Path, found: Info) -> Info:
    """The same, if its card is of the shape that is expected. Raises ModelError."""
    for name, kind in (("training", dict), ("metrics", dict), ("text", str)):
        value = getattr(found, name)
        if not isinstance(value, kind):
            expected = "text" if kind is str else "a JSON object"
            raise ModelError(f"{path}: {name} in its card is {value!r:.40}, expected {expected}")
    return found


def _model_info(path: Path, where: str = "file") -> Info:
    from vafer.model import load_model, read_weights, weights_sha256

    card, weights = load_model(path).card, read_weights(path)
    n_weights = sum(weight.numel() for weight in weights.values())
    types = ", ".join(sorted({str(weight.dtype).split(".")[-1] for weight in weights.values()}))
    crop = card.crop
    colour = "grey (BT.601 luma)" if crop.grey else "RGB"
    how = {
        "aligned": "aligned by five landmarks",
        "box": f"square around the detector's box, its longer side × {1 + crop.margin:g}",
        "stretched": f"the detector's box, its sides × {1 + crop.margin:g}, stretched to a square",
    }[crop.kind]
    is_default = where == "embedded" and path.stem == store.DEFAULT_MODEL
    found = Info(
        {
            **_file_facts(card.name, "model", _where(where, is_default), path),
            OF_WEIGHTS: weights_sha256(weights),
            "licence": card.licence,
            "network": f"{card.backbone}, features pooled to {card.pool} × {card.pool}",
            "parameters": f"{n_weights:,}, stored as {types}",
            "input": f"{crop.size} × {crop.size} pixels, {colour}, {how}",
            "normalised": f"mean {_triple(crop.mean)}, deviation {_triple(crop.std)}",
        },
        card.training,
        card.metrics,
        card.text,
    )
    return _checked(path, found)


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _where(where: str, is_default: bool) -> str:
    return f"{where}, used when none is named" if is_default else where


def _detector_info(path: Path, where: str = "file") -> Info:
    from vafer.faces import Detector

    card = detector_card(path)
    detector = Detector(path)
    size = detector.fixed_input
    is_default = where == "embedded" and path.stem == store.DEFAULT_DETECTOR
    found = Info(
        {
            **_file_facts(
                str(card.get("name", path.stem)), "detector", _where(where, is_default), path
            ),
            OF_WEIGHTS: onnx_weights_sha256(path),
            "licence": str(card.get("licence", _licence_of(detector.sha256))),
            "family": "YuNet, run by OpenCV"
            if detector.is_yunet
            else "SCRFD, or of its output layout",
            "input": f"{size[0]} × {size[1]} pixels" if size else "any size",
            "landmarks": "five" if detector.has_landmarks else "none",
        },
        card.get("training", {}),
        card.get("metrics", {}),
        card.get("text", ""),
    )
    return _checked(path, found)


def _licence_of(sha256: str) -> str:
    """Of a detector that does not say it: known where it is that of a pack."""
    for pack in PACKS.values():
        if pack.file_sha256 == sha256:
            return _terms_of(pack)
    return "not stated in the file"


def _terms_of(item: Pack | Pair) -> str:
    return f"{item.licence} ({item.terms})"


def _pack_info(pack: Pack, path: Path) -> Info:
    found = _detector_info(path, "cached")
    facts = {**found.facts, "name": pack.name, "licence": _terms_of(pack)}
    return replace(found, facts=facts)


def _remote_info(item: Pack | Pair) -> Info:
    facts = {
        "name": item.name,
        "kind": "model" if isinstance(item, Pair) else "detector",
        "where": "remote: not on this machine",
        "what": item.origin,
        "size": f"{item.n_bytes / 1e6:.0f} MB to download",
        "licence": _terms_of(item),
    }
    for file in item.files:
        name = PurePosixPath(file.url).name
        facts[name] = f"{file.url}\n{file.digest_kind} {file.digest}"
    facts["to pull"] = f"vafer models pull {item.name}"
    facts["kept at"] = str(store.cache_folder() / item.name / item.file_name)
    return Info(facts)
