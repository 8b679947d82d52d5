"""Which files of a folder are recordings, and what they are called."""

import os
from pathlib import Path

import pytest

import vafer
from vafer.errors import UsageError
from vafer.inputs import Source, find_sources, modified_s, size_bytes
from vafer.options import Sampling


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def videos(*inputs: Path) -> list[str]:
    return [source.video for source in find_sources(inputs)]


def test_folders_are_searched_for_known_endings(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b.mp4",
        "a/c.MOV",
        "a/deep/d.webm",
        "notes.txt",
        ".hidden.mp4",
        ".git/e.mp4",
        "._b.mp4",
    )
    assert videos(tmp_path) == ["a/c.MOV", "a/deep/d.webm", "b.mp4"]


def test_a_named_file_is_always_tried_and_called_by_its_name(tmp_path: Path) -> None:
    make(tmp_path, "a/recording.dat")
    assert videos(tmp_path / "a" / "recording.dat") == ["recording.dat"]


def test_a_folder_of_numbered_pictures_is_a_recording(tmp_path: Path) -> None:
    make(
        tmp_path,
        "clips/001/00000.png",
        "clips/001/00001.png",
        "clips/002/1.jpg",
        "clips/pics/me.png",
    )
    assert videos(tmp_path) == ["clips/001", "clips/002"]
    assert videos(tmp_path / "clips" / "001") == ["001"]
    assert size_bytes(find_sources([tmp_path / "clips" / "001"])[0]) == 2 * len(
        "clips/001/00000.png"
    )


def test_numbered_pictures_beside_videos_are_none(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "1.jpg", "2.jpg")
    assert videos(tmp_path) == ["a.mp4"]


def test_the_same_file_twice_is_one_recording(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    (tmp_path / "b").mkdir()
    assert videos(tmp_path, tmp_path / "a.mp4", tmp_path / "b" / ".." / "a.mp4") == ["a.mp4"]


def test_two_recordings_of_one_name_are_refused_naming_both(tmp_path: Path) -> None:
    make(tmp_path, "one/a.mp4", "two/a.mp4")
    with pytest.raises(UsageError, match=r"'a\.mp4'.*one/a\.mp4.*two/a\.mp4"):
        videos(tmp_path / "one", tmp_path / "two")


def test_nothing_found_and_missing_inputs_are_errors(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match="no recording found"):
        videos(tmp_path)
    with pytest.raises(UsageError, match="no such file or directory"):
        videos(tmp_path / "missing")
    make(tmp_path, "me.png")
    with pytest.raises(UsageError, match=r"1 picture \(in .* no numbered series\): expected"):
        videos(tmp_path)


def test_pictures_that_are_no_series_are_told_of(tmp_path: Path) -> None:
    make(
        tmp_path,
        "photos/me.png",
        "photos/you.jpg",
        "photos/.hidden.jpg",
        "clip/1.png",
        "video/a.mp4",
        "video/cover.jpg",
    )
    told: list[str] = []
    found = find_sources([tmp_path, tmp_path / "photos" / "me.png"], on_notice=told.append)
    assert [source.video for source in found] == ["clip", "me.png", "video/a.mp4"]
    assert [notice.split(": ")[0] for notice in told] == [
        f"1 picture in {tmp_path}/photos passed over, since there is no numbered series",
        f"1 picture in {tmp_path}/video passed over, since there are videos",
    ]
    told.clear()
    find_sources([tmp_path, tmp_path / "photos"], on_notice=told.append)
    assert len(told) == 2
    assert told[0].startswith(f"2 pictures in {tmp_path}/photos")


def test_pictures_beside_a_series_are_told_of(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "alice.jpg", "frame_1.jpg", ".hidden.jpg", "notes.txt")
    told: list[str] = []
    found = find_sources([tmp_path], on_notice=told.append)
    assert [source.path for source in found] == [tmp_path]
    (notice,) = told
    assert notice.startswith(
        f"2 pictures in {tmp_path} passed over, since there is a numbered series: "
    )


def test_a_series_that_others_make_doubtful_is_told_with_examples(tmp_path: Path) -> None:
    make(
        tmp_path, "clip/frame_1.jpg", "clip/frame_2.jpg", "clip/thumb1.jpg", "clip/me.png", "a.mp4"
    )
    (tmp_path / "clip" / "cover1.jpg").mkdir()
    told: list[str] = []
    assert [s.video for s in find_sources([tmp_path], on_notice=told.append)] == ["a.mp4"]
    (notice,) = told
    assert notice.startswith(
        f"4 pictures in {tmp_path}/clip passed over, since there is more than one series "
        "('frame_1.jpg', 'thumb1.jpg'): "
    )
    make(tmp_path, "clip/b1.png", os.fsdecode(b"clip/\xff1.png"), "clips/other.png")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(UsageError) as error:
        videos(tmp_path)
    assert "but 7 pictures (in " in str(error.value)
    assert "more than one series ('b1.png', 'frame_1.jpg', …)): expected" in str(error.value)
    (tmp_path / "clip" / "frame_1.jpg").rename(tmp_path / "clip" / os.fsdecode(b"a\xff1.jpg"))
    with pytest.raises(UsageError, match=r"series \('a\\xff1\.jpg', 'b1\.png', …\)"):
        videos(tmp_path)


def test_a_folder_is_modified_where_its_pictures_are_renamed(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    source = Source(tmp_path, "v")
    for path in (tmp_path / "1.jpg", tmp_path / "2.jpg", tmp_path):
        os.utime(path, (1_000, 1_000))
    assert modified_s(source) == 1_000
    (tmp_path / "1.jpg").rename(tmp_path / "3.jpg")
    assert modified_s(source) > 1_000
    os.utime(tmp_path, (1_000, 1_000))
    os.utime(tmp_path / "2.jpg", (2_000, 2_000))
    assert modified_s(source) == 2_000
    assert modified_s(Source(tmp_path / "2.jpg", "p")) == 2_000


def test_a_name_that_no_file_can_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="file name too long"):
        videos(tmp_path / ("a" * 300))


def test_a_link_to_nothing_is_told_with_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("gone.mp4")
    with pytest.raises(UsageError, match=r"a\.mp4: links to gone\.mp4: no such file"):
        videos(tmp_path / "a.mp4")


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    make(tmp_path, "store/a.mp4", "in/b.mp4")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert videos(tmp_path / "in") == ["b.mp4", "linked/a.mp4"]


def test_a_name_that_is_no_utf8_is_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    make(tmp_path, name, "été.mp4")
    assert videos(tmp_path) == ["caf\\xe9.mp4", "été.mp4"]


def test_a_pipe_costs_only_itself(
    sample: Path, untrained: Path, yunet: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to(sample)
    for workers in (1, 2):
        results = vafer.annotate(
            tmp_path, model=untrained, detector=yunet, workers=workers, sampling=Sampling(every=25)
        )
        assert results.videos["status"].to_list() == ["failed", "done"]
        assert "a.mp4 is a pipe or a device" in results.videos["error"][0]
