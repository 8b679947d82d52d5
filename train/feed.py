"""Crops by index → batches on the device, so that the network never waits for them.

The whole set lies decoded on the device where it fits. Otherwise threads decode the batches to come
into pinned memory, from which they are copied without the host waiting.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from train.cache import CropStore
from train.data import FaceSet
from vafer.errors import UsageError

SHARE_OF_MEMORY = 0.5  # of the device's free memory that a decoded set may take
BATCHES_AHEAD = 3
CONTROL_GROUPS = Path("/sys/fs/cgroup")
DECODED_AT_ONCE = 64  # crops, per task of a thread


class Feed:
    """The crops of some sets, one after the other, as uint8 (n, C, S, S) on a device."""

    def __init__(
        self,
        sets: Sequence[FaceSet],
        device: torch.device,
        in_memory: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        self.device = device
        self.sources = [faces.crops for faces in sets]
        self.source_of = np.repeat(np.arange(len(sets)), [len(faces) for faces in sets])
        self.row_of = np.concatenate([faces.rows for faces in sets])
        shapes = {_shape(faces) for faces in sets}
        if len(shapes) != 1:
            raise UsageError(f"crops of several shapes in one feed: {sorted(shapes)}")
        self.shape = shapes.pop()
        n_bytes = len(self) * int(np.prod(self.shape))
        fits = n_bytes <= SHARE_OF_MEMORY * free_memory(device)
        self.decoded: torch.Tensor | None = None
        if in_memory == "always" or (in_memory == "auto" and fits):
            self.decoded = torch.empty((len(self), *self.shape), dtype=torch.uint8, device=device)
            start = 0
            for part in self._read_ahead(
                np.array_split(np.arange(len(self)), len(self) // 2048 + 1)
            ):
                self.decoded[start : start + len(part)] = part
                start += len(part)

    def __len__(self) -> int:
        return len(self.row_of)

    def batches(self, chosen: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """The crops of each array of indices, in order; the arrays are taken some batches ahead."""
        if self.decoded is not None:
            for indices in chosen:
                at = torch.from_numpy(indices).to(self.device, non_blocking=True)
                yield self.decoded.index_select(0, at)
        else:
            yield from self._read_ahead(chosen)

    def _read_ahead(self, chosen: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        pinned = self.device.type == "cuda"
        ahead: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        with _threads() as threads:
            try:
                for indices in chosen:
                    buffer = torch.empty(
                        (len(indices), *self.shape), dtype=torch.uint8, pin_memory=pinned
                    )
                    ahead.append((buffer, self._decode(threads, indices, buffer)))
                    if len(ahead) > BATCHES_AHEAD:
                        yield self._next(ahead)
                while ahead:
                    yield self._next(ahead)
            finally:
                threads.shutdown(cancel_futures=True)

    def _next(self, ahead: deque[tuple[torch.Tensor, list[Future[None]]]]) -> torch.Tensor:
        buffer, tasks = ahead.popleft()
        for task in tasks:
            task.result()
        return buffer.to(self.device, non_blocking=True)

    def _decode(
        self, threads: ThreadPoolExecutor, indices: np.ndarray, into: torch.Tensor
    ) -> list[Future[None]]:
        """Start decoding into a tensor (n, C, S, S)."""
        array = into.numpy()

        def some(start: int) -> None:
            for place in range(start, min(start + DECODED_AT_ONCE, len(indices))):
                index = indices[place]
                crops, row = self.sources[self.source_of[index]], self.row_of[index]
                array[place] = crops.decode(row) if isinstance(crops, CropStore) else crops[row]

        return [threads.submit(some, start) for start in range(0, len(indices), DECODED_AT_ONCE)]


def free_memory(device: torch.device) -> int:
    """Bytes that a device could give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each of which keeps its own
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(memory["MemAvailable"].split()[0]) * 1024
    return int(min(free, _left_by_groups(Path("/proc/self/cgroup"), CONTROL_GROUPS))) // n_processes


def _left_by_groups(own: Path, groups: Path) -> float:
    """Bytes that the process's control groups (v2), as of a container, leave it; else infinite.

    What they hold of files that nobody reads any more is not counted, since it can go.
    """
    left = math.inf
    try:
        (name,) = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::")]
        group = groups / name.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(groups) and (folder / "memory.max").is_file():
                most = (folder / "memory.max").read_text().strip()
                stat = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])
                left = left if most == "max" else min(left, int(most) - used)
    except (OSError, ValueError, KeyError):
        return left
    return max(left, 0)


def _shape(faces: FaceSet) -> tuple[int, int, int]:
    if isinstance(faces.crops, CropStore):
        return faces.crops.channels, faces.crops.size, faces.crops.size
    _, channels, height, width = faces.crops.shape
    return channels, height, width


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")
