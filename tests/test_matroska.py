"""What a Matroska file lacks is told from its elements, also where their sizes are unknown."""

import re
from pathlib import Path

import pytest

from tests import clips
from vafer import container
from vafer.errors import VideoError
from vafer.matroska import fault_of_matroska
from vafer.probe import probe
from vafer.video import VideoReader

SEGMENT, CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
UNKNOWN = b"\x01" + b"\xff" * 7


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


def fault(path: Path, data: bytes) -> str | None:
    path.write_bytes(data)
    return fault_of_matroska(path)


def test_a_live_recording_is_whole(live: bytes, tmp_path: Path) -> None:
    assert live.count(CLUSTER) > 2
    assert fault(tmp_path / "a.mkv", live) is None
    info = probe(tmp_path / "a.mkv")
    assert info.damage is None
    assert info.pts is not None
    assert len(info.pts) == 48


def test_whoever_waits_is_shown_that_elements_are_looked_at(
    live: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a day's recording there are millions, after its packets."""
    path = tmp_path / "a.mkv"
    path.write_bytes(live)
    shown: list[int] = []
    monkeypatch.setattr(container, "on_packet", lambda: shown.append(1))
    probe(path)
    n_packets = 48 + 4  # all, and those up to the first frame
    assert len(shown) > n_packets + 48


@pytest.mark.parametrize("share", [0.3, 0.62, 0.97])
def test_one_that_breaks_off_says_so_and_what_is_there_is_read(
    share: float, live: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "cut.mkv"
    path.write_bytes(live[: int(share * len(live))])
    info = probe(path)
    assert info.damage is not None
    assert re.fullmatch(r"it breaks off: what begins at byte [\d,]+ is not whole", info.damage)
    frames = list(VideoReader(info))
    assert [clips.read(frame.image) for frame in frames] == list(range(len(frames)))
    assert frames


@pytest.mark.parametrize("n_left", range(1, 5))
def test_an_element_whose_head_breaks_off(n_left: int, live: bytes, tmp_path: Path) -> None:
    path, last = tmp_path / "cut.mkv", live.rindex(CLUSTER)
    assert fault(path, live[:last]) is None
    said = fault(path, live[: last + n_left])
    assert said == f"it breaks off: what begins at byte {last:,} is not whole"


@pytest.mark.parametrize(
    "trailer", [b"\0" * 999, b"\r\n--end--\r\n", b"ID3 something", b"A", b"\xec\0"]
)
def test_what_follows_a_whole_one_is_no_damage(trailer: bytes, live: bytes, tmp_path: Path) -> None:
    assert fault(tmp_path / "a.mkv", live + trailer) is None
    whole = clips.clip("b.mkv").read_bytes()
    assert fault(tmp_path / "b.mkv", whole + trailer) is None


def test_a_size_in_the_header_is_believed(tmp_path: Path) -> None:
    whole = clips.clip("b.mkv").read_bytes()
    said = fault(tmp_path / "a.mkv", whole[:-1])
    assert said == f"{len(whole) - 1} of {len(whole)} bytes promised by the header are there"


@pytest.mark.parametrize("filler", [b"\0" * 900, b"\xff" * 900, b""])
def test_damage_between_whole_ends_is_told(filler: bytes, live: bytes, tmp_path: Path) -> None:
    at = live.index(CLUSTER, live.index(CLUSTER) + 1) + 16
    damaged = live[:at] + filler + live[at + 900 :]
    assert re.match(r"it is damaged from byte [\d,]+ on", fault(tmp_path / "a.mkv", damaged) or "")
    whole = clips.clip("b.mkv").read_bytes()
    at = whole.index(CLUSTER) + 30
    damaged = whole[:at] + b"\0" * 900 + whole[at + 900 :]
    assert re.match(r"it is damaged from byte [\d,]+ on", fault(tmp_path / "b.mkv", damaged) or "")


def test_one_that_goes_on_as_zeros_is_damaged(live: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(live[: len(live) // 2] + bytes(len(live)))
    info = probe(path)
    assert info.damage is not None
    assert info.damage.startswith("it is damaged from byte")


def test_elements_that_are_not_known_are_passed_over_where_all_have_sizes(tmp_path: Path) -> None:
    whole = clips.clip("b.mkv").read_bytes()
    at = whole.index(CLUSTER) + 4
    n_size = 9 - whole[at].bit_length()
    size = int.from_bytes(whole[at : at + n_size], "big") + 3
    cluster = size.to_bytes(n_size, "big") + b"\x42\x00\x80" + whole[at + n_size :]
    segment = whole.index(SEGMENT) + 4
    assert whole[segment] == 1
    longer = int.from_bytes(whole[segment : segment + 8], "big") + 3
    head = whole[:segment] + longer.to_bytes(8, "big") + whole[segment + 8 : at]
    assert fault(tmp_path / "a.mkv", head + cluster) is None
    assert fault(tmp_path / "a.mkv", (head + cluster)[:-1]) is not None


def test_a_file_that_ends_in_its_header_is_refused_by_that(live: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(live[:300])
    with pytest.raises(VideoError, match=r"Matroska file .*: it breaks off: .*; copy it again"):
        probe(path)


def test_what_is_no_matroska_has_no_fault(tmp_path: Path) -> None:
    assert fault(tmp_path / "a.mkv", b"") is None
    assert fault(tmp_path / "a.mkv", clips.clip("b.mp4").read_bytes()) is None
    assert fault_of_matroska(tmp_path / "not there.mkv") is None


@pytest.mark.parametrize("grows", [False, True])
def test_a_cluster_of_another_size_is_damage(grows: bool, tmp_path: Path) -> None:
    path = tmp_path / "whole.mkv"
    clips.copy("b.mkv", path, "-cluster_time_limit", "500")
    whole = path.read_bytes()
    first = whole.index(CLUSTER)
    second = whole.index(CLUSTER, first + 1)
    third = whole.index(CLUSTER, second + 1)
    n_size = 9 - whole[first + 4].bit_length()
    block = whole.rindex(b"\xa3", first, second - 100)
    inside = first + 4 + n_size
    new = (third if grows else block) - inside
    size = (new | 1 << 7 * n_size).to_bytes(n_size, "big")
    assert fault(path, whole) is None
    said = fault(path, whole[: first + 4] + size + whole[inside:])
    assert said == f"it is damaged from byte {second if grows else block:,} on"


@pytest.mark.parametrize("n", [2, 3])
def test_files_joined_byte_by_byte_are_told(n: int, live: bytes, tmp_path: Path) -> None:
    for whole in (live, clips.clip("b.mkv").read_bytes()):
        said = fault(tmp_path / "a.mkv", n * whole)
        assert said is not None
        assert said.startswith(f"from byte {len(whole):,} on there is another file")
