"""Crops made once: found, aligned, compressed, and kept in Arrow files that are read by mapping.

A set of crops is a folder of parts. A part appears whole or not at all, so an interrupted run goes
on with the first part that is not there.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pyarrow as pa

from vafer.crops import GREY_WEIGHTS, CropSpec, Patch, cut, warp
from vafer.datasets.labels import Dataset
from vafer.errors import UsageError
from vafer.files import write_whole
from vafer.labelled import FaceFinder, digest_of, hints, pictures

CROPS_IN_A_PART = 2048  # of single pictures; a video is a part of its own
CROPS_AT_ONCE = 256
JPEG_QUALITY = 95  # within a grey level or two of the crop, at a sixth of its bytes
_SCHEMA = pa.schema([("crop", pa.binary()), ("way", pa.string())])

# Picture uint8 (H, W, 3) RGB, box (4,) and landmarks (5, 2); each None where there is none.
Labelled = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Part:
    """Pictures whose crops lie in one file.

    n: how many. digest: of all that decides what is in them. faces: reads them.
    """

    n: int
    digest: str
    faces: Callable[[], Iterator[Labelled]]


@dataclass(frozen=True, slots=True)
class CropStore:
    """Compressed crops on disk, mapped into memory. parts: Arrow tables with `crop` and `way`.

    size: side in pixels. channels: 1 grey or 3 RGB. key: of all that decides what they are. ways:
    how each face was found, str (N,), None where there is no crop.
    """

    parts: tuple[pa.Table, ...]
    size: int
    channels: int
    key: str = ""
    ways: np.ndarray = field(init=False)
    _starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        ways = [part["way"].to_numpy(zero_copy_only=False) for part in self.parts]
        starts = np.cumsum([0, *(part.num_rows for part in self.parts)]).tolist()
        object.__setattr__(self, "ways", np.concatenate([np.empty(0, object), *ways]))
        object.__setattr__(self, "_starts", starts)

    def __len__(self) -> int:
        return self._starts[-1]

    def decode(self, index: int) -> np.ndarray:
        """One crop: uint8 (C, S, S)."""
        part = bisect_right(self._starts, int(index)) - 1
        row = int(index) - self._starts[part]
        jpeg = np.frombuffer(self.parts[part]["crop"][row].as_buffer(), np.uint8)
        flag = cv2.IMREAD_GRAYSCALE if self.channels == 1 else cv2.IMREAD_COLOR_RGB
        crop = np.asarray(cv2.imdecode(jpeg, flag))
        return crop[None] if self.channels == 1 else crop.transpose(2, 0, 1)


def parts_of_jpegs(table: str, jpegs: Sequence[bytes]) -> list[Part]:
    """Pictures in memory, each of a face and little else. Reading raises UsageError.

    table: where they are from, for its message.
    """

    def read(start: int) -> Iterator[Labelled]:
        for i, jpeg in enumerate(jpegs[start : start + CROPS_IN_A_PART], start):
            picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            if picture is None:
                raise UsageError(f"{table}: picture {i} cannot be decoded: expected JPEG")
            yield np.asarray(picture), None, None

    def part(start: int) -> Part:
        chunk = jpegs[start : start + CROPS_IN_A_PART]
        digest = hashlib.sha256()
        for jpeg in chunk:
            digest.update(len(jpeg).to_bytes(8, "little") + jpeg)
        return Part(len(chunk), digest.hexdigest(), lambda: read(start))

    return [part(start) for start in range(0, len(jpegs), CROPS_IN_A_PART)]


def parts_of_rows(dataset: Dataset, rows: pl.DataFrame) -> list[Part]:
    """Located rows of a dataset; a change of a file is told by its size."""
    if dataset.frames_in == "videos":
        groups = rows.partition_by("path", maintain_order=True)
    else:
        groups = [rows[i : i + CROPS_IN_A_PART] for i in range(0, len(rows), CROPS_IN_A_PART)]

    def part(group: pl.DataFrame) -> Part:
        def read() -> Iterator[Labelled]:
            for (picture, _), hint in zip(pictures(dataset, group), hints(group), strict=True):
                yield picture, *hint

        return Part(len(group), digest_of(dataset, group), read)

    return [part(group) for group in groups]


def cached_crops(
    name: str,
    parts: Sequence[Part],
    finder: FaceFinder,
    cache: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CropStore:
    """The crops of pictures, from `cache` where they are there, else made and kept there.

    Pictures, detector and crop specification decide whether they fit. Raises UsageError where a
    picture cannot be decoded.
    """
    spec = finder.crop
    key = json.dumps([finder.key, [part.digest for part in parts], JPEG_QUALITY])
    key = hashlib.sha256(key.encode()).hexdigest()
    folder = cache / f"{name}-{key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    total, done = sum(part.n for part in parts), 0
    tables = []
    for i, part in enumerate(parts):
        path = folder / f"{i:05d}.arrow"
        done += part.n
        if not path.is_file():
            _write(path, part, finder)
            on_progress(done, total)
        tables.append(_read(path, part.n))
    return CropStore(tuple(tables), spec.size, 1 if spec.grey else 3, key)


def _read(path: Path, expected: int) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): delete it, it will be made again"
        ) from error
    if table.schema != _SCHEMA or table.num_rows != expected:
        raise UsageError(
            f"{path} holds {table.num_rows} rows of {table.schema.names}, expected {expected} of "
            f"{_SCHEMA.names}: delete it, it will be made again"
        )
    return table


def _write(path: Path, part: Part, finder: FaceFinder) -> None:
    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            for batch in _make_crops(part, finder):
                writer.write_batch(batch)

    write_whole(path, write, is_shared=True)  # two runs may make the same crops


def _make_crops(part: Part, finder: FaceFinder) -> Iterator[pa.RecordBatch]:
    patches: list[Patch] = []
    ways: list[str | None] = []
    for n, (picture, box, landmarks) in enumerate(part.faces(), start=1):
        found = None if picture is None else finder.find(picture, box, landmarks)
        ways.append(found[1] if found else None)
        if picture is not None and found is not None:
            patches.append(cut(picture, found[0], finder.crop.size))
        if len(ways) == CROPS_AT_ONCE or n == part.n:
            crops = iter(_compressed(patches, finder.crop))
            rows = [next(crops) if way else None for way in ways]
            yield pa.record_batch([pa.array(rows, pa.binary()), pa.array(ways, pa.string())],
                                  schema=_SCHEMA)  # fmt: skip
            patches, ways = [], []


def _compressed(patches: list[Patch], spec: CropSpec) -> list[bytes]:
    crops = warp(patches, spec.size)
    if spec.grey:
        crops = (crops * crops.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return [_encode(crop) for crop in crops.round().byte().permute(0, 2, 3, 1).numpy()]


def _encode(crop: np.ndarray) -> bytes:
    if crop.shape[-1] == 3:
        crop = cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY,
               cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # fmt: skip
    _, jpeg = cv2.imencode(".jpg", crop, options)
    return jpeg.tobytes()
