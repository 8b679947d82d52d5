"""Many recordings at once give what one after the other gives; what dies costs only itself."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest

import vafer
from bench.memory import held_but_for_files
from tests import clips
from vafer import annotation, staged, workers
from vafer.ahead import ParallelWalk
from vafer.annotation import Progress
from vafer.decoding import MOST_FRAMES, N_SLOTS, SLOT_BYTES
from vafer.errors import VideoError
from vafer.options import Sampling
from vafer.staged import MOST_AT_ONCE
from vafer.video import Chunk
from vafer.workers import DecoderLostError, DecoderProcess

# What CI tries is a small share; VAFER_SOAK=1 in the environment tries all.
IS_SOAK = bool(os.environ.get("VAFER_SOAK"))
N_KILLS = 20 if IS_SOAK else 3
N_DAMAGED = 300 if IS_SOAK else 20
N_CLIPS = 10_000 if IS_SOAK else 200


@pytest.fixture
def videos(sample: Path, shared: Path, tmp_path: Path) -> Path:
    """A folder of five: intact, real with cuts, no video, variable frame rate, cut off."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").symlink_to(sample)
    (folder / "cuts.mp4").symlink_to(shared / "videos" / "stage_cuts.mp4")
    (folder / "none.mp4").write_text("no video")
    whole = (shared / "videos" / "single_face.mp4").read_bytes()
    (folder / "z.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "vfr.mov").symlink_to(shared / "videos" / "face_then_none_vfr.mov")
    return folder


def same(a: vafer.Results, b: vafer.Results, *, but: tuple[str, ...] = ()) -> None:
    assert a.table.equals(b.table)
    columns = pl.all().exclude("elapsed_s", *but)
    assert a.videos.select(columns).equals(b.videos.select(columns))


@pytest.fixture
def how(untrained: Path, yunet: Path) -> dict[str, Any]:
    return {"model": untrained, "detector": yunet, "sampling": Sampling(every=3)}


def test_any_number_of_workers_gives_the_same_table_to_the_bit(
    videos: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = vafer.annotate(videos, workers=1, **how)
    assert alone.videos["status"].to_list() == ["done", "done", "failed", "done", "failed"]
    assert alone.table["valence"].drop_nulls().n_unique() > 100
    for n in (2, 5):
        same(alone, vafer.annotate(videos, workers=n, **how))
    monkeypatch.setattr(staged, "available_cores", lambda: 6)  # three threads a lane
    same(alone, vafer.annotate(videos, workers=2, **how))
    how["detect"] = "search"
    alone = vafer.annotate(videos, workers=1, **how)
    for n in (2, 5):
        same(alone, vafer.annotate(videos, workers=n, **how))


@pytest.mark.parametrize(
    ("n_cores", "n_lanes", "n_threads"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (8, 3, 2), (2, 16, 1)]
)
def test_lanes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, n_cores: int, n_lanes: int, n_threads: int
) -> None:
    monkeypatch.setattr(staged, "available_cores", lambda: n_cores)
    assert staged.threads_of_lane(n_lanes) == n_threads


@pytest.mark.parametrize(
    ("n_cores", "n_threads"), [(3, []), (8, [4, 4]), (64, [MOST_AT_ONCE // 2] * 2)]
)
def test_a_lane_has_its_share(
    sample: Path,
    how: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    n_cores: int,
    n_threads: list[int],
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).symlink_to(sample)
    monkeypatch.setattr(staged, "available_cores", lambda: n_cores)
    found: list[int] = []

    def spy(*arguments: Any, **options: Any) -> ParallelWalk:
        found.append(options["n_threads"])
        return ParallelWalk(*arguments, **options)

    monkeypatch.setattr(staged, "ParallelWalk", spy)
    vafer.annotate(tmp_path, workers=2, **how)
    assert found == n_threads


def test_a_damaged_recording_gives_the_same_table_too(
    shared: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a decoder makes up where pictures are damaged depends on its number of threads."""
    how["sampling"] = Sampling(end_s=4)
    data = bytearray((shared / "videos" / "smile_cry_smile.mp4").read_bytes())
    rng = random.Random(1)
    for _ in range(60):
        start = rng.randrange(len(data) // 20, len(data) // 2)
        data[start : start + 20] = rng.randbytes(20)
    (tmp_path / "a.mp4").write_bytes(data)
    alone = vafer.annotate(tmp_path, workers=1, **how)
    assert alone.videos["status"].to_list() == ["partial"]
    for n_cores in (1, 2, 5):
        monkeypatch.setattr(staged, "available_cores", lambda n=n_cores: n)
        same(alone, vafer.annotate(tmp_path, workers=2, **how))


@pytest.mark.parametrize("detect", ["full", "search"])
def test_threads_that_share_a_detector_give_the_same_table_to_the_bit(
    shared: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch, detect: str
) -> None:
    """With the embedded detector, that ONNX Runtime runs, and that looks twice."""
    how = {"model": untrained, "detect": detect, "sampling": Sampling(end_s=2)}
    for name in ("crowd_1080p.mp4", "stage_cuts.mp4"):
        alone = vafer.annotate(shared / "videos" / name, workers=1, **how)
        assert len(alone.table) > 50
        monkeypatch.setattr(staged, "available_cores", lambda: 4)
        same(alone, vafer.annotate(shared / "videos" / name, workers=2, **how))


def test_a_run_that_is_stopped_leaves_no_thread(
    shared: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "available_cores", lambda: 4)

    def theirs() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith(("faces", "lane", "predictor"))]

    def stop(progress: Progress) -> None:
        if progress.n_frames:
            assert any(name.startswith("faces") for name in theirs())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vafer.annotate(shared / "videos" / "expressive_33s.mp4", workers=2, on_progress=stop, **how)
    deadline = time.monotonic() + 5
    while theirs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert theirs() == []


def spied(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[DecoderProcess]:
    """The processes that a run starts, with these options."""
    started: list[DecoderProcess] = []

    def start(**others: Any) -> DecoderProcess:
        started.append(DecoderProcess(**{**others, **options}))
        return started[-1]

    monkeypatch.setattr(annotation, "DecoderProcess", start)
    return started


@pytest.mark.parametrize("seed", range(N_KILLS))
def test_a_decoder_that_is_killed_costs_nothing(
    shared: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of more frames than can be on their way, so that it is still at work when it is killed."""
    how["sampling"] = Sampling(end_s=12)
    video = shared / "videos" / "expressive_33s.mp4"
    undisturbed = vafer.annotate(video, workers=1, **how)
    started = spied(monkeypatch)
    at = random.Random(seed).randrange(100)
    notices: list[str] = []

    def kill(progress: Progress) -> None:
        if progress.n_frames >= at and len(started) == 1:
            started[0].kill()

    disturbed = vafer.annotate(video, workers=2, on_progress=kill, on_notice=notices.append, **how)
    assert len(started) == 2
    assert notices == [
        f"{video}: the process that decoded it was ended by signal 9: it begins anew"
    ]
    same(undisturbed, disturbed)


def test_a_decoder_that_hangs_is_replaced_once_and_then_costs_its_recording(
    sample: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = vafer.annotate(sample, workers=1, **how)
    started = spied(monkeypatch, silence_s=3.0)

    def stop(n: int, progress: Progress) -> None:
        for process in started[:n]:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)

    again = vafer.annotate(sample, workers=2, on_progress=partial(stop, 1), **how)
    same(undisturbed, again, but=("decoder",))
    assert len(started) == 2
    started.clear()
    (tmp_path / "a.mp4").symlink_to(sample)
    (tmp_path / "b.mp4").symlink_to(sample)
    results = vafer.annotate(tmp_path, workers=2, on_progress=partial(stop, 99), **how)
    assert results.videos["status"].to_list() == ["failed", "failed"]
    assert "showed no sign of life for 3 s, twice" in results.videos["error"][0]


def test_one_that_needs_too_much_memory_costs_its_recording(
    sample: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").symlink_to(sample)
    clips.run(
        "-f", "lavfi", "-i", "testsrc2=size=8000x8000:rate=1", "-frames:v", "2", "-c:v", "mjpeg",
        tmp_path / "b.mov",
    )  # fmt: skip
    spied(monkeypatch, memory_bytes=300 << 20)
    results = vafer.annotate(tmp_path, workers=2, **how)
    assert results.videos["status"].to_list() == ["done", "failed"]
    assert results.videos["error"][1].startswith(str(tmp_path / "b.mov"))
    assert "more memory than it may have, twice" in results.videos["error"][1]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_file_that_changes_while_it_is_read_costs_only_itself(
    shared: Path, sample: Path, how: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes((shared / "videos" / "expressive_33s.mp4").read_bytes())
    (tmp_path / "b.mp4").symlink_to(sample)

    def change(progress: Progress) -> None:
        if progress.n_frames == 3 and path.exists():
            os.truncate(path, 1000) if damage == "cut" else path.unlink()

    results = vafer.annotate(tmp_path, workers=2, on_progress=change, **how)
    assert results.videos["status"][1] == "done"
    row = results.videos.row(0, named=True)
    assert row["status"] in ("done", "partial", "failed")
    if damage == "cut":
        assert row["status"] != "done"
        assert row["error"]


def random_damage(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    kind = rng.randrange(3)
    if kind == 0:  # bytes flipped
        for _ in range(rng.choice((1, 10, 200))):
            damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
    elif kind == 1:  # cut
        del damaged[rng.randrange(len(damaged)) :]
    else:  # zeroed
        start = rng.randrange(len(damaged))
        end = min(len(damaged), start + rng.choice((100, 5000, 100_000)))
        damaged[start:end] = bytes(end - start)
    return bytes(damaged)


def test_damaged_files_cost_only_themselves(
    shared: Path, sample: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    sources = [sample, *sorted((shared / "videos").glob("*.m??"))]
    sources = [path for path in sources if path.suffix in (".mp4", ".mov")]
    rng = random.Random(0)
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(N_DAMAGED):
        path = sources[i % len(sources)]
        (videos / f"{i:03}{path.suffix}").write_bytes(random_damage(path.read_bytes(), rng))
    (videos / "intact.mp4").symlink_to(sample)
    how["sampling"] = Sampling(every=50)
    results = vafer.annotate(videos, tmp_path / "r.parquet", workers=2, **how)
    assert len(results.videos) == N_DAMAGED + 1
    assert set(results.videos["status"]) <= {"done", "partial", "failed"}
    assert results.videos.filter(pl.col("video") == "intact.mp4")["status"].item() == "done"
    problems = results.videos.filter(pl.col("status") != "done")
    assert len(problems) > N_DAMAGED // 4
    assert problems["error"].null_count() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "r.parquet", "r.videos.parquet", "videos",
    ]  # fmt: skip


def n_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_many_short_clips_leave_nothing_open(
    sample: Path, how: dict[str, Any], tmp_path: Path
) -> None:
    for i in range(N_CLIPS):
        (tmp_path / f"{i:05}.mp4").symlink_to(sample)
    how["sampling"] = Sampling(every=25)
    descriptors, held = dict[int, int](), dict[int, int]()

    def count(progress: Progress) -> None:
        if progress.n_done in (N_CLIPS // 4, 9 * N_CLIPS // 10) and progress.n_done not in held:
            descriptors[progress.n_done] = n_descriptors()
            held[progress.n_done] = held_but_for_files(os.getpid())

    vafer.annotate(sample, workers=2, **how)  # what is opened once and kept
    before = n_descriptors()
    results = vafer.annotate(tmp_path, workers=2, on_progress=count, **how)
    assert results.videos["status"].unique().to_list() == ["done"]
    assert len(results.table) == 2 * N_CLIPS
    (early, late), (little, much) = descriptors.values(), held.values()
    print(f"{early} and {late} descriptors, {little >> 20} and {much >> 20} MiB")
    assert late <= early + 2
    assert much <= 1.1 * little
    assert n_descriptors() <= before


LOOP = """
import sys
from vafer import cli
cli.main()
"""


@pytest.fixture
def long_job(sample: Path, untrained: Path, yunet: Path, tmp_path: Path) -> list[str]:
    """A command that takes a while: twelve recordings."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(12):
        (videos / f"{i}.mp4").symlink_to(sample)
    words = [
        sys.executable, "-c", LOOP, "annotate", videos, "--out", tmp_path / "r.parquet",
        "--model", untrained, "--detector", yunet, "--workers", 2, "--quiet",
    ]  # fmt: skip
    return [str(word) for word in words]


def started_job(command: list[str], is_under_way: Callable[[], bool]) -> subprocess.Popen[str]:
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # however the tests were started
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 120
    while not is_under_way():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def all_gone(pids: list[int], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_soon_and_keeps_what_is_finished(
    long_job: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    parts = tmp_path / "r.parquet.parts"
    process = started_job(long_job, lambda: len(list(parts.glob("*.parquet"))) >= 2)
    decoders = children(process.pid)
    assert decoders
    sent = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - sent < 5
    assert all_gone(decoders)
    assert not list(tmp_path.rglob("*.tmp"))
    kept = len(list(parts.glob("*.parquet")))
    assert 2 <= kept < 12
    done = subprocess.run(long_job, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert vafer.read_table(tmp_path / "r.parquet")["video"].n_unique() == 12


@pytest.mark.parametrize("pause_s", [0.02, 0.4])
def test_who_presses_often_gets_the_same_exit_code(
    long_job: list[str], tmp_path: Path, pause_s: float
) -> None:
    parts = tmp_path / "r.parquet.parts"
    process = started_job(long_job, lambda: len(list(parts.glob("*.parquet"))) >= 1)
    decoders = children(process.pid)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(pause_s)
    assert process.returncode == 130
    assert process.stderr is not None
    assert "terminate called" not in process.stderr.read()
    assert all_gone(decoders)


@pytest.mark.parametrize("seed", range(N_KILLS))
def test_a_run_that_is_killed_goes_on_to_the_same_table(
    long_job: list[str], tmp_path: Path, seed: int
) -> None:
    parts = tmp_path / "r.parquet.parts"
    rng = random.Random(seed)
    n_parts, delay_s = rng.randrange(1, 9), rng.uniform(0, 0.2)
    process = started_job(long_job, lambda: len(list(parts.glob("*.parquet"))) >= n_parts)
    time.sleep(delay_s)
    decoders = children(process.pid)
    process.kill()
    process.wait()
    assert all_gone(decoders)
    assert subprocess.run(long_job).returncode == 0
    disturbed = vafer.read_table(tmp_path / "r.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "r.parquet", "r.videos.parquet", "videos",
    ]  # fmt: skip
    assert subprocess.run([*long_job, "--overwrite"]).returncode == 0
    assert vafer.read_table(tmp_path / "r.parquet").equals(disturbed)


FILL_AND_GROW = """
mount -t tmpfs -o size=60k tmpfs "$DISK" || exit 9
"$@"; echo $?
find "$DISK" -type f | wc -l
find "$DISK" -name '*.tmp' | wc -l
mount -o remount,size=20m "$DISK"
"$@"; echo $?
cp "$DISK"/r.parquet "$DISK"/r.videos.parquet "$KEPT"
"""


def test_a_disk_that_is_full_keeps_what_is_finished(long_job: list[str], tmp_path: Path) -> None:
    """On a file system of its own, of 60 kB, which then grows."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    command = [word.replace(str(tmp_path / "r.parquet"), f"{disk}/r.parquet") for word in long_job]
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a file system of its own")
    done = subprocess.run(
        [*alone, "sh", "-c", FILL_AND_GROW, "sh", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "DISK": str(disk), "KEPT": str(kept)},
    )
    first, n_files, n_temporary, second = map(int, done.stdout.split())
    assert (first, second) == (1, 0), done.stderr
    assert "No space left on device" in done.stderr
    assert n_files >= 2
    assert n_temporary == 0
    assert subprocess.run(long_job).returncode == 0
    assert vafer.read_table(kept / "r.parquet").equals(vafer.read_table(tmp_path / "r.parquet"))
    videos = pl.read_parquet(kept / "r.videos.parquet")
    assert videos["status"].to_list() == ["done"] * 12


def test_what_a_stage_raises_ends_the_run_and_its_processes(
    videos: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = spied(monkeypatch)

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a fault of vafer")

    monkeypatch.setattr(staged.Walk, "step", broken)
    with pytest.raises(ZeroDivisionError):
        vafer.annotate(videos, workers=3, **how)
    assert started
    assert all_gone([process.pid for process in started])


class TestDecoderProcess:
    def test_it_speaks_of_one_recording_after_the_other(self, sample: Path, tmp_path: Path) -> None:
        process = DecoderProcess()
        try:
            for _ in range(2):
                found = list(process.decode(sample, Sampling(every=10), is_retry=False))
                chunks = [item for item in found if isinstance(item, Chunk)]
                assert [f.index for c in chunks for f in c.frames] == [0, 10, 20, 30, 40]
                with pytest.raises(VideoError, match=r"gone\.mp4: no such file"):
                    list(process.decode(tmp_path / "gone.mp4", Sampling(), is_retry=False))
        finally:
            process.close()

    @pytest.mark.parametrize(
        "message",
        [
            b"no json",
            b"[]",
            b'{"kind": "other"}',
            b'{"kind": "frames"}',
            b'{"kind": "memory", "frame_bytes": 99999999999}',
            b'{"kind": "memory", "frame_bytes": -1}',
            b'{"kind": "memory", "frame_bytes": Infinity}',
            b"[" * 60_000,
            b'{"kind": "opened", "facts": {"video": "another.mp4"}, "n_expected": 1}',
            b'{"kind": "ended", "n_frames": 0, "n_bad_packets": 0, "damage": null,'
            b' "decoder": "pyav"}',
            b'{"kind": "opened", "facts": 5, "n_expected": 1}',
            b'{"kind": "frames", "memory": 0, "slot": 0, "height": 2, "width": 2,'
            b' "frames": [[0, 0, 0, false]]}',
        ],
    )
    def test_it_is_not_believed(
        self, sample: Path, monkeypatch: pytest.MonkeyPatch, message: bytes
    ) -> None:
        """A decoder that a file has taken over may say anything."""
        code = (
            "import socket, sys\n"
            "sock = socket.socket(fileno=int(sys.argv[1]))\n"
            f"sock.recv(65536); sock.sendall({message!r})"
        )
        real = subprocess.Popen

        def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            return real([sys.executable, "-c", code, command[-2]], **options)

        monkeypatch.setattr("vafer.workers.subprocess.Popen", start)
        process = DecoderProcess()
        with pytest.raises(DecoderLostError, match="talks nonsense"):
            list(process.decode(sample, Sampling(), is_retry=False))

    def test_what_it_says_of_a_recording_fits_into_the_tables(self) -> None:
        facts = {
            "width": 640, "height": 360, "rotation": 0, "pixel_aspect": 1.0, "codec": "h264",
            "fps": 25.0, "duration_s": None, "time_base": "1/25",
        }  # fmt: skip
        assert workers._checked(facts) == facts
        for odd in (
            {"width": -5}, {"height": 0}, {"rotation": 45}, {"codec": "h264\x1b[31m"},
            {"codec": 264}, {"fps": float("nan")}, {"more": 1}, {"time_base": "1" * 200},
            {"pixel_aspect": 0.0}, {"pixel_aspect": float("nan")},
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"."):
                workers._checked({**facts, **odd})
        with pytest.raises(TypeError):
            workers._checked({**facts, "pixel_aspect": None})
        end = {"n_frames": 5, "n_bad_packets": 0, "damage": None, "decoder": "pyav"}
        assert workers._ended(end).decoder == "pyav"
        for odd in ({"decoder": 5}, {"decoder": "other"}, {"n_frames": -1}, {"n_frames": True}):
            with pytest.raises(ValueError, match=r"."):
                workers._ended({**end, **odd})
        told = workers._ended({**end, "damage": "\x1b[31mred\nline\ud800"}).damage
        assert told == "\x1b[31mred\nline?"

    def test_memory_that_is_not_to_be_had_costs_the_process(
        self, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It waits for it, and would take the next recording's path for its own business."""

        def none(*_: object) -> int:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr(os, "memfd_create", none)
        process = DecoderProcess()
        with pytest.raises(DecoderLostError, match=r"given memory .* Cannot allocate memory"):
            list(process.decode(sample, Sampling(), is_retry=False))
        assert all_gone([process.pid])

    def test_pictures_that_are_too_large_are_refused_with_their_size(self, tmp_path: Path) -> None:
        path = tmp_path / "wide.png"
        cv2.imwrite(str(path), np.zeros((2, 70_000, 3), np.uint8))
        process = DecoderProcess()
        try:
            with pytest.raises(VideoError, match=r"wide\.png: pictures of 70,000 × 2 pixels; exp"):
                list(process.decode(path, Sampling(), is_retry=False))
        finally:
            process.close()

    def test_what_it_printed_last_is_told(
        self, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = "import sys; sys.stderr.write('odd\\n\\x1b[1mthing\\n'); sys.exit(3)"
        real = subprocess.Popen

        def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            return real([sys.executable, "-c", code], **options)

        monkeypatch.setattr("vafer.workers.subprocess.Popen", start)
        with pytest.raises(DecoderLostError) as caught:
            list(DecoderProcess().decode(sample, Sampling(), is_retry=False))
        assert str(caught.value).endswith("ended (3): \x1b[1mthing")

    def test_a_slot_beyond_its_memory_is_refused(self, sample: Path) -> None:
        process = DecoderProcess()
        try:
            frames = process.decode(sample, Sampling(), is_retry=False)
            next(item for item in frames if isinstance(item, Chunk))
            ((generation, memory),) = process._memories.items()
            one, facts = [0, None, None, False], {"height": 360, "width": 640, "pixel_aspect": 2.0}
            said = {"memory": generation, "height": 360, "width": 640, "slot": 0, "frames": [one]}
            (frame,) = process._chunk(said, facts).frames
            assert frame.pixel_aspect == 2
            (frame,) = process._chunk({**said, "width": 320}, facts).frames
            assert frame.pixel_aspect == 1  # of another size than it was opened with
            for wrong in (
                {"slot": N_SLOTS},
                {"slot": -1},
                {"height": 3600, "width": 6400},
                {"height": -360, "width": -640},
                {"frames": []},
                {"frames": [one] * (MOST_FRAMES + 1)},
                {"height": 3600, "width": 1920, "frames": [one]},
            ):
                with pytest.raises(ValueError, match="beyond their memory"):
                    process._chunk({**said, **wrong}, facts)
            for odd in (
                [0, None, None],
                [None] * 4,
                [-1, None, None, False],
                [0, 2**63, None, False],
                [0, None, "nan", False],
                [0, None, 1e999, False],
                ["0"] * 4,
                "none",
            ):
                with pytest.raises((ValueError, TypeError)):
                    process._chunk({**said, "frames": [odd]}, facts)
            assert memory.slot_bytes == SLOT_BYTES
            with pytest.raises(ValueError, match="frames of"):  # it has as much already
                process._give_memory(SLOT_BYTES)
            process._give_memory(SLOT_BYTES + 1)
            assert [m.slot_bytes for m in process._memories.values()] == [2 * SLOT_BYTES]
        finally:
            process.close()
