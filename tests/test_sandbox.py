"""What a confined process cannot do any more. It is tried in one, since there is no way back."""

import ctypes
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vafer import sandbox

TRIES = """
import ctypes, json, os, resource, signal, socket, subprocess, sys, threading
from pathlib import Path
folder, port, without = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
kept, parent = folder / "kept", os.getppid()
own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
from vafer import sandbox
for name in without:
    setattr(sandbox, name, lambda libc: None)
sandbox.confine(300 << 20)

def fork():
    if os.fork() == 0:
        os._exit(0)

def raised():
    signal.signal(signal.SIGUSR1, lambda *arguments: None)
    signal.raise_signal(signal.SIGUSR1)

tries = {
    "read a file": kept.read_text,
    "list a folder": lambda: os.listdir(folder),
    "start a thread": lambda: threading.Thread(target=int).start(),
    "answer": lambda: own[0].sendall(b"x"),
    "lower its own limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "signal itself": raised,
    "make a file": lambda: (folder / "new").touch(),
    "let a file grow": lambda: os.write(os.open(kept, os.O_WRONLY | os.O_APPEND), b"x"),
    "cut a file": lambda: os.truncate(kept, 0),
    "delete a file": lambda: (folder / "spare").unlink(),
    "rename a file": lambda: (folder / "named").rename(folder / "other"),
    "make a folder": lambda: (folder / "sub").mkdir(),
    "link a file": lambda: (folder / "link").symlink_to(kept),
    "change a mode": lambda: kept.chmod(0o600),
    "change a time": lambda: os.utime(kept),
    "change an attribute": lambda: os.setxattr(kept, "user.a", b"x"),
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "start a process": fork,
    "connect": lambda: socket.create_connection(("127.0.0.1", port), 2),
    "listen": lambda: socket.create_server(("127.0.0.1", 0)),
    "send by UDP": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
    "reach a program": lambda: socket.socket(socket.AF_UNIX).connect(str(folder / "s")),
    "take memory": lambda: bytearray(600 << 20),
    "signal others": lambda: os.kill(parent, 0),
    "limit others": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
}
done = []
for name, attempt in tries.items():
    try:
        attempt()
        done.append(name)
    except (OSError, MemoryError, RuntimeError):
        pass
print(json.dumps(done))
"""
NEEDED = {
    "read a file", "list a folder", "start a thread", "answer", "lower its own limits",
    "signal itself",
}  # fmt: skip
# What the resource limits, Landlock and the filter of calls each refuse.
BY_LIMITS = {"let a file grow", "take memory"}
BY_LANDLOCK = {
    1: {"make a file", "let a file grow", "delete a file", "rename a file", "make a folder",
        "link a file", "start a program"},
    3: {"cut a file"},
    4: {"connect", "listen"},
    6: {"signal others"},
}  # fmt: skip
BY_FILTER = {
    "change a mode", "change a time", "change an attribute", "start a program", "start a process",
    "connect", "listen", "send by UDP", "reach a program", "signal others",
    "limit others",
}  # fmt: skip


def allowed(folder: Path, *without: str) -> set[str]:
    """What a confined process still can do; without: functions that take no part."""
    folder.mkdir()
    for name in ("kept", "spare", "named"):
        (folder / name).write_text("kept")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(folder / "s"))
        local.listen()
        port = server.getsockname()[1]
        command = [sys.executable, "-c", TRIES, str(folder), str(port), *without]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(found.stdout))


def test_a_confined_process_reads_computes_and_answers_and_no_more(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(sandbox._LANDLOCK_CREATE_RULESET, None, 0, sandbox._LANDLOCK_VERSION)
    by_landlock = {name for since, names in BY_LANDLOCK.items() if since <= version
                   for name in names}  # fmt: skip
    everything = allowed(tmp_path / "all", "_landlock", "refuse_calls") | BY_LIMITS
    assert everything >= NEEDED | BY_LIMITS | by_landlock
    assert everything | {"change an attribute"} >= BY_FILTER  # not every file system has them
    assert allowed(tmp_path / "filter", "_landlock") == everything - BY_LIMITS - BY_FILTER
    without_filter = allowed(tmp_path / "landlock", "refuse_calls")
    assert without_filter == everything - BY_LIMITS - by_landlock
    assert allowed(tmp_path / "both") == everything - BY_LIMITS - by_landlock - BY_FILTER
    if version >= 3:
        assert allowed(tmp_path / "again") == NEEDED
        assert {path.name for path in (tmp_path / "again").iterdir()} == {
            "kept", "spare", "named", "s",
        }  # fmt: skip
        assert (tmp_path / "again" / "kept").read_text() == "kept"


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    child = "from vafer.sandbox import confine; confine(1 << 30); import time; time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        f"process = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(1)\n"
        "print(process.pid, flush=True)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(50):
        if not Path(f"/proc/{pid}/exe").exists():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail("it lives on")
