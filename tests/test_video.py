import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests import clips
from vafer import decoders, video
from vafer.container import open_container
from vafer.errors import UsageError, VideoError
from vafer.options import Sampling
from vafer.probe import probe
from vafer.video import Frame, VideoReader

NUMBERED_FROM_0 = sorted(set(clips.RECIPES) - {"edit_list.mp4", "no_keyframe.mkv"})


def read(path: Path, **sampling: Any) -> tuple[list[Frame], VideoReader]:
    reader = VideoReader(probe(path), sampling=Sampling(**sampling))
    return list(reader), reader


def indices(frames: list[Frame]) -> list[int]:
    return [frame.index for frame in frames]


def numbers(frames: list[Frame]) -> list[int]:
    return [clips.read(frame.image) for frame in frames]


@pytest.mark.parametrize("name", [name for name in NUMBERED_FROM_0 if "rotate" not in name])
def test_index_content_and_count_agree(name: str) -> None:
    frames, reader = read(clips.clip(name))
    assert indices(frames) == numbers(frames) == list(range(48))
    assert (reader.n_frames, reader.n_bad_packets, reader.damage) == (48, 0, None)
    assert reader.decoder == reader.info.decoder


@pytest.mark.parametrize(
    "name", ["b.mp4", "b.mkv", "vfr.mp4", "offset.mp4", "b.ts", "rotate90.mp4"]
)
def test_pts_and_time_are_exact(name: str) -> None:
    info = probe(clips.clip(name))
    frames = list(VideoReader(info))
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(clips.clip(name))
    first = frames[0].pts
    assert first is not None
    assert info.time_base is not None
    for frame in frames:
        assert frame.pts is not None
        assert frame.time_s == float((frame.pts - first) * info.time_base)


def test_variable_frame_rate_is_kept() -> None:
    frames, _ = read(clips.clip("vfr.mp4"))
    expected = [float(Fraction(index + 3 * (index // 5), 24)) for index in range(48)]
    assert [frame.time_s for frame in frames] == pytest.approx(expected, abs=1e-9)


def test_frames_of_an_avi_come_at_its_rate() -> None:
    frames, _ = read(clips.clip("b.avi"))
    assert [frame.time_s for frame in frames] == [index / 24 for index in range(48)]


def test_a_stream_without_pts_still_comes_in_order() -> None:
    frames, _ = read(clips.clip("raw.h264"))
    assert numbers(frames) == list(range(48))
    assert {(frame.pts, frame.time_s) for frame in frames} == {(None, None)}


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("name", ["rotate90.mp4", "rotate180.mp4", "rotate270.mp4"])
def test_a_turned_recording_is_shown_as_ffmpeg_shows_it(
    name: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "pyav":
        forbid_decord(monkeypatch)
    path = clips.clip(name)
    frames, reader = read(path)
    assert reader.decoder == decoder
    info = reader.info
    raw = clips.run("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(-1, info.height, info.width, 3)
    for frame, expected in zip(frames, shown, strict=True):
        np.testing.assert_array_equal(frame.image, expected)
        upright = np.rot90(frame.image, info.rotation // 90)  # the picture itself lies on its side
        assert clips.read(upright) == frame.index


@pytest.mark.parametrize("name", ["plain.mp4", "vp9.webm", "full_range.mp4", "bt709.mp4"])
def test_both_decoders_give_the_pixels_of_ffmpeg(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.clip(name)
    by_decord, reader = read(path)
    assert reader.decoder == "decord"
    forbid_decord(monkeypatch)
    by_pyav, reader = read(path)
    assert reader.decoder == "pyav"
    raw = clips.run("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    height, width = reader.info.height, reader.info.width
    expected = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    for one, other, reference in zip(by_decord, by_pyav, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(other.image, reference)
        assert one.image.flags.c_contiguous
        assert other.image.flags.c_contiguous
        assert one.image.dtype == other.image.dtype == np.uint8


@pytest.mark.parametrize("name", ["odd420.webm", "odd444.mp4"])
def test_odd_sizes_have_the_pixels_of_ffmpeg(name: str) -> None:
    path = clips.clip(name)
    frames, _ = read(path)
    raw = clips.run("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(-1, 121, 161, 3)
    for frame, reference in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.image, reference)
        assert frame.image.flags.c_contiguous


def forbid_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(info: object) -> None:
        raise ValueError("no decord here")

    monkeypatch.setattr(video, "open_decord", refuse)


def test_frames_keep_their_pixels_when_the_next_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_decord(monkeypatch)
    held = list(VideoReader(probe(clips.clip("b.mp4"))))
    assert numbers(held) == list(range(48))


def test_an_edit_list_hides_what_it_should() -> None:
    path = clips.clip("edit_list.mp4")
    frames, reader = read(path)
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(path)
    assert numbers(frames) == list(range(32, 48))  # -ss 1.3 at 24 fps: from 31.2 on
    assert indices(frames) == list(range(16))
    assert (reader.decoder, reader.damage) == ("pyav", None)


def test_what_precedes_the_first_keyframe_is_no_frame() -> None:
    path = clips.clip("no_keyframe.mkv")
    frames, reader = read(path)
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(path)
    assert indices(frames) == list(range(len(frames)))
    assert numbers(frames) == list(range(48 - len(frames), 48))
    assert reader.damage is None


def test_a_name_that_is_not_utf8_is_read_by_decord(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff\xe9.mp4"))
    path.write_bytes(clips.clip("b.mp4").read_bytes())
    frames, reader = read(path)
    assert reader.decoder == "decord"
    assert numbers(frames) == list(range(48))


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "12:30.mp4").write_bytes(clips.clip("b.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    frames, reader = read(Path("12:30.mp4"))
    assert (len(frames), reader.decoder) == (48, "decord")


def test_nothing_is_written_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read(clips.clip("b.mp4"))
    read(spoil(clips.clip("b.mp4"), tmp_path / "spoilt.mp4", 24, keep=12))
    assert capfd.readouterr() == ("", "")


# --- damage ---


def spoil(path: Path, target: Path, index: int, *, keep: int) -> Path:
    """A copy of `path` where the packet of frame `index` is overwritten after `keep` bytes."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        packet = sorted(packets, key=lambda packet: packet.pts or 0)[index]
        start, size = packet.pos, packet.size
        assert start is not None
    data = bytearray(path.read_bytes())
    assert bytes(data[start : start + size]) == bytes(packet)
    data[start + keep : start + size] = (b"\x5a\xc3" * size)[: size - keep]
    target.write_bytes(data)
    return target


def test_a_spoilt_keyframe_harms_its_own_group_only(tmp_path: Path) -> None:
    path = spoil(clips.clip("b.mp4"), tmp_path / "spoilt.mp4", 24, keep=12)
    frames, reader = read(path)
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(path)
    assert reader.info.decoder == "decord"  # the container looks whole
    assert reader.decoder == "pyav"
    assert reader.n_bad_packets > 0
    assert reader.damage is not None
    sound = [frame for frame in frames if not 24 <= frame.index < 36]
    assert indices(sound) == numbers(sound) == [*range(24), *range(36, 48)]


def test_what_is_lost_before_the_start_is_not_missing(tmp_path: Path) -> None:
    path = spoil(clips.clip("b.mp4"), tmp_path / "spoilt.mp4", 3, keep=0)
    path = spoil(path, tmp_path / "more.mp4", 47, keep=0)
    frames, reader = read(path, start_s=1.0)
    assert indices(frames) == [*range(24, 47)]
    assert reader.damage is not None
    assert reader.damage.endswith("; 1 of 24 frames that packets are there for cannot be decoded")


def test_a_packet_that_fails_leaves_a_gap(tmp_path: Path) -> None:
    path = spoil(clips.clip("b.mp4"), tmp_path / "spoilt.mp4", 45, keep=0)
    frames, reader = read(path)
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(path)
    assert indices(frames) == numbers(frames) == [*range(45), 46, 47]
    assert (reader.n_frames, reader.n_bad_packets) == (47, 1)
    assert reader.damage is not None
    assert reader.damage.startswith("1 packet failed")
    assert reader.damage.endswith("1 of 48 frames that packets are there for cannot be decoded")


@pytest.mark.parametrize("keyframe_every", [12, 250])
@pytest.mark.parametrize("name", ["b.ts", "b.mkv"])
def test_timestamps_that_begin_again_are_named(
    name: str, keyframe_every: int, tmp_path: Path
) -> None:
    joined = tmp_path / name
    clips.make(joined, *clips.X264_B, "-g", str(keyframe_every))
    joined.write_bytes(3 * joined.read_bytes())
    frames, reader = read(joined)
    assert indices(frames) == list(range(48))
    assert len({frame.pts for frame in frames}) == 48
    assert reader.damage is not None
    assert re.match(r"its timestamps go back at \d places?, as where files were", reader.damage)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_joined_parts_with_times_of_their_own_come_in_the_order_of_time(
    suffix: str, tmp_path: Path
) -> None:
    parts = []
    for start, n in ((0, 24), (10, 48), (0, 48)):
        part = tmp_path / f"{start}.{suffix}"
        clips.make(part, *clips.MPEG2, "-output_ts_offset", str(start), n=n)
        parts.append(part.read_bytes())
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(parts[1] + parts[2])
    frames, reader = read(joined)
    assert indices(frames) == list(range(48, 96))  # those of the second part lie before
    assert numbers(frames) == list(range(48))
    assert reader.damage is not None
    assert reader.damage.startswith("its timestamps go back at 1 place")
    joined.write_bytes(b"".join(parts))
    frames, _ = read(joined, end_s=1.0)
    assert indices(frames) == numbers(frames) == list(range(len(frames)))
    assert len(frames) in (23, 24)  # of a program stream libav guesses times, a frame off
    with pytest.raises(VideoError, match=r"no frame of this .*\(its timestamps go back at 1"):
        read(joined, start_s=1.2, end_s=1.8)


@pytest.mark.parametrize("index", [24, 28, 33])  # a keyframe: the decoder then loses the order
def test_damage_does_not_shift_what_follows(index: int, tmp_path: Path) -> None:
    path = spoil(clips.clip("b.mp4"), tmp_path / "spoilt.mp4", index, keep=0)
    frames, reader = read(path)
    pts = reader.info.pts
    assert pts is not None
    assert reader.n_bad_packets > 0
    assert indices(frames) == sorted(set(indices(frames)))
    assert [frame.pts for frame in frames] == pts[indices(frames)].tolist()
    sound = [frame for frame in frames if frame.index < 24 or frame.index >= 36]
    assert indices(sound) == numbers(sound) == [*range(24), *range(36, 48)]


def test_a_truncated_recording_gives_what_is_left(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    clips.copy("b.mp4", whole, "-movflags", "+faststart")
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    frames, reader = read(cut)
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(cut)
    assert indices(frames) == numbers(frames) == list(range(len(frames)))
    assert 20 < len(frames) < 40
    assert reader.damage is not None
    assert "promised by the header" in reader.damage


@pytest.mark.parametrize("name", ["b.mkv", "b.ts"])
def test_a_truncated_stream_gives_what_is_left(name: str, tmp_path: Path) -> None:
    cut = tmp_path / name
    data = clips.clip(name).read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    frames, reader = read(cut)
    assert indices(frames) == numbers(frames) == list(range(len(frames)))
    assert 20 < len(frames) < 40
    assert reader.damage is not None


def test_no_frame_at_all_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "noise.mkv"
    clips.copy("b.mkv", path, "-bsf:v", "noise=amount=1:drop=key")
    with pytest.raises(VideoError, match=r"noise\.mkv: no frame of this h264 stream"):
        list(VideoReader(probe(path)))


# --- decord gives up on the way ---


class Failing:
    """decord's reader, which after some frames raises, ends, or gives a picture of another size."""

    def __init__(self, reader: Any, n_good: int, how: str) -> None:
        self.reader, self.n_left, self.how = reader, n_good, how

    def next(self) -> Any:
        self.n_left -= 1
        if self.n_left >= 0:
            return self.reader.next()
        if self.how == "raises":
            raise OSError("lost")
        if self.how == "ends":
            raise StopIteration
        return np.zeros((1, 1, 3), np.uint8)


@pytest.mark.parametrize(
    "sampling", [{}, {"every": 5}, {"fps": 10}, {"start_s": 0.3, "end_s": 1.6}]
)
@pytest.mark.parametrize("how", ["raises", "ends", "another size"])
def test_pyav_goes_on_where_decord_gives_up(
    how: str, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.clip("b.mp4")
    whole, _ = read(path, **sampling)
    open_decord = video.open_decord
    monkeypatch.setattr(video, "open_decord", lambda info: Failing(open_decord(info), 17, how))
    frames, reader = read(path, **sampling)
    assert reader.decoder == "decord+pyav"
    assert indices(frames) == numbers(frames) == indices(whole)
    assert [frame.pts for frame in frames] == [frame.pts for frame in whole]
    assert reader.damage is None


def test_decord_is_refused_where_it_sees_other_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    decord = pytest.importorskip("decord")
    monkeypatch.setattr(decord.VideoReader, "__len__", lambda self: 47)
    frames, reader = read(clips.clip("b.mp4"))
    assert reader.decoder == "pyav"
    assert numbers(frames) == list(range(48))


# --- sampling ---


def brute_force(times: list[float], *, fps: float, start_s: float, end_s: float) -> list[int]:
    """The first frame at or after each point of the grid, one point after the other."""
    chosen = []
    for point in range(math.ceil((times[-1] - start_s) * fps) + 1):
        at = start_s + point / fps
        index = next((i for i, time in enumerate(times) if time >= at - 1e-9), None)
        if index is not None and times[index] < end_s:
            chosen.append(index)
    return sorted(set(chosen))


@pytest.mark.parametrize("name", ["b.mp4", "vfr.mp4"])
@pytest.mark.parametrize("fps", [3, 10, 24, 24000 / 1001, 100])
@pytest.mark.parametrize(("start_s", "end_s"), [(None, None), (0.51, 1.7), (1.0, None)])
def test_fps_takes_the_first_frame_after_each_point(
    name: str, fps: float, start_s: float | None, end_s: float | None
) -> None:
    info = probe(clips.clip(name))
    assert info.pts is not None
    sampling = Sampling(fps=fps, start_s=start_s, end_s=end_s)
    frames = list(VideoReader(info, sampling=sampling))
    times = [float(info.time(pts)) for pts in info.pts.tolist()]
    bounds = {"start_s": start_s or 0.0, "end_s": end_s or math.inf}
    assert indices(frames) == numbers(frames) == brute_force(times, fps=fps, **bounds)


def test_fps_equal_to_that_of_the_recording_takes_every_frame(tmp_path: Path) -> None:
    path = clips.make(tmp_path / "ntsc.mp4", rate="24000/1001")
    frames, _ = read(path, fps=24000 / 1001)
    assert indices(frames) == list(range(48))


def test_every_keeps_the_frames_that_the_whole_has() -> None:
    frames, reader = read(clips.clip("b.mp4"), every=7)
    assert indices(frames) == numbers(frames) == [0, 7, 14, 21, 28, 35, 42]
    assert reader.n_frames == 48
    frames, _ = read(clips.clip("b.mp4"), every=7, start_s=0.5, end_s=1.5)
    assert indices(frames) == [14, 21, 28, 35]


def test_frames_that_are_not_wanted_are_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    picture = video.to_rgb

    def count(frame: av.VideoFrame, rotation: int) -> np.ndarray:
        converted.append(frame.pts)
        return picture(frame, rotation)

    monkeypatch.setattr(video, "to_rgb", count)
    frames, _ = read(clips.clip("b.ts"), every=10)
    assert converted == [frame.pts for frame in frames]
    assert len(converted) == 5


@pytest.mark.parametrize("name", ["b.mp4", "b.ts", "offset.mkv"])
def test_start_and_end_are_half_open(name: str) -> None:
    frames, _ = read(clips.clip(name), start_s=0.5, end_s=0.75)
    assert indices(frames) == numbers(frames) == list(range(12, 18))


def test_decoding_stops_at_the_end() -> None:
    _, reader = read(clips.clip("b.ts"), end_s=0.5)
    assert (reader.n_frames, reader.damage) == (12, None)
    _, reader = read(clips.clip("b.mp4"), end_s=0.5)
    assert (reader.n_frames, reader.damage) == (12, None)


def test_a_start_after_the_end_gives_nothing() -> None:
    for name in ("b.mp4", "b.ts"):
        frames, reader = read(clips.clip(name), start_s=60.0)
        assert (frames, reader.damage) == ([], None)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("start", [61, 72, 95, 118])  # within a group, a keyframe, before one, last
def test_seeking_gives_the_frames_that_decoding_all_gives(
    suffix: str, start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_decord(monkeypatch)
    path = clips.make(tmp_path / f"long.{suffix}", *clips.X264_B, n=120)
    info = probe(path)
    assert info.pts is not None
    start_s = float(info.time(int(info.pts[start])))
    reader = VideoReader(info, sampling=Sampling(start_s=start_s))
    frames = list(reader)
    assert indices(frames) == numbers(frames) == list(range(start, 120))
    assert [frame.pts for frame in frames] == info.pts[start:].tolist()
    assert reader.damage is None
    assert reader.n_frames == 120 - start


def test_a_program_stream_is_not_sought(tmp_path: Path) -> None:
    path = tmp_path / "long.mpg"
    clips.make(path, "-c:v", "mpeg1video", "-q:v", "3", "-bf", "2", "-threads", "4", n=120)
    frames, reader = read(path, start_s=2.45, end_s=2.75)
    assert not reader.info.can_seek
    assert indices(frames) == numbers(frames) == list(range(59, 66))
    assert reader.damage is None


def test_frames_with_one_time_have_a_place_each(tmp_path: Path) -> None:
    path, shared = tmp_path / "a.mkv", r"if(eq(mod(N\,10)\,9)\,PREV_OUTPTS\,PTS)"
    clips.copy("plain.mp4", path, "-bsf:v", f"setts=ts={shared}")
    frames, reader = read(path)
    assert len({frame.pts for frame in frames}) == 44
    assert indices(frames) == numbers(frames) == list(range(48))
    assert reader.damage is None


def test_a_seek_that_lands_wrong_is_decoded_from_the_beginning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forbid_decord(monkeypatch)
    path = clips.make(tmp_path / "long.mp4", *clips.X264_B, n=120)
    info = probe(path)
    assert info.pts is not None
    real = open_container
    last = int(info.pts[-1])

    class Astray:
        def __init__(self, container: Any) -> None:
            self.container = container

        def __enter__(self) -> "Astray":
            return self

        def __exit__(self, *args: object) -> None:
            self.container.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def seek(self, pts: int, **kwargs: Any) -> None:
            self.container.seek(last, **kwargs)

    monkeypatch.setattr(decoders, "open_container", lambda path: Astray(real(path)))
    frames = list(VideoReader(info, sampling=Sampling(start_s=2.5)))
    assert indices(frames) == numbers(frames) == list(range(60, 120))


@pytest.mark.parametrize(
    "wish",
    [
        {"every": 0},
        {"fps": 0.0},
        {"fps": math.nan},
        {"every": 2, "fps": 5.0},
        {"start_s": 2.0, "end_s": 2.0},
        {"end_s": 0.0},
        {"start_s": math.inf},
    ],
)
def test_wishes_that_contradict_each_other_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wish)


def test_a_stream_without_times_refuses_seconds() -> None:
    with pytest.raises(VideoError, match=r"without timestamps.*--every"):
        VideoReader(probe(clips.clip("raw.h264")), sampling=Sampling(fps=5))


def test_a_reader_is_iterated_once() -> None:
    reader = VideoReader(probe(clips.clip("plain.mp4")))
    next(iter(reader))
    with pytest.raises(RuntimeError, match="once"):
        next(iter(reader))


# --- memory ---


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_pyav_does_not_run_ahead_of_a_slow_consumer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 frames of 640x480 are 276 MB of RGB; decord adds 90 MB in this very loop."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    forbid_decord(monkeypatch)
    one, path = tmp_path / "one.mp4", tmp_path / "looped.mp4"
    clips.make(one, *clips.X264_B, n=60, size=(640, 480))
    clips.run("-stream_loop", "4", "-i", one, "-c", "copy", path)
    assert growth(VideoReader(probe(path))) < 30e6


def growth(reader: VideoReader) -> int:
    """The most bytes that reading adds to the process, beyond what it holds after five frames."""
    frames: Iterator[Frame] = iter(reader)
    for _ in range(5):
        next(frames)
    base, most = resident_bytes(), 0
    for frame in frames:
        frame.image.sum()  # a consumer that is slower than the decoder, without a sleep
        frame.image.sum()
        most = max(most, resident_bytes() - base)
    return most


# --- real recordings ---


@pytest.mark.parametrize("name", ["no_face.mp4", "face_then_none_vfr.mov", "single_face.mp4"])
def test_a_real_recording_comes_with_the_pts_of_ffprobe(name: str, shared: Path) -> None:
    path = shared / "videos" / name
    frames, reader = read(path, every=1)
    assert [frame.pts for frame in frames] == clips.ffprobe_pts(path)
    assert (reader.damage, reader.n_bad_packets) == (None, 0)
    raw = clips.run("-i", path, "-frames:v", "3", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    for frame, expected in zip(frames, np.frombuffer(raw, np.uint8).reshape(3, -1), strict=False):
        np.testing.assert_array_equal(frame.image.ravel(), expected)
