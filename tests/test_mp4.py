"""What an MP4 that cannot be used lacks is told from its boxes."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import clips
from vafer import mp4
from vafer.errors import VideoError
from vafer.mp4 import UNFINISHED as UNFINISHED_FAULT
from vafer.mp4 import fault_of_mp4
from vafer.probe import probe
from vafer.video import VideoReader

CUT_OFF, UNFINISHED = (
    "cut off.*copy it again.*untrunc",
    "without its index .*never finished.*untrunc",
)
FTYP = struct.pack(">I4s", 16, b"ftyp") + b"isom\0\0\2\0"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def boxes_of(mp4: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each box on the top level of a file whose lengths take 32 bits."""
    at = 0
    while at < len(mp4):
        length, kind = struct.unpack_from(">I4s", mp4, at)
        yield kind, mp4[at : at + length]
        at += length


@pytest.fixture(scope="module")
def whole() -> bytes:
    return clips.clip("b.mp4").read_bytes()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(VideoError) as caught:
        probe(path)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
@pytest.mark.parametrize("part", [b"mdat", b"moov"])
def test_wherever_it_was_cut_off_it_says_so(
    part: bytes, share: float, whole: bytes, tmp_path: Path
) -> None:
    begin = whole.index(part) - 4
    length = len(dict(boxes_of(whole))[part])
    cut = whole[: begin + 8 + int(share * (length - 8))]
    message = refused(tmp_path / "cut.mp4", cut)
    assert f"cut off, {len(cut):,} of {begin + length:,} bytes or more" in message
    assert "copy it again" in message


@pytest.mark.parametrize("part", [b"mdat", b"moov"])
@pytest.mark.parametrize("kept", range(1, 8))
def test_also_within_the_head_of_a_part(
    part: bytes, kept: int, whole: bytes, tmp_path: Path
) -> None:
    message = refused(tmp_path / "cut.mp4", whole[: whole.index(part) - 4 + kept])
    assert "an MP4 that was cut off; " in message


def test_one_whose_index_comes_first_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "fast.mp4"
    clips.copy("b.mp4", path, "-movflags", "+faststart")
    path.write_bytes(path.read_bytes()[:-2000])
    assert probe(path).damage is not None


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("fragment", [1, 3])
@pytest.mark.parametrize("part", [b"moof", b"mdat"])
@pytest.mark.parametrize("kept", [4, 12, 60, 120])
def test_of_one_in_fragments_all_that_precede_the_cut_are_read(
    flags: str, fragment: int, part: bytes, kept: int, tmp_path: Path
) -> None:
    path = tmp_path / "12:30, cut.mp4"  # a name that libav's protocols could trip over
    clips.copy("b.mp4", path, "-movflags", flags)
    boxes = list(boxes_of(path.read_bytes()))
    cut = [i for i, (kind, _) in enumerate(boxes) if kind == part][fragment - 4]
    path.write_bytes(b"".join(data for _, data in boxes[:cut]) + boxes[cut][1][:kept])
    info = probe(path)
    assert info.damage is not None
    assert info.damage.startswith("an MP4 that was cut off")
    found = [clips.read(frame.image) for frame in VideoReader(info)]
    assert found == list(range(12 * fragment))


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov", "+faststart"])
@pytest.mark.parametrize("trailer", [b"", bytes(4), bytes(8), b"a trailer of a camera's"])
def test_what_follows_a_whole_one_is_no_damage(flags: str, trailer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.mp4"
    clips.copy("b.mp4", path, "-movflags", flags)
    path.write_bytes(path.read_bytes() + trailer)
    info = probe(path)
    assert info.damage is None
    assert info.pts is not None
    assert len(info.pts) == 48


def test_one_with_all_its_parts_is_called_neither(whole: bytes, tmp_path: Path) -> None:
    boxes = dict(boxes_of(whole))
    empty_index = box(b"moov", bytes(len(boxes[b"moov"]) - 8))
    message = refused(tmp_path / "a.mp4", boxes[b"ftyp"] + boxes[b"mdat"] + empty_index)
    assert "no streams; " in message


LARGE = struct.pack(">I4sQ", 1, b"mdat", 20) + b"1234"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (FTYP + box(b"mdat", b"1234"), UNFINISHED),
        (FTYP + LARGE, UNFINISHED),
        (FTYP + LARGE[:-1], CUT_OFF),
        (FTYP + LARGE[:12], CUT_OFF),
        (FTYP + struct.pack(">I4s", 0, b"mdat") + b"1234", UNFINISHED),
        (FTYP + b"????mdat1234", UNFINISHED),  # as Android begins a recording
        (FTYP + b"\0\0\0\1mdat????????1234", UNFINISHED),
        (FTYP + box(b"moov", b"1234") + box(b"mdat", b"12345678")[:-1], CUT_OFF),
        (FTYP + box(b"moov", b"1234") + struct.pack(">I4s", 0, b"mdat"), None),
        (FTYP + box(b"moov", b"1234") + box(b"mdat", b"1234"), None),
        (FTYP + LARGE.replace(struct.pack(">Q", 20), struct.pack(">Q", 0)), None),
        *[(FTYP + struct.pack(">I4s", n, b"mdat") + bytes(8), None) for n in range(2, 8)],
        (FTYP + b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8", None),  # no box, so no length to go by
        (FTYP + box(b"moov", b"1234") + box(b"abcd", b"12345678")[:-1], None),  # a trailer
        (FTYP + box(b"moov", b"1234") + bytes(3), None),
        (FTYP + box(b"moov", b"1234") + b"\n", CUT_OFF),
        (FTYP + box(b"moov", b"1234") + box(b"mdat", b"1234") + b"\n", None),
        (FTYP + box(b"moov", box(b"mvex", b"")) + box(b"mdat", b"1234") + b"\n", CUT_OFF),
        (FTYP + box(b"moov", box(b"mvex", b"")[:-1]) + box(b"moof", b"1")[:-1], CUT_OFF),
        (box(b"mdat", b"1234"), None),
        (b"", None),
    ],
)
def test_boxes_tell(data: bytes, found: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    fault = fault_of_mp4(path)
    if found is None:
        assert fault is None
    else:
        assert fault is not None
        assert re.search(found, f"{fault.found}; {fault.advice}")


@pytest.mark.parametrize(
    ("index", "in_fragments"),
    [
        (box(b"moov", box(b"trak", b"12") + box(b"mvex", b"")), True),
        (struct.pack(">I4sQ", 1, b"moov", 24) + box(b"mvex", b""), True),
        (box(b"moov", box(b"trak", b"12")), False),
        (box(b"moov", b"\xff" * 20), False),
    ],
)
def test_of_what_is_in_fragments_whole_ones_are_told(
    index: bytes, in_fragments: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    whole = FTYP + index + box(b"moof", b"1") + box(b"mdat", b"1")
    path.write_bytes(whole + box(b"moof", b"12")[:-1])
    fault = fault_of_mp4(path)
    assert fault is not None
    assert fault.n_whole == (len(whole) if in_fragments else 0)


def test_boxes_without_end_are_not_looked_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mp4, "_MAX_BOXES", 100)
    path = tmp_path / "a.mp4"
    path.write_bytes(FTYP + 98 * box(b"free", b""))
    assert fault_of_mp4(path) == UNFINISHED_FAULT
    path.write_bytes(FTYP + 100 * box(b"free", b""))
    assert fault_of_mp4(path) is None


def test_a_file_that_is_gone_has_no_fault_of_its_own(tmp_path: Path) -> None:
    assert fault_of_mp4(tmp_path / "gone.mp4") is None
