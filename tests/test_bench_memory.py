"""What `bench/memory.py` counts: everything that processes share once, whatever it is of."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.memory import held_but_for_files, held_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 32 << 20
NEAR = 6 << 20  # what a process more holds itself

# At each line: takes memory of a kind, lets a child of its own read all of it too, and says so.
HOLDER = """
import mmap, os, sys, time
path, size, kept = sys.argv[1], int(sys.argv[2]), []
def take(kind):
    if kind == "file":
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ)
    if kind == "written":  # of a file, but no longer as it is on the disk
        with open(path, "rb") as file:
            private = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE)
        private[:] = b"2" * size
        return private
    if kind == "shared":
        shared = mmap.mmap(-1, size)
        shared[:] = b"3" * size
        return shared
    return bytearray(b"4" * size)
print("ready", flush=True)
for line in sys.stdin:
    kept.append(take(line.strip()))
    told, tells = os.pipe()
    if os.fork() == 0:
        sum(kept[-1][::4096])
        os.write(tells, b"1")
        time.sleep(60)
        os._exit(0)
    sum(kept[-1][::4096])
    os.read(told, 1)
    print("taken", flush=True)
"""


@pytest.mark.parametrize("kind", ["file", "written", "shared", "own"])
def test_what_two_processes_hold_counts_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "some file"
    path.write_bytes(b"1" * SIZE)
    command = [sys.executable, "-c", HOLDER, path, SIZE]
    holder = subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stranger = subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:

        def take(process: subprocess.Popen[str]) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{kind}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "taken\n"

        for process in (holder, stranger):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        before, before_but_for_files = held_bytes(holder.pid), held_but_for_files(holder.pid)
        take(holder)
        taken = held_bytes(holder.pid) - before
        assert SIZE <= taken <= SIZE + NEAR
        grown = held_but_for_files(holder.pid) - before_but_for_files
        assert (grown <= NEAR) if kind == "file" else (SIZE <= grown <= SIZE + NEAR)
        take(stranger)
        assert abs(held_bytes(holder.pid) - before - taken) <= NEAR
    finally:
        for process in (holder, stranger):
            subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)
            process.kill()
            process.communicate()
