from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import clips
from vafer.errors import VideoError
from vafer.options import Sampling
from vafer.pictures import numbered_pictures, read_picture
from vafer.probe import probe
from vafer.video import VideoReader


def save(path: Path, number: int, *, width: int = 80, height: int = 60) -> Path:
    cv2.imwrite(str(path), cv2.cvtColor(clips.draw(number, width, height), cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 8..11, whose alphabetic order is not the numeric one."""
    for number in range(8, 12):
        save(tmp_path / f"frame_{number}.png", number)
    (tmp_path / "labels.json").write_text("{}")
    return tmp_path


def test_frames_come_in_numeric_order_with_their_place_as_index(folder: Path) -> None:
    info = probe(folder)
    assert (info.decoder, info.width, info.height, info.pts) == ("pictures", 80, 60, None)
    reader = VideoReader(info)
    frames = list(reader)
    assert [clips.read(frame.image) for frame in frames] == [8, 9, 10, 11]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert all(frame.pts is None and frame.time_s is None for frame in frames)
    assert (reader.n_frames, reader.n_bad_packets, reader.damage) == (4, 0, None)
    assert reader.decoder == "pictures"


def test_digits_alone_win_over_a_prefix(folder: Path) -> None:
    save(folder / "00003.jpg", 3)
    save(folder / "._00004.jpg", 4)
    assert [path.name for path in numbered_pictures(folder)] == ["00003.jpg"]


def test_pictures_under_several_prefixes_are_no_series(folder: Path) -> None:
    save(folder / "other_1.png", 1)
    assert numbered_pictures(folder) == []


def test_two_pictures_of_one_number_are_told(folder: Path) -> None:
    save(folder / "frame_010.jpg", 10)
    found = r"found 1 pair of pictures with one number, such as frame_010\.jpg and frame_10\.png"
    with pytest.raises(VideoError, match=found):
        probe(folder)
    (folder / "frame_010.jpg").unlink()
    (folder / "frame_010.jpg").mkdir()
    assert len(numbered_pictures(folder)) == 4


def test_a_picture_is_a_recording_of_one_frame_without_a_time(tmp_path: Path) -> None:
    path = save(tmp_path / "portrait.JPG", 5)
    info = probe(path)
    assert (info.decoder, info.codec, info.pts, info.fps) == ("pictures", "jpg", None, None)
    (frame,) = VideoReader(info)
    assert clips.read(frame.image) == 5
    assert (frame.index, frame.pts, frame.time_s) == (0, None, None)
    with pytest.raises(VideoError, match="found pictures, expected times"):
        VideoReader(info, sampling=Sampling(fps=1))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(VideoError, match=r"portrait\.JPG: a picture that cannot be decoded"):
        probe(path)
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="the file is empty"):
        probe(path)
    with pytest.raises(VideoError, match="no such file"):
        probe(tmp_path / "missing.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp"])
def test_every_format_is_read_as_rgb(suffix: str, tmp_path: Path) -> None:
    save(tmp_path / f"1.{suffix}", 77)
    (path,) = numbered_pictures(tmp_path)
    image = read_picture(path)
    assert image is not None
    assert clips.read(image) == 77
    assert image.flags.c_contiguous


def test_a_grey_picture_has_three_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.full((4, 6), 200, np.uint8))
    image = read_picture(tmp_path / "1.png")
    assert image is not None
    assert image.shape == (4, 6, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_follows_a_whole_picture_does_not_matter(suffix: str, tmp_path: Path) -> None:
    """Such as the video of a motion photo, in which any bytes occur."""
    path = save(tmp_path / f"1.{suffix}", 77)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\xff\xd9\xff\xda" + bytes(200))
    image = read_picture(path)
    assert image is not None
    assert clips.read(image) == 77
    path.write_bytes(whole[:-30])
    assert read_picture(path) is None


def test_the_thumbnail_of_a_picture_is_not_its_end(tmp_path: Path) -> None:
    path = save(tmp_path / "1.jpg", 77)
    whole = path.read_bytes()
    exif = b"Exif\0\0" + save(tmp_path / "small.jpg", 5, width=16, height=16).read_bytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(whole[:2] + segment + b"\xff\xff\x01\xff\xd0" + whole[2:])  # no lengths
    image = read_picture(path)
    assert image is not None
    assert clips.read(image) == 77
    path.write_bytes(whole[:2] + segment + whole[2 : len(whole) // 2])
    assert read_picture(path) is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("rest", [0.0, 0.6])
def test_a_picture_that_breaks_off_leaves_a_gap(suffix: str, rest: float, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.{suffix}", number)
    broken = tmp_path / f"1.{suffix}"
    data = broken.read_bytes()
    broken.write_bytes(data[: int(len(data) * rest)])
    reader = VideoReader(probe(tmp_path))
    assert [(frame.index, clips.read(frame.image)) for frame in reader] == [(0, 0), (2, 2)]
    assert (reader.n_frames, reader.n_bad_packets) == (2, 1)
    assert reader.damage == f"1 picture cannot be read: 1.{suffix}"


def test_the_first_picture_that_can_be_read_gives_the_size(folder: Path) -> None:
    (folder / "frame_8.png").write_bytes(b"")
    save(folder / "frame_9.png", 9, width=100, height=40)
    info = probe(folder)
    assert (info.width, info.height) == (100, 40)
    assert [frame.image.shape for frame in VideoReader(info)] == [(40, 100, 3)] + [(60, 80, 3)] * 2


def test_no_picture_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="none of its 1 pictures can be read"):
        probe(tmp_path)


def test_every_counts_places(folder: Path) -> None:
    reader = VideoReader(probe(folder), sampling=Sampling(every=2))
    assert [clips.read(frame.image) for frame in reader] == [8, 10]
    assert reader.n_frames == 4


@pytest.mark.parametrize("sampling", [Sampling(fps=5), Sampling(start_s=1), Sampling(end_s=1)])
def test_seconds_are_refused(sampling: Sampling, folder: Path) -> None:
    with pytest.raises(VideoError, match="--every"):
        VideoReader(probe(folder), sampling=sampling)
