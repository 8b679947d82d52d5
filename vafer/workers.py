"""The processes that decode, as seen from the one that they decode for. See `vafer.decoding`.

A process that crashes, hangs or runs out of its memory costs the recording that it was at: it is
killed and another one takes its place.
"""

import fcntl
import json
import math
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vafer.decoding import (
    LARGEST_FRAME_BYTES,
    LONGEST_MESSAGE,
    LONGEST_SIDE,
    LONGEST_TEXT,
    N_SLOTS,
    OUT_OF_MEMORY,
    SLOT_BYTES,
    frames_in_slot,
)
from vafer.errors import VaferError, VideoError
from vafer.options import Sampling
from vafer.probe import MOST_PIXEL_ASPECT
from vafer.video import Chunk, Frame

MEMORY_BYTES = 4 << 30  # of a process that decodes, beside the frames that it hands over
SILENCE_S = 60.0  # after which a process that has something to do is taken to hang
DECODERS = ("decord", "decord+pyav", "pyav", "pictures")


class DecoderLostError(VaferError):
    """A process that decodes has died, hangs or talks nonsense; the text says what of it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a recording is: values for the table of videos, and its frames if they are known."""

    facts: dict[str, Any]
    n_expected: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """All frames have come: values for the table of videos."""

    n_frames: int
    n_bad_packets: int
    damage: str | None
    decoder: str


class DecoderProcess:
    """A process that decodes one recording after the other.

    memory_bytes: how much it may hold. silence_s: how long it may say nothing when it is its turn.
    Use it from the thread that made it: with it, the process dies.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = MEMORY_BYTES,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._silence_s = silence_s
        self._memories: dict[int, _Memory] = {}
        self._generation = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What it prints is kept, as far as a pipe holds it, for the case that it dies of that.
        self._stderr, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with theirs, os.fdopen(written, "wb"):
            # A session of its own, for Ctrl-C is not meant for it; one thread where NumPy is not
            # decoding; no folder of the user's on the path of its modules.
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-B",
                    "-m",
                    "vafer.decoding",
                    str(number),
                    str(memory_bytes),
                ],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=written,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._socket = ours
        ours.settimeout(silence_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(
        self, path: Path, sampling: Sampling, *, is_retry: bool
    ) -> Iterator[Opened | Chunk | Ended]:
        """What a recording is, its frames in order, and how it ended.

        Pictures are there until the next chunk is asked for. is_retry: by PyAV, on one thread.
        Raises VideoError where the recording cannot be read, DecoderLostError.
        """
        job = {
            "path": os.fsencode(path).hex(),
            "sampling": asdict(sampling),
            "is_retry": is_retry,
        }
        self._say("job", **job)
        is_open, last, facts = False, -1, dict[str, Any]()
        while True:
            message = self._hear()
            try:
                match message["kind"]:
                    case "alive":
                        continue
                    case "memory":
                        try:
                            self._give_memory(int(message["frame_bytes"]))
                        except OSError as error:
                            why = f"cannot be given memory for its frames: {error.strerror}"
                            raise self._lost(why) from error
                    case "failed":
                        raise VideoError(_storable(message["error"]))
                    case "opened" if not is_open:
                        is_open, facts = True, _checked(message["facts"])
                        yield Opened(facts, _count(message["n_expected"]))
                    case "frames" if is_open:
                        chunk = self._chunk(message, facts)
                        for frame in chunk.frames:
                            if frame.index <= last:
                                raise ValueError(f"frame {frame.index} after {last}")
                            last = frame.index
                        yield chunk
                        self._say("free", memory=message["memory"], slot=message["slot"])
                    case "ended" if is_open:
                        yield _ended(message)
                        return
                    case kind:
                        raise ValueError(f"{kind!r:.50} at this point")
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise self._lost(f"talks nonsense ({error!r})") from error

    def close(self) -> None:
        """End the process, whatever it is at; once more is nothing."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    def kill(self) -> None:
        """End the process; may be called by any thread, and whoever waits for it is told."""
        self._process.kill()

    def _chunk(self, message: dict[str, Any], facts: dict[str, Any]) -> Chunk:
        memory = self._memories[int(message["memory"])]
        height, width, slot = (int(message[key]) for key in ("height", "width", "slot"))
        shown, frame_bytes = message["frames"], height * width * 3
        if not (
            0 < height <= LONGEST_SIDE
            and 0 < width <= LONGEST_SIDE
            and 0 <= slot < N_SLOTS
            and 0 < len(shown) <= frames_in_slot(frame_bytes, memory.slot_bytes)
        ):
            raise ValueError("frames beyond their memory")
        n_bytes = len(shown) * frame_bytes
        pixels = np.frombuffer(memory.map, np.uint8, n_bytes, slot * memory.slot_bytes)
        pictures = pixels.reshape(len(shown), height, width, 3)
        is_as_told = (height, width) == (facts["height"], facts["width"])
        aspect = float(facts["pixel_aspect"]) if is_as_told else 1.0
        frames = [_frame(s, p, aspect) for s, p in zip(shown, pictures, strict=True)]
        return Chunk(frames, pictures)

    def _give_memory(self, frame_bytes: int) -> None:
        # Each twice as large as the one before, at least: what a process keeps of them has an end.
        slot_bytes = max(SLOT_BYTES, 1 << (frame_bytes - 1).bit_length())
        largest = max((memory.slot_bytes for memory in self._memories.values()), default=0)
        if not (0 < frame_bytes <= LARGEST_FRAME_BYTES and slot_bytes > largest):
            raise ValueError(f"frames of {frame_bytes} bytes")
        # Without a name, so that nothing of it is left whoever dies.
        descriptor = os.memfd_create("vafer-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, N_SLOTS * slot_bytes)
            memory = _Memory(mmap.mmap(descriptor, N_SLOTS * slot_bytes), slot_bytes)
            # Were it cut shorter by the other side, reading it would end this one.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            self._generation += 1
            self._memories = {self._generation: memory}
            self._say("memory", descriptor, memory=self._generation, slot_bytes=slot_bytes)
        finally:
            os.close(descriptor)

    def _say(self, kind: str, *descriptors: int, **values: Any) -> None:
        text = json.dumps({"kind": kind, **values}).encode()
        try:
            socket.send_fds(self._socket, [text], descriptors)
        except OSError as error:
            raise self._lost() from error

    def _hear(self) -> dict[str, Any]:
        try:
            text = self._socket.recv(LONGEST_MESSAGE)
        except TimeoutError as error:
            raise self._lost(f"showed no sign of life for {self._silence_s:g} s") from error
        except OSError as error:
            raise self._lost() from error
        if not text:
            raise self._lost()
        try:
            message = json.loads(text)
            if not isinstance(message, dict):
                raise TypeError(type(message))
        except (ValueError, TypeError, RecursionError) as error:
            raise self._lost(f"talks nonsense ({error!r})") from error
        return message

    def _lost(self, what: str = "") -> DecoderLostError:
        if not what:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            code = self._process.returncode
            if code == OUT_OF_MEMORY:
                what = "needed more memory than it may have"
            else:
                what = f"was ended by signal {-code}" if code and code < 0 else f"ended ({code})"
                if printed := self._last_line():
                    what += f": {printed}"
        self.close()
        return DecoderLostError(f"the process that decoded it {what}")

    def _last_line(self) -> str:
        """Of what it has printed; a terminal might obey it, so it is not to be shown as it is."""
        try:
            printed = os.read(self._stderr, LONGEST_MESSAGE).decode(errors="replace").split("\n")
        except OSError:  # nothing
            return ""
        return _storable(next((line for line in reversed(printed) if line.strip()), ""))


_KINDS: dict[str, tuple[type, ...]] = {
    "width": (int,), "height": (int,), "rotation": (int,), "pixel_aspect": (int, float),
    "codec": (str,), "fps": (int, float), "duration_s": (int, float), "time_base": (str,),
}  # fmt: skip


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts for the table of videos, if they are what `facts_of` gives. Raises ValueError."""
    for key, kinds in _KINDS.items():
        value = facts[key]
        if value is not None and (type(value) not in kinds or not _fits(value)):
            raise ValueError(f"{key} {value!r:.50}")
    if min(facts["width"], facts["height"]) < 1:
        raise ValueError(f"{facts['width']} × {facts['height']} pixels")
    if not 1 / MOST_PIXEL_ASPECT <= facts["pixel_aspect"] <= MOST_PIXEL_ASPECT:
        raise ValueError(f"pixel aspect {facts['pixel_aspect']}")
    if facts["rotation"] not in (None, 0, 90, 180, 270) or facts.keys() != _KINDS.keys():
        raise ValueError("facts of another kind")
    return facts


def _fits(value: float | str) -> bool:
    if isinstance(value, str):
        return len(value) < 100 and value.isascii() and value.isprintable()
    return abs(value) < 2**31


def _count(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 2**31):
        raise ValueError(f"count {value!r:.50}")
    return value


def _ended(message: dict[str, Any]) -> Ended:
    n_frames, n_bad_packets = _count(message["n_frames"]), _count(message["n_bad_packets"])
    if n_frames is None or n_bad_packets is None or message["decoder"] not in DECODERS:
        raise ValueError("an end of another kind")
    damage = message["damage"]
    return Ended(
        n_frames, n_bad_packets, None if damage is None else _storable(damage), message["decoder"]
    )


def _storable(text: Any) -> str:
    """A text of the other side that every table and stream can hold."""
    return str(text)[:LONGEST_TEXT].encode(errors="replace").decode()


def _frame(shown: Any, image: np.ndarray, pixel_aspect: float) -> Frame:
    """Raises ValueError, TypeError, OverflowError."""
    index, pts, time_s, is_cut = shown
    number = _count(index)
    if number is None or (pts is not None and not -(2**63) <= int(pts) < 2**63):
        raise ValueError("a frame beyond all counting")
    if time_s is not None and not math.isfinite(float(time_s)):
        raise ValueError("a frame at no time")
    return Frame(
        index=number,
        pts=None if pts is None else int(pts),
        time_s=None if time_s is None else float(time_s),
        image=image,
        is_cut=is_cut is True,
        pixel_aspect=pixel_aspect,
    )


@dataclass(frozen=True, slots=True)
class _Memory:
    map: mmap.mmap
    slot_bytes: int
