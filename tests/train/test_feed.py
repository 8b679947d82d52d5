"""Crops are made once, kept, and fed the same from memory and from disk."""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import polars as pl
import pytest
import torch

from tests.train.toys import CPU, toy_config, toy_faces
from train import cache
from train.cache import CropStore, cached_crops, parts_of_jpegs
from train.config import DataConfig
from train.data import FaceSet, Split
from train.feed import Feed, _left_by_groups, free_memory
from train.sets import (
    EXPRESSION_NORMS,
    FACE_NORMS,
    fold_held_out,
    fold_of,
    load_split,
    split_by_name,
)
from vafer.crops import FACE_TEMPLATE, CropSpec, cut, warp
from vafer.errors import ModelError, UsageError
from vafer.faces import Detector
from vafer.labelled import FaceFinder, detect_near
from vafer.store import DEFAULT_DETECTOR, find_detector, sha256

SPEC = CropSpec(size=64, grey=True)


def crops_of(
    jpegs: list[bytes],
    detector: Detector,
    cache_folder: Path,
    *on_progress: Callable[[int, int], None],
    spec: CropSpec = SPEC,
    name: str = "some",
) -> CropStore:
    finder = FaceFinder(spec, detector, is_cropped=True)
    return cached_crops(name, parts_of_jpegs(name, jpegs), finder, cache_folder, *on_progress)


def landmarks_of(picture: np.ndarray, detector: Detector) -> np.ndarray | None:
    faces = detect_near(picture, None, detector)
    return None if not len(faces) or faces.landmarks is None else faces.landmarks[0]


@pytest.fixture(scope="session")
def jpegs(few_faces: Path) -> list[bytes]:
    return pl.read_parquet(few_faces / "lfw_expressions.parquet")["jpeg"].to_list()


def config(folder: Path, detector: Path | None, tmp_path: Path, **changes: object):
    data = {"dataset": "faces", "root": folder, "detector": detector, "cache": tmp_path,
            "border": 4, **changes}  # fmt: skip
    return toy_config(data=DataConfig(**data))


@pytest.mark.parametrize("grey", [True, False])
def test_crops_are_those_of_annotation(
    grey: bool, jpegs: list[bytes], yunet: Path, tmp_path: Path
) -> None:
    spec, detector = CropSpec(size=64, grey=grey), Detector(yunet)
    store = crops_of(jpegs[:8], detector, tmp_path, spec=spec)
    assert len(store) == 8
    assert (store.ways == "detector").all()
    for i, jpeg in enumerate(jpegs[:8]):
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        matrix = spec.matrices(np.zeros((1, 4)), landmarks_of(picture, detector)[None])[0]
        expected = warp([cut(picture, matrix, 64)], 64)[0]
        found = torch.from_numpy(store.decode(i))
        assert found.shape == ((1, 64, 64) if grey else (3, 64, 64))
        normalised = [spec.normalise(c.expand(1, 3, -1, -1)) for c in (found, expected)]
        apart = (normalised[0] - normalised[1]).abs().mean() * 255 * 0.225
        assert apart < 2  # grey levels: the crop was compressed


def test_crops_are_made_once_and_an_interrupted_job_goes_on(
    jpegs: list[bytes], yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CROPS_IN_A_PART", 10)
    detector = Detector(yunet)
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crops_of(jpegs, detector, tmp_path, interrupt)
    told.clear()
    store = crops_of(jpegs, detector, tmp_path, lambda *a: told.append(a))
    assert told == [(30, 48), (40, 48), (48, 48)]
    assert len(store) == 48
    told.clear()
    crops_of(jpegs, detector, tmp_path, lambda *a: told.append(a))
    assert not told
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [f"0000{i}.arrow" for i in range(5)]
    whole = crops_of(jpegs[:48], detector, tmp_path / "other")
    assert all((whole.decode(i) == store.decode(i)).all() for i in range(48))
    assert len(list(tmp_path.iterdir())) == 2
    crops_of(jpegs, detector, tmp_path, spec=CropSpec(size=32, grey=True))
    assert len(list(tmp_path.iterdir())) == 3  # other crops lie elsewhere


def test_a_damaged_part_and_a_bad_picture_are_named(
    jpegs: list[bytes], yunet: Path, tmp_path: Path
) -> None:
    detector = Detector(yunet)
    crops_of(jpegs[:3], detector, tmp_path)
    (part,) = tmp_path.rglob("*.arrow")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"00000\.arrow cannot be read .*delete it"):
        crops_of(jpegs[:3], detector, tmp_path)
    with pytest.raises(UsageError, match="bad: picture 1 cannot be decoded"):
        crops_of([jpegs[0], b"no picture"], detector, tmp_path, name="bad")


def test_landmarks_are_in_pixels_of_the_small_picture(shared: Path, yunet: Path) -> None:
    """Found in a face shrunk to 48 pixels, they lie where they lie in the large one."""
    picture = cv2.imread(str(shared / "faces" / "six_faces.jpg"), cv2.IMREAD_COLOR_RGB)
    detector = Detector(yunet)
    faces = detector.detect(picture)
    x1, y1, x2, y2 = faces.boxes[0].astype(int)
    side = max(x2 - x1, y2 - y1) + 24
    x, y = (x1 + x2 - side) // 2, (y1 + y2 - side) // 2
    small = cv2.resize(picture[y : y + side, x : x + side], (48, 48), interpolation=cv2.INTER_AREA)
    found = landmarks_of(small, detector)
    assert found is not None
    expected = (faces.landmarks[0] - [x, y] + 0.5) * 48 / side - 0.5
    np.testing.assert_allclose(found, expected, atol=2.5)  # a face of 48 pixels is found roughly
    assert landmarks_of(np.full((48, 48, 3), 90, np.uint8), detector) is None


def test_the_template_is_where_landmarks_lie_in_fer2013(shared: Path, yunet: Path) -> None:
    """FACE_TEMPLATE is a measurement: the mean over FER2013's pictures, within 3 % of a side."""
    fer = pl.scan_parquet(shared / "faces" / "fer2013.parquet").head(300).collect()
    detector = Detector(yunet)
    found = []
    for jpeg in fer["jpeg"]:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        landmarks = landmarks_of(picture, detector)
        if landmarks is not None:
            found.append(landmarks / 48)
    assert len(found) > 250
    np.testing.assert_allclose(np.mean(found, axis=0), FACE_TEMPLATE, atol=0.03)


def test_sets_are_labelled_and_share_no_person(
    few_faces: Path, yunet: Path, tmp_path: Path
) -> None:
    split = load_split(config(few_faces, yunet, tmp_path))
    sets = {f.name: f for f in (*split.train, *split.held_out)}
    assert set(sets) == {"fer_train", "lfw_train", "fer_test", "lfw_test"}
    assert len(sets["fer_train"]) == len(sets["fer_test"]) == 24
    assert len(sets["lfw_train"]) + len(sets["lfw_test"]) == 48
    assert not {*sets["lfw_train"].subjects} & {*sets["lfw_test"].subjects}
    assert split.facts["sets"]["fer_test"]["faces"] == 24
    for faces in sets.values():
        for label, name in zip(faces.labels, faces.expressions, strict=True):
            assert tuple(label) == pytest.approx(EXPRESSION_NORMS[name])
    other = load_split(config(few_faces, yunet, tmp_path, fold=1))
    held_out = [{*s.held_out[1].subjects} for s in (split, other)]
    assert not held_out[0] & held_out[1]


def test_graded_labels_are_half_by_name_and_half_by_posterior(
    few_faces: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(EXPRESSION_NORMS)
    asked: list[np.ndarray] = []

    def all_sad(sets, given, groups, cache, **_):  # type: ignore[no-untyped-def]
        asked.append(groups)
        shares = np.zeros((sum(map(len, sets)), len(given)), np.float32)
        shares[:, given.index("sad")] = 1
        return shares

    monkeypatch.setattr("train.sets.cross_fitted", all_sad)
    split = load_split(config(few_faces, yunet, tmp_path, labels="graded"))
    sad = np.array(FACE_NORMS["sad"])
    for faces in split.train:
        assert faces.posteriors is not None
        for label, shares, name in zip(
            faces.labels, faces.posteriors, faces.expressions, strict=True
        ):
            np.testing.assert_allclose(label, (sad + FACE_NORMS[name]) / 2, atol=1e-6)
            assert shares[names.index("sad")] == (1.0 if name == "sad" else 0.5)
    for faces in split.held_out:  # scored on what they are called
        assert faces.posteriors is None
        assert tuple(faces.labels[0]) == pytest.approx(EXPRESSION_NORMS[faces.expressions[0]])
    fer, lfw = split.train
    assert list(asked[0][len(fer) :]) == list(lfw.subjects)  # a person is in one fold
    assert len({*asked[0][: len(fer)]}) == len(fer)  # each picture by itself
    assert "never saw" in split.facts["labels"]


def test_folds_are_even_and_by_name_alone(shared: Path) -> None:
    lfw = pl.read_parquet(shared / "faces" / "lfw_expressions.parquet", columns=["identity"])
    folds = np.array([fold_of(name, 5) for name in lfw["identity"].unique()])
    assert (np.abs(np.bincount(folds) / len(folds) - 0.2) < 0.02).all()


def test_a_person_on_both_sides_is_refused_by_name() -> None:
    train, test = toy_faces(name="a"), toy_faces(name="b", seed=1)
    Split((train,), (test,), {})
    test.subjects[3] = "a-5"
    with pytest.raises(UsageError, match=r"1 subjects of b are trained on too: a-5\."):
        Split((train,), (test,), {})


def test_labels_that_are_not_finite_are_refused() -> None:
    faces = toy_faces()
    faces.labels[2, 1] = np.nan
    with pytest.raises(UsageError, match="toy has labels that are not finite"):
        Split((faces,), (toy_faces(),), {})
    with pytest.raises(UsageError, match="nothing is held out"):
        Split((toy_faces(),), (), {})


def test_what_is_missing_is_named(tmp_path: Path, yunet: Path) -> None:
    with pytest.raises(UsageError, match=r"fer2013\.parquet is missing: expected it in"):
        load_split(config(tmp_path, yunet, tmp_path))
    (tmp_path / "fer2013.parquet").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"fer2013\.parquet cannot be read as a Parquet table"):
        load_split(config(tmp_path, yunet, tmp_path))
    for table, message in (
        ({"expression": ["sad"]}, r"lacks the columns \['jpeg', 'split'\]"),
        (
            {"expression": ["Sad"], "jpeg": [b""], "split": ["test"]},
            r"has the expressions \['Sad'\]",
        ),
        ({"expression": ["contempt"], "jpeg": [b""], "split": ["test"]}, "has no face to use"),
        ({"expression": ["sad"], "jpeg": ["a"], "split": ["test"]}, "the column jpeg of String"),
        ({"expression": ["sad"], "jpeg": [b""], "split": [1]}, "the column split of Int64: exp"),
        (
            {"expression": ["sad", "sad"], "jpeg": [b"", None], "split": ["test", "test"]},
            "lacks the picture in 1 rows",
        ),
    ):
        pl.DataFrame(table).write_parquet(tmp_path / "fer2013.parquet")
        with pytest.raises(UsageError, match=message):
            load_split(config(tmp_path, yunet, tmp_path))


def test_the_detector_is_the_embedded_one_unless_named(few_faces: Path, tmp_path: Path) -> None:
    split = load_split(config(few_faces, None, tmp_path))
    assert split.facts["detector_sha256"] == sha256(find_detector(None, on_notice=print))
    told: list[str] = []
    load_split(config(few_faces, Path(DEFAULT_DETECTOR), tmp_path), on_notice=told.append)
    assert told == ["faces that have no landmarks are found by vafer-faces (embedded)"]
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        load_split(config(few_faces, tmp_path / "none.onnx", tmp_path))


def test_a_feed_gives_the_same_from_memory_and_from_disk(
    few_faces: Path, yunet: Path, tmp_path: Path
) -> None:
    split = load_split(config(few_faces, yunet, tmp_path))
    whole = [f.crops.decode(int(row)) for f in split.train for row in f.rows]
    orders = [np.array([3, 0, 40]), np.array([7]), *(np.arange(i, i + 4) for i in range(12))]
    for in_memory in ("always", "never", "auto"):
        feed = Feed(split.train, CPU, in_memory)
        assert (feed.decoded is None) == (in_memory == "never")
        assert len(feed) == len(whole)
        batches = list(feed.batches(orders))
        assert len(batches) == len(orders)
        for order, batch in zip(orders, batches, strict=True):
            np.testing.assert_array_equal(batch.numpy(), [whole[i] for i in order])


def test_a_set_too_large_for_the_memory_stays_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = toy_faces()
    monkeypatch.setattr("train.feed.free_memory", lambda device: faces.crops.nbytes * 1.9)
    assert Feed([faces], CPU).decoded is None
    monkeypatch.setattr("train.feed.free_memory", lambda device: faces.crops.nbytes * 2.1)
    assert Feed([faces], CPU).decoded is not None
    monkeypatch.undo()
    assert 1e8 < free_memory(CPU) < 1e14


def test_the_memory_of_a_container_is_not_exceeded(tmp_path: Path) -> None:
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("1:name=systemd:/\n0::/job/step\n")
    assert _left_by_groups(own, groups) == math.inf
    for name, most in (("job/step", "max"), ("job", "5000"), ("", "9000")):
        group = groups / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text("1500\n")
        (group / "memory.stat").write_text("anon 100\ninactive_file 500\n")
    assert _left_by_groups(own, groups) == 4000
    (groups / "job" / "memory.max").write_text("200\n")
    assert _left_by_groups(own, groups) == 0
    own.write_text("12:memory:/docker\n")  # of version 1
    assert _left_by_groups(own, groups) == math.inf


def test_faces_cut_otherwise_are_others(few_faces: Path, yunet: Path, tmp_path: Path) -> None:
    def prints(detector: Path | None) -> list[dict]:
        split = load_split(config(few_faces, detector, tmp_path))
        return [faces.fingerprint() for faces in (*split.train, *split.held_out)]

    assert prints(yunet) == prints(yunet)
    for one, other in zip(prints(yunet), prints(None), strict=True):
        assert one["sha256"] != other["sha256"]


def test_another_card_of_a_detector_cuts_no_other_crops(tmp_path: Path) -> None:
    path = find_detector(None, on_notice=print)
    model = onnx.load(str(path))
    model.metadata_props.add(key="remark", value="reworded")
    onnx.save(model, str(tmp_path / "reworded.onnx"))
    crop = CropSpec(size=64)
    ours, reworded = (
        FaceFinder(crop, Detector(file), is_cropped=True)
        for file in (path, tmp_path / "reworded.onnx")
    )
    assert reworded.key == ours.key
    assert reworded.detector is not None
    reworded.detector.looks_twice = not reworded.detector.looks_twice
    assert reworded.key != ours.key


def test_the_fold_that_a_model_held_out_stands_in_its_card() -> None:
    data = {"dataset": "faces", "fold": 2, "n_folds": 4}
    assert fold_held_out({"procedure": {"data": data}}) == (2, 4)
    for other in ({**data, "dataset": "affectnet"}, {"dataset": "faces"}, {**data, "fold": None}):
        assert fold_held_out({"procedure": {"data": other}}) is None
    assert fold_held_out({}) is None


def test_faces_by_name_are_cut_the_same_in_every_working_folder(
    few_faces: Path, yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faces.yaml").write_text("data: {dataset: synthetic}")
    monkeypatch.chdir(tmp_path)
    crop = CropSpec(size=64, grey=True)
    split = split_by_name(crop, few_faces, yunet, tmp_path, fold=1, n_folds=4, on_notice=print)
    persons = {*split.held_out[1].subjects}
    assert persons
    assert {fold_of(person, 4) for person in persons} == {1}


def test_crops_of_two_sizes_do_not_mix() -> None:
    small = toy_faces()
    large = FaceSet("large", np.zeros((64, 1, 90, 90), np.uint8), small.rows, small.labels,
                    small.subjects, small.expressions)  # fmt: skip
    with pytest.raises(UsageError, match="several shapes"):
        Feed([small, large], CPU)
