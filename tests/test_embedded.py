"""What ships works as it is: nothing named, nothing downloaded, real faces."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from insightface.model_zoo import get_model
from skimage import data

import vafer
from vafer.faces import Detector
from vafer.labelled import overlap
from vafer.onnx_file import detector_card, onnx_weights_sha256
from vafer.options import Sampling
from vafer.probe import probe
from vafer.search import AGREES
from vafer.store import DEFAULT_MODEL, find_detector
from vafer.table import read_provenance
from vafer.video import VideoReader


@pytest.fixture(scope="module")
def path() -> Path:
    return find_detector(None, on_notice=print)


def test_the_detector_is_small_ours_and_what_insightface_takes_for_scrfd(path: Path) -> None:
    assert path.stat().st_size <= 3_000_000
    card = detector_card(path)
    assert (card["name"], card["licence"]) == (path.stem, "Apache-2.0")
    assert {"held out", "no_face.mp4"} <= {*card["metrics"]}
    network = get_model(str(path), providers=["CPUExecutionProvider"])
    assert network.taskname == "detection"
    assert network.use_kps
    assert network.static_input_size is None


def test_it_finds_a_portrait_with_its_landmarks_in_order(path: Path) -> None:
    found = Detector(path).detect(data.astronaut())  # a NASA portrait, 512 × 512 pixels
    assert len(found) == 1
    assert overlap(found.boxes, np.array([170, 60, 280, 215]))[0] > 0.5
    left, right, nose, mouth_left, mouth_right = found.landmarks[0]
    assert left[0] < nose[0] < right[0]
    assert left[1] < nose[1] < mouth_left[1]
    assert mouth_left[0] < mouth_right[0]


@pytest.mark.parametrize(
    "name", ["smile_cry_smile.mp4", "turning_head.mp4", "portrait_hevc_1080x1920.mp4"]
)
def test_it_finds_the_faces_of_recordings_it_never_saw(name: str, path: Path, shared: Path) -> None:
    detector, reference = Detector(path), Detector(shared / "models" / "scrfd_500m.onnx")
    n = n_found = 0
    for frame in VideoReader(probe(shared / "videos" / name), sampling=Sampling(every=40)):
        faces = detector.detect(frame.image)
        for box in reference.detect(frame.image).boxes:
            n += 1
            n_found += len(faces) > 0 and overlap(faces.boxes, box).max() >= 0.5
    assert n >= 5
    assert n_found == n


def test_without_a_name_the_embedded_two_are_used_said_and_recorded(
    sample: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    out = tmp_path / "results.parquet"
    results = vafer.annotate(sample, out, on_notice=told.append, sampling=Sampling(every=5))
    assert told == [f"model {DEFAULT_MODEL} (embedded, the default), detector "
                    "vafer-faces (embedded, the default)"]  # fmt: skip
    (run,) = read_provenance(out)["runs"]
    for kind, name in (("model", DEFAULT_MODEL), ("detector", "vafer-faces")):
        assert (run[kind]["name"], run[kind]["origin"]) == (name, "embedded")
    has_face = results.table.filter(pl.col("frame_index") < 38)["valence"].is_not_null()
    assert has_face.all()
    assert results.table.filter(pl.col("frame_index") >= 40)["valence"].null_count() == 2


def test_whoever_replaces_the_detector_compares_full_and_search_anew(path: Path) -> None:
    assert onnx_weights_sha256(path) in AGREES  # see docs/performance.md
