"""A process that decodes recordings for another one: `python -m vafer.decoding SOCKET MEMORY`.

What comes out of a file may take the decoder over, so it runs confined, and the other side believes
nothing that it says (`vafer.workers`): both talk in JSON, a message a packet of the socket. Frames
lie in memory that both map, some in each slot; a message of frames names a slot, which is this
side's again when it comes back. A side that finds the socket closed stops.
"""

import json
import mmap
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vafer.sandbox import confine

if TYPE_CHECKING:
    from vafer.probe import VideoInfo
    from vafer.video import Frame

LONGEST_MESSAGE = 1 << 16  # bytes
LONGEST_TEXT = 4000  # characters of an error
LARGEST_FRAME_BYTES, LONGEST_SIDE = 1 << 30, 1 << 16  # of a picture that is handed over
N_SLOTS, SLOT_BYTES, MOST_FRAMES = 4, 16 << 20, 8  # slots are larger where one frame is
ALIVE_EVERY_S = 1.0
OUT_OF_MEMORY = 77  # exit status


def facts_of(info: "VideoInfo") -> dict[str, Any]:
    """What the table of videos says of a recording that was probed."""
    return {
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "pixel_aspect": info.pixel_aspect,
        "codec": info.codec,
        "fps": info.fps,
        "duration_s": info.duration_s,
        "time_base": None if info.time_base is None else str(info.time_base),
    }


def frames_in_slot(frame_bytes: int, slot_bytes: int) -> int:
    """How many frames are handed over at once: each time costs the other side some."""
    return min(MOST_FRAMES, slot_bytes // frame_bytes)


class Link:
    """This side of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._memory: mmap.mmap | None = None
        self._slot_bytes = 0
        self._generation = 0  # of the memory
        self._free: list[int] = []
        self._shown: list[list[Any]] = []  # frames in the slot `_free[-1]`, not told of yet
        self._shape: tuple[int, ...] = ()  # of their pictures
        self._said_s = time.monotonic()

    def tell(self, kind: str, **values: Any) -> None:
        """Say something, after all that was shown before it."""
        self._hand_over()
        self._say(kind, **values)

    def alive(self) -> None:
        """Show that something goes on, now and then."""
        if time.monotonic() - self._said_s >= ALIVE_EVERY_S:
            self.tell("alive")

    def next_job(self) -> dict[str, Any] | None:
        """Wait for something to do; None where the other side is gone."""
        while (message := self._receive()) is not None:
            if message["kind"] == "job":
                return message
        return None

    def show(self, frame: "Frame") -> None:
        """Hand over a frame, with the next ones; waits until there is room."""
        n_bytes = frame.image.nbytes
        if n_bytes > self._slot_bytes:
            self._ask_for_memory(n_bytes)
        if frame.image.shape != self._shape:
            self._hand_over()
            self._shape = frame.image.shape
        while not self._free:
            if self._receive() is None:
                raise BrokenPipeError
        assert self._memory is not None
        start = self._free[-1] * self._slot_bytes + len(self._shown) * n_bytes
        self._memory[start : start + n_bytes] = frame.image.data.cast("B")
        self._shown.append([frame.index, frame.pts, frame.time_s, frame.is_cut])
        if len(self._shown) == frames_in_slot(n_bytes, self._slot_bytes):
            self._hand_over()
        self.alive()

    def _hand_over(self) -> None:
        if self._shown:
            height, width = self._shape[:2]
            shown, self._shown = self._shown, []
            self._say(
                "frames", memory=self._generation, slot=self._free.pop(), height=height,
                width=width, frames=shown,
            )  # fmt: skip

    def _say(self, kind: str, **values: Any) -> None:
        self._socket.sendall(json.dumps({"kind": kind, **values}).encode())
        self._said_s = time.monotonic()

    def _ask_for_memory(self, frame_bytes: int) -> None:
        self.tell("memory", frame_bytes=frame_bytes)
        generation = self._generation
        while self._generation == generation:
            if self._receive() is None:
                raise BrokenPipeError

    def _receive(self) -> dict[str, Any] | None:
        text, descriptors, _, _ = socket.recv_fds(self._socket, LONGEST_MESSAGE, 1)
        if not text:
            return None
        message: dict[str, Any] = json.loads(text)
        if message["kind"] == "free" and message["memory"] == self._generation:
            self._free.insert(0, message["slot"])
        elif message["kind"] == "memory":
            self._slot_bytes, self._generation = message["slot_bytes"], message["memory"]
            self._memory = mmap.mmap(descriptors[0], N_SLOTS * self._slot_bytes)
            self._free = list(range(N_SLOTS))
            os.close(descriptors[0])
        return message


def serve(link: Link) -> None:
    """Do one job after the other, until the other side is gone."""
    while (job := link.next_job()) is not None:
        try:
            decode(link, job)
        except BrokenPipeError:
            return


def decode(link: Link, job: dict[str, Any]) -> None:
    """Decode one recording, telling what it is, its frames, and how it ended."""
    from dataclasses import replace

    from vafer import container
    from vafer.cuts import with_cuts
    from vafer.decoders import N_THREADS
    from vafer.errors import VideoError, display_path
    from vafer.options import Sampling
    from vafer.probe import probe
    from vafer.video import VideoReader

    container.on_packet = link.alive
    path = Path(os.fsdecode(bytes.fromhex(job["path"])))
    try:
        info = probe(path)
        if job["is_retry"] and info.decoder == "decord":
            info = replace(info, decoder="pyav")
        n_expected = None if info.pts is None else len(info.pts)
        link.tell("opened", facts=facts_of(info), n_expected=n_expected)
        n_threads = 1 if job["is_retry"] else N_THREADS
        reader = VideoReader(info, sampling=Sampling(**job["sampling"]), n_threads=n_threads)
        for frame in with_cuts(reader):
            height, width = frame.image.shape[:2]
            if frame.image.nbytes > LARGEST_FRAME_BYTES or max(height, width) > LONGEST_SIDE:
                raise VideoError(
                    f"{display_path(path)}: pictures of {width:,} × {height:,} pixels; expected at "
                    f"most {LARGEST_FRAME_BYTES // 3:,} pixels and {LONGEST_SIDE:,} on a side; "
                    "shrink them, or try --workers 1"
                )
            link.show(frame)
        link.tell(
            "ended", n_frames=reader.n_frames, damage=reader.damage,
            n_bad_packets=reader.n_bad_packets, decoder=reader.decoder,
        )  # fmt: skip
    except BrokenPipeError:
        raise
    except VideoError as error:
        link.tell("failed", error=str(error)[:LONGEST_TEXT])
    except OSError as error:
        link.tell("failed", error=f"{display_path(path)}: {error.strerror or error}"[:LONGEST_TEXT])
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # what it holds goes with it; the other side tries once more
    except Exception as error:  # of a decoder or of vafer: it costs this recording alone
        link.tell("failed", error=f"{display_path(path)}: {error!r}"[:LONGEST_TEXT])


def main() -> None:
    number, most_bytes = map(int, sys.argv[1:])
    confine(most_bytes)
    with socket.socket(fileno=number) as sock:
        serve(Link(sock))


if __name__ == "__main__":
    main()
