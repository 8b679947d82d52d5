"""Pictures and recordings are labelled once; what is judged on is left out."""

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from train.detector import material as material_module
from train.detector.material import HELD_OUT, TABLES, Labelled, load_material
from train.sets import fold_of
from vafer.errors import UsageError
from vafer.sample import write_sample


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    faces, videos = tmp_path_factory.mktemp("faces"), tmp_path_factory.mktemp("videos")
    fer = pl.scan_parquet(shared / "faces" / "fer2013.parquet")
    parts = [fer.filter(pl.col("split") == name).head(12).collect() for name in ("train", "test")]
    pl.concat(parts).write_parquet(faces / "fer2013.parquet")
    lfw = pl.scan_parquet(shared / "faces" / "lfw_expressions.parquet").head(12).collect()
    lfw.write_parquet(faces / "lfw_expressions.parquet")
    write_sample(videos / "sample.mp4", seconds=2)
    (videos / "no_face.mp4").write_bytes(b"is never opened")
    return faces, videos


def test_material_is_labelled_once(folders: tuple[Path, Path], yunet: Path, tmp_path: Path) -> None:
    told: list[str] = []
    material = load_material(*folders, yunet, tmp_path, told.append)
    assert any("sample.mp4" in text for text in told)
    assert not any(name in text for text in told for name in HELD_OUT)
    lfw = pl.read_parquet(folders[0] / "lfw_expressions.parquet")
    n_lfw = sum(fold_of(name, 5) > 0 for name in lfw["identity"])
    assert 0.7 * (12 + n_lfw) <= len(material.portraits) <= 12 + n_lfw
    for one in material.portraits:
        height, width = one.picture().shape[:2]
        assert one.boxes.shape == (1, 4)
        assert one.points.shape == (1, 5, 2)
        assert one.points[0, 0, 0] < one.points[0, 1, 0]
        assert (one.points[0] > -0.1 * width).all()
        assert (one.points[0, :, 1] < 1.1 * height).all()
    assert len(material.frames) == 17  # every third of fifty
    assert sum(f.sure.any() for f in material.frames) >= 10

    assert all(not len(s.boxes) and s.picture().ndim == 3 for s in material.scenery)

    again = load_material(*folders, yunet, tmp_path, told.append)
    assert sum("sample.mp4" in text for text in told) == 1
    assert [f.file for f in again.frames] == [f.file for f in material.frames]
    assert all(
        np.array_equal(a.boxes, b.boxes)
        for a, b in zip(again.portraits, material.portraits, strict=True)
    )


def test_what_is_kept_is_told_by_what_is_in_it_not_by_its_name(
    folders: tuple[Path, Path], yunet: Path, tmp_path: Path
) -> None:
    faces, _ = folders
    two = tmp_path / "videos"
    for day, seconds in (("day1", 2), ("day2", 1)):
        (two / day).mkdir(parents=True)
        write_sample(two / day / "clip.mp4", seconds=seconds)
    material = load_material(faces, two, yunet, tmp_path / "cache", lambda text: None)
    assert len(material.frames) == 17 + 9
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in material_module.TABLES:
        pl.read_parquet(faces / name).head(6).write_parquet(fewer / name)
    again = load_material(fewer, two, yunet, tmp_path / "cache", lambda text: None)
    assert 0 < len(again.portraits) < len(material.portraits)


def test_a_folder_with_nothing_to_train_on_is_refused(
    folders: tuple[Path, Path], yunet: Path, tmp_path: Path
) -> None:
    (tmp_path / "turning_head.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="no recordings to train on"):
        load_material(folders[0], tmp_path, yunet, tmp_path, print)
    for missing in ({"people": tmp_path / "missing"}, {"scenery": [tmp_path / "missing"]}):
        with pytest.raises(UsageError, match=r"missing: no such folder"):
            load_material(*folders, yunet, tmp_path, print, **missing)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"holds no fer2013\.parquet: expected"):
        load_material(tmp_path, folders[1], yunet, tmp_path, print)
    for table in TABLES:
        (tmp_path / table).write_bytes(b"no table")
    with pytest.raises(UsageError, match=r"cannot be used: .* fer2013\.parquet with the columns"):
        load_material(tmp_path, folders[1], yunet, tmp_path, print)


def test_pictures_without_a_face_are_added_and_those_with_one_left_out(
    folders: tuple[Path, Path],
    yunet: Path,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenery = tmp_path / "scenery"
    (scenery / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (800, 1000, 4), dtype=np.uint8)
    cv2.imwrite(str(scenery / "deep" / "with_alpha.png"), noise)
    cv2.imwrite(str(scenery / "grey.PNG"), noise[..., 0])
    cv2.imwrite(str(scenery / "tiny.png"), noise[:20])
    cv2.imwrite(str(scenery / "strip.png"), np.tile(noise[:60], (1, 5, 1)))
    (scenery / "broken.jpg").write_bytes(b"no picture")
    (scenery / "six.jpg").symlink_to(shared / "faces" / "six_faces.jpg")
    without = load_material(*folders, yunet, tmp_path / "cache", print)
    material = load_material(*folders, yunet, tmp_path / "cache", print, scenery=[scenery])
    added = material.scenery[len(without.scenery) :]
    assert [one.picture().shape for one in added] == [(512, 640, 3)] * 2
    assert not any(len(one.boxes) for one in added)

    monkeypatch.setattr(material_module, "SCENERY_SIDE", 300)  # what was kept is not used then
    material = load_material(*folders, yunet, tmp_path / "cache", print, scenery=[scenery])
    assert [one.picture().shape for one in material.scenery[-2:]] == [(240, 300, 3)] * 2

    assert material.face_free == []
    looked_at = load_material(*folders, yunet, tmp_path / "cache", print, face_free=scenery)
    assert len(looked_at.scenery) == len(without.scenery)
    files = {one.file for one in looked_at.face_free}
    assert len(files) == 3  # the six faces, too, of which the teacher is sure
    assert files > {one.file for one in material.scenery[-2:]}
    assert not any(len(one.boxes) for one in looked_at.face_free)

    with pytest.raises(UsageError, match="has no pictures: expected files ending in"):
        load_material(*folders, yunet, tmp_path / "cache", print, scenery=[folders[0]])


def test_photographs_of_people_keep_all_their_faces_and_those_without_are_left_out(
    folders: tuple[Path, Path],
    yunet: Path,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = tmp_path / "people"
    people.mkdir()
    photograph = cv2.imread(str(shared / "faces" / "six_faces.jpg"))
    assert photograph is not None
    height, width = photograph.shape[:2]
    cv2.imwrite(str(people / "a_large.png"), cv2.resize(photograph, (1600, 1600 * height // width)))
    cv2.imwrite(str(people / "b_small.png"), cv2.resize(photograph, (400, 400 * height // width)))
    cv2.imwrite(str(people / "c_nobody.png"), np.full((300, 300, 3), 90, np.uint8))
    cv2.imwrite(str(people / "d_strip.png"), np.full((1, 3000, 3), 90, np.uint8))
    (people / "e_broken.jpg").write_bytes(b"no picture")
    assert load_material(*folders, yunet, tmp_path / "cache", print).people == []
    told: list[str] = []

    def found() -> list[Labelled]:
        cache = tmp_path / "cache"
        return load_material(*folders, yunet, cache, told.append, people=people).people

    large, small = found()
    assert [one.picture().shape[1] for one in (large, small)] == [1280, 400]
    for one in (large, small):
        assert one.sure.sum() == 6
        eyes, box = one.points[one.sure][:, :2], one.boxes[one.sure]
        assert (eyes > box[:, None, :2]).all()
        assert (eyes < box[:, None, 2:]).all()
        assert box.max() <= one.picture().shape[1]
    np.testing.assert_allclose(
        np.sort(large.boxes[large.sure], axis=0) / 1280,
        np.sort(small.boxes[small.sure], axis=0) / 400,
        atol=0.02,
    )
    assert len(found()) == 2
    assert len(told) == 1
    monkeypatch.setattr(material_module, "ENLARGED_TO_FIND", 1.0)  # what was kept is not used then
    found()
    assert len(told) == 2
