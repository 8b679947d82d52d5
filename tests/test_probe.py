import io
import os
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips
from vafer import probe as probe_module
from vafer.errors import VideoError, display_path
from vafer.probe import VideoInfo, probe
from vafer.video import VideoReader

INTACT = sorted(clips.RECIPES)
NO_PTS_IN_FFPROBE_5 = {"b.avi", "mpeg2.mpg", "raw.h264"}


@pytest.fixture(scope="module")
def info() -> VideoInfo:
    return probe(clips.clip("b.mp4"))


@pytest.mark.parametrize("name", sorted(set(INTACT) - NO_PTS_IN_FFPROBE_5))
def test_pts_are_those_of_ffprobe(name: str) -> None:
    pts = probe(clips.clip(name)).pts
    assert pts is not None
    assert pts.tolist() == clips.ffprobe_pts(clips.clip(name))


@pytest.mark.parametrize("name", INTACT)
def test_an_intact_file_is_not_called_damaged(name: str) -> None:
    info = probe(clips.clip(name))
    assert (info.damage, info.n_bad_packets) == (None, 0)


def test_what_a_plain_clip_says_of_itself(info: VideoInfo) -> None:
    assert (info.width, info.height, info.rotation) == (160, 120, 0)
    assert (info.codec, info.fps, info.duration_s) == ("h264", 24.0, 2.0)
    assert info.time_base == Fraction(1, 12288)
    assert info.pts is not None
    assert info.pts.tolist() == [512 * index for index in range(48)]
    assert info.time(512) == Fraction(1, 24)
    assert str(info).endswith("b.mp4: h264 160x120 24 fps, 48 frames")


def test_a_raw_stream_has_no_pts() -> None:
    assert probe(clips.clip("raw.h264")).pts is None


@pytest.mark.parametrize("name", ["offset.mp4", "offset.mkv"])
def test_the_start_is_exact(name: str) -> None:
    info = probe(clips.clip(name))
    assert info.start_s == Fraction(11, 2)
    assert info.pts is not None
    assert info.time(int(info.pts[0])) == 0


def test_the_start_is_not_rounded_to_microseconds() -> None:
    info = probe(clips.clip("b.ts"))
    assert info.pts is not None
    assert info.time_base == Fraction(1, 90000)
    assert info.time(int(info.pts[0])) == 0  # libav itself says 1.483333, not 133500/90000


@pytest.mark.parametrize(("name", "turned"), [("90", True), ("180", False), ("270", True)])
def test_width_and_height_are_those_displayed(name: str, turned: bool) -> None:
    info = probe(clips.clip(f"rotate{name}.mp4"))
    assert (info.width, info.height) == ((120, 160) if turned else (160, 120))
    assert info.rotation % 180 == (90 if turned else 0)


def numbers_turned_back(info: VideoInfo) -> list[int]:
    times = info.rotation // 90
    return [clips.read(np.rot90(frame.image, times)) for frame in VideoReader(info)]


@pytest.mark.parametrize("n", [1, 2])
def test_a_recording_shorter_than_what_a_decoder_holds_back_is_turned(
    n: int, tmp_path: Path
) -> None:
    clips.make(tmp_path / "whole.mp4", *clips.X264_B, n=n)
    path = tmp_path / "turned.mp4"
    turn = ("-metadata:s:v:0", "rotate=90")
    clips.run("-i", tmp_path / "whole.mp4", "-c", "copy", *turn, path)
    info = probe(path)
    assert (info.width, info.height) == (120, 160)
    assert numbers_turned_back(info) == [*range(n)]


def test_a_recording_whose_beginning_is_damaged_is_turned(tmp_path: Path) -> None:
    clips.make(tmp_path / "whole.mp4", *clips.X264_B, n=360)
    path = tmp_path / "turned.mp4"
    turn = ("-metadata:s:v:0", "rotate=90")
    clips.run("-i", tmp_path / "whole.mp4", "-c", "copy", *turn, path)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = [(packet.pos, packet.size) for packet in packets[:320]]
    data = bytearray(path.read_bytes())
    for start, size in places:
        data[start : start + size] = bytes(size)
    path.write_bytes(data)
    info = probe(path)
    assert (info.width, info.height) == (120, 160)
    assert numbers_turned_back(info)[-24:] == [*range(336, 360)]


@pytest.mark.parametrize(
    "name",
    # what decord 0.6.0 gets wrong, raises on, or does not know
    ["av1.mp4", "edit_list.mp4", "no_keyframe.mkv", "b.ts", "b.avi", "raw.h264", "hevc10.mp4"],
)
def test_what_decord_gets_wrong_is_left_to_pyav(name: str) -> None:
    assert probe(clips.clip(name)).decoder == "pyav"


@pytest.mark.parametrize("name", ["b.mp4", "vfr.mp4", "rotate90.mp4", "vp9.webm", "b.mkv"])
def test_decord_is_planned_where_it_is_right(name: str) -> None:
    assert probe(clips.clip(name)).decoder == "decord"


def test_decord_is_not_planned_beyond_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips.clip("b.mp4")
    needs = 48 * 160 * 120 * 3 + path.stat().st_size
    monkeypatch.setattr(probe_module, "DECORD_BUDGET_BYTES", needs)
    assert probe(path).decoder == "decord"
    monkeypatch.setattr(probe_module, "DECORD_BUDGET_BYTES", needs - 1)
    assert probe(path).decoder == "pyav"


@pytest.mark.parametrize(
    ("source", "promise"),
    [
        ("b.mkv", "bytes promised by the header"),
        ("b.ts", "last transport packet breaks off"),
        ("b.avi", "of 48 packets promised by the header"),
        ("mpeg2.mpg", "packets corrupt"),
    ],
)
def test_a_truncated_file_is_called_damaged(source: str, promise: str, tmp_path: Path) -> None:
    info = probe(truncated(clips.clip(source), tmp_path))
    assert info.damage is not None
    assert promise in info.damage
    assert info.decoder == "pyav"


def test_a_truncated_mp4_is_called_damaged(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    clips.copy("b.mp4", whole, "-movflags", "+faststart")
    info = probe(truncated(whole, tmp_path))
    assert info.damage is not None
    assert "of 48 packets promised by the header are there" in info.damage


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.85, 0.9])
def test_of_a_truncated_fragmented_mp4_with_sound_all_that_is_there_is_read(
    share: float, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    sound = ["-f", "lavfi", "-i", "sine=220", "-c:a", "aac"]
    fragments = ["-g", "72", "-movflags", "frag_keyframe+empty_moov"]
    frames = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=24"]
    clips.run(*frames, *sound, "-t", "6", "-preset", "ultrafast", *fragments, whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    info = probe(cut)
    assert info.damage is not None
    assert info.damage.startswith("an MP4 that was cut off")
    assert info.pts is not None
    ffprobe = ["ffprobe", "-v", "quiet", "-count_packets", "-select_streams", "v"]
    show = ["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0", cut]
    n = int(subprocess.run([*ffprobe, *show], capture_output=True, check=True).stdout)
    assert len(info.pts) == n
    assert abs(n - 144 * share) < 20


def truncated(path: Path, folder: Path) -> Path:
    """The first two thirds of `path`, in `folder`."""
    cut = folder / f"cut{path.suffix}"
    data = path.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3 // 100 * 100])
    return cut


def test_a_file_without_video_is_refused_by_name(tmp_path: Path) -> None:
    sound = tmp_path / "sound.m4a"
    clips.run("-f", "lavfi", "-t", "0.2", "-i", "sine", sound)
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 50)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, found in [
        (sound, "only audio streams"),
        (text, "no video container"),
        (empty, "the file is empty"),
        (folder, "without a series of numbered pictures"),
        (tmp_path / "missing.mp4", "no such file"),
    ]:
        with pytest.raises(VideoError, match=found) as caught:
            probe(path)
        assert str(caught.value).startswith(display_path(path))
        assert "expected" in str(caught.value)


def test_a_file_that_may_not_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    path = clips.clip("b.mp4")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(VideoError, match="permission denied"):
        probe(path)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.png", tmp_path / "song.mp3"
    clips.run("-i", clips.clip("plain.mp4"), "-frames:v", "1", cover)
    inputs = ("-f", "lavfi", "-t", "0.2", "-i", "sine", "-i", cover, "-map", "0", "-map", "1")
    clips.run(*inputs, "-c:v", "copy", "-disposition:v", "attached_pic", song)
    with pytest.raises(VideoError, match="streams"):
        probe(song)


@pytest.mark.parametrize("name", [b"\xc3\xa9t\xc3\xa9 \xe6\xad\xa3.mp4", b"n\xff\xe9.mp4"])
def test_any_name_can_be_read_and_printed(name: bytes, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(clips.clip("b.mp4").read_bytes())
    str(probe(path)).encode("utf-8")
    path.write_bytes(b"")
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert str(caught.value).encode("utf-8").startswith(os.fsencode(tmp_path))


@pytest.mark.parametrize(
    ("said", "turned", "aspect"),
    [
        ("4/3", 0, 4 / 3),
        ("4/3", 90, 3 / 4),
        ("4/3", 270, 3 / 4),
        ("1/1", 0, 1),
        ("0/1", 0, 1),
        ("100/1", 0, 1),
    ],
)
def test_how_wide_pixels_are_shown(said: str, turned: int, aspect: float, tmp_path: Path) -> None:
    path = clips.make(tmp_path / "a.mp4", *clips.X264, "-vf", f"setsar={said}", n=4)
    if turned:
        flat, path = path, tmp_path / "turned.mp4"
        clips.run("-i", flat, "-c", "copy", "-metadata:s:v:0", f"rotate={turned}", path)
    info = probe(path)
    assert info.rotation % 180 == turned % 180
    assert info.pixel_aspect == pytest.approx(aspect)
    frames = list(VideoReader(info))
    assert {frame.pixel_aspect for frame in frames} == {info.pixel_aspect}
    assert frames[0].image.shape[:2] == (info.height, info.width)  # as it is stored


def test_a_wrong_info_is_refused(info: VideoInfo) -> None:
    assert info.pts is not None
    for wrong in (
        {"rotation": 45},
        {"width": 0},
        {"decoder": "opencv"},
        {"pts": info.pts[::-1].copy()},
        {"pts": info.pts.astype(np.int32)},
        {"time_base": None},
        {"pixel_aspect": 0.0},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            replace(info, **wrong)


REAL = {
    "crowd_1080p.mp4": 105,
    "expressive_33s.mp4": 1008,
    "expressive_talk.mp4": 183,
    "face_then_none_vfr.mov": 169,
    "no_face.mp4": 95,
    "none_then_face_vfr.mov": 169,
    "portrait_hevc_1080x1920.mp4": 502,
    "single_face.mp4": 72,
    "smile_cry_smile.mp4": 472,
    "stage_cuts.mp4": 275,
    "turning_head.mp4": 180,
}
"""Frames as `ffprobe -count_frames` counts them."""


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_real_recording_promises_the_frames_that_ffprobe_decodes(name: str, shared: Path) -> None:
    path = shared / "videos" / name
    info = probe(path)
    assert (info.damage, info.n_bad_packets) == (None, 0)
    assert info.pts is not None
    assert len(info.pts) == REAL[name]
    assert info.pts.tolist() == clips.ffprobe_pts(path)
