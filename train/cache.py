"""Crops made once: detected, aligned, compressed, and kept in Arrow files that are read by mapping.

A set of crops is a folder of parts. A part appears whole or not at all, so an interrupted run goes
on with the first part that is not there.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from vafer.crops import FACE_TEMPLATE, GREY_WEIGHTS, CropSpec, Patch, cut, warp
from vafer.errors import UsageError
from vafer.faces import Detector

CROPS_IN_A_PART = 2048
JPEG_QUALITY = 95  # within a grey level or two of the crop, at a sixth of its bytes
DETECTION_SIDE = 192  # pictures are enlarged to this shorter side, where fewest faces are missed
SURROUNDINGS = 0.25  # of that side, added around the picture for detection
_SCHEMA = pa.schema([("crop", pa.binary()), ("is_aligned", pa.bool_())])


@dataclass(frozen=True, slots=True)
class CropStore:
    """Compressed crops on disk, mapped into memory. parts: Arrow tables with `crop`, `is_aligned`.

    size: side in pixels. channels: 1 grey or 3 RGB.
    """

    parts: tuple[pa.Table, ...]
    size: int
    channels: int

    def __len__(self) -> int:
        return sum(part.num_rows for part in self.parts)

    @property
    def is_aligned(self) -> np.ndarray:
        """Which crops landmarks were found for, bool (N,); the others show the whole picture."""
        return np.concatenate([part["is_aligned"].to_numpy() for part in self.parts])

    def decode(self, index: int) -> np.ndarray:
        """One crop: uint8 (C, S, S)."""
        part, row = divmod(int(index), CROPS_IN_A_PART)
        jpeg = np.frombuffer(self.parts[part]["crop"][row].as_buffer(), np.uint8)
        flag = cv2.IMREAD_GRAYSCALE if self.channels == 1 else cv2.IMREAD_COLOR_RGB
        crop = np.asarray(cv2.imdecode(jpeg, flag))
        return crop[None] if self.channels == 1 else crop.transpose(2, 0, 1)


def cached_crops(
    name: str,
    jpegs: Sequence[bytes],
    detector: Detector,
    spec: CropSpec,
    cache: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CropStore:
    """The crops of pictures, from `cache` where they are there, else made and kept there.

    Pictures, detector and crop specification decide whether they fit. Raises UsageError where a
    picture cannot be decoded.
    """
    pictures = hashlib.sha256()
    for jpeg in jpegs:
        pictures.update(len(jpeg).to_bytes(8, "little") + jpeg)
    of_spec = {k: v for k, v in spec.to_dict().items() if k not in ("mean", "std")}
    key = json.dumps([of_spec, detector.sha256, pictures.hexdigest(), JPEG_QUALITY,
                      DETECTION_SIDE, SURROUNDINGS])  # fmt: skip
    folder = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(jpegs), CROPS_IN_A_PART):
        chunk = jpegs[start : start + CROPS_IN_A_PART]
        path = folder / f"{start // CROPS_IN_A_PART:05d}.arrow"
        if not path.is_file():
            _write(path, _make_crops(name, start, chunk, detector, spec))
            on_progress(start + len(chunk), len(jpegs))
        parts.append(_read(path, len(chunk)))
    return CropStore(tuple(parts), spec.size, 1 if spec.grey else 3)


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
    return table.combine_chunks()


def _write(path: Path, rows: pa.Table) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # two runs may make the same crops
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            writer.write_table(rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_crops(
    name: str, start: int, jpegs: Sequence[bytes], detector: Detector, spec: CropSpec
) -> pa.Table:
    patches: list[Patch] = []
    is_aligned = []
    for i, jpeg in enumerate(jpegs):
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise UsageError(f"picture {start + i} of {name} cannot be decoded: expected JPEG")
        landmarks = find_landmarks(picture, detector)
        is_aligned.append(landmarks is not None)
        if landmarks is None:
            landmarks = np.array(FACE_TEMPLATE) * picture.shape[1::-1]
        whole = np.array([[0, 0, *picture.shape[1::-1]]])
        matrix = spec.matrices(whole, landmarks[None])[0]
        patches.append(cut(picture, matrix, spec.size))
    crops = []
    for first in range(0, len(patches), 256):
        found = warp(patches[first : first + 256], spec.size)
        if spec.grey:
            found = (found * found.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)
        crops += [_encode(c) for c in found.round().byte().permute(0, 2, 3, 1).numpy()]
    return pa.table({"crop": crops, "is_aligned": is_aligned}, schema=_SCHEMA)


def _encode(crop: np.ndarray) -> bytes:
    if crop.shape[-1] == 3:
        crop = cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY,
               cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # fmt: skip
    _, jpeg = cv2.imencode(".jpg", crop, options)
    return jpeg.tobytes()


def find_landmarks(picture: np.ndarray, detector: Detector) -> np.ndarray | None:
    """Landmarks (5, 2) of the best face of a picture that shows little else; None without one."""
    scale = max(1.0, DETECTION_SIDE / min(picture.shape[:2]))
    enlarged = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    pad = round(min(enlarged.shape[:2]) * SURROUNDINGS)
    padded = cv2.copyMakeBorder(enlarged, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    faces = detector.detect(padded)
    if not len(faces) or faces.landmarks is None:
        return None
    # Pixel centres: the middle of the first pixel is 0 before and after enlarging.
    return (faces.landmarks[0] - pad + 0.5) / scale - 0.5
