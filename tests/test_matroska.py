"""That a Matroska file breaks off is told from its elements, also where their sizes are unknown."""

from pathlib import Path

import pytest

from tests import clips
from vafer.matroska import what_is_missing
from vafer.probe import probe
from vafer.video import VideoReader

CLUSTER, UNKNOWN = b"\x1f\x43\xb6\x75", b"\x01" + b"\xff" * 7


@pytest.fixture(scope="module", params=["sized clusters", "unsized clusters"])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """48 frames as a live recording has them: without an index, the Segment's size unknown."""
    path = tmp_path_factory.mktemp("live") / "live.mkv"
    clips.copy("b.mkv", path, "-live", "1", "-cluster_time_limit", "500")
    data = path.read_bytes()
    if request.param == "unsized clusters":  # as browsers' MediaRecorder writes them
        first, *clusters = data.split(CLUSTER)
        unsized = [UNKNOWN + cluster[9 - cluster[0].bit_length() :] for cluster in clusters]
        data = CLUSTER.join([first, *unsized])
    return data


def missing(path: Path, data: bytes) -> str | None:
    path.write_bytes(data)
    return what_is_missing(path)


def test_a_live_recording_is_whole(live: bytes, tmp_path: Path) -> None:
    assert live.count(CLUSTER) > 2
    assert missing(tmp_path / "a.mkv", live) is None
    info = probe(tmp_path / "a.mkv")
    assert info.damage is None
    assert info.pts is not None
    assert len(info.pts) == 48


@pytest.mark.parametrize("share", [0.3, 0.62, 0.97])
def test_one_that_breaks_off_says_so_and_what_is_there_is_read(
    share: float, live: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "cut.mkv"
    path.write_bytes(live[: int(share * len(live))])
    info = probe(path)
    assert info.damage is not None
    assert info.damage.startswith(f"it breaks off: {path.stat().st_size} of ")
    frames = list(VideoReader(info))
    assert [clips.read(frame.image) for frame in frames] == list(range(len(frames)))
    assert frames


@pytest.mark.parametrize("n_left", range(1, 5))
def test_an_element_whose_head_breaks_off(n_left: int, live: bytes, tmp_path: Path) -> None:
    path, last = tmp_path / "cut.mkv", live.rindex(CLUSTER)
    assert missing(path, live[:last]) is None
    said = missing(path, live[: last + n_left])
    assert said == f"it breaks off: {last + n_left} of {last + 5} bytes or more are there"


@pytest.mark.parametrize("trailer", [b"\0", b"\0" * 99, b"\r\n--end--\r\n", b"ID3 something", b"A"])
def test_what_follows_a_whole_one_is_no_damage(trailer: bytes, live: bytes, tmp_path: Path) -> None:
    assert missing(tmp_path / "a.mkv", live + trailer) is None
    whole = clips.clip("b.mkv").read_bytes()
    assert missing(tmp_path / "b.mkv", whole + trailer) is None
    assert missing(tmp_path / "b.mkv", whole + live[: len(live) // 2]) is None


def test_a_size_in_the_header_is_believed(tmp_path: Path) -> None:
    whole = clips.clip("b.mkv").read_bytes()
    said = missing(tmp_path / "a.mkv", whole[:-1])
    assert said == f"{len(whole) - 1} of {len(whole)} bytes promised by the header are there"


def test_what_is_no_matroska_has_nothing_missing(tmp_path: Path) -> None:
    assert missing(tmp_path / "a.mkv", b"") is None
    assert missing(tmp_path / "a.mkv", clips.clip("b.mp4").read_bytes()) is None
    unsized_tracks = b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67" + UNKNOWN + b"\x16\x54\xae\x6b\xff"
    assert missing(tmp_path / "a.mkv", unsized_tracks) is None
