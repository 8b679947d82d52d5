"""What a confined process cannot do any more. It is tried in one, since there is no way back."""

import ctypes
import errno
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vafer import sandbox, seccomp

TRIES = """
import ctypes, fcntl, json, mmap, os, resource, signal, socket, subprocess, sys, threading
from pathlib import Path
folder, port, without = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
kept, parent = folder / "kept", os.getppid()
own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
from vafer import sandbox, seccomp
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
    "move others": lambda: os.sched_setaffinity(parent, {0}),
    "have others signalled": lambda: fcntl.fcntl(own[0], fcntl.F_SETOWN, parent),
    "take memory that is not counted": lambda: mmap.mmap(-1, 600 << 20).write(bytes(1)),
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
    "limit others", "move others", "have others signalled", "take memory that is not counted",
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


def verdict(steps: list[seccomp._Step], machine: int, number: int, *arguments: int) -> int:
    """What the filter says of a call: the error, 0 where it is allowed."""
    data = {0: number, 4: machine, **{16 + 8 * i: a for i, a in enumerate(arguments)}}
    at = value = 0
    while True:
        step = steps[at]
        at += 1
        match step.code:
            case seccomp._LOAD:
                value = data[step.value]
            case seccomp._EQUAL:
                at += step.then if value == step.value else step.otherwise
            case seccomp._AT_LEAST:
                at += step.then if value >= step.value else step.otherwise
            case seccomp._HAS_BITS:
                at += step.then if value & step.value else step.otherwise
            case seccomp._RETURN:
                return 0 if step.value == seccomp._ALLOW else step.value & 0xFFFF
            case _:
                raise AssertionError(step)


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_the_filter_refuses_what_it_says_and_nothing_else(name: str) -> None:
    column, machine = seccomp._COLUMNS[name]
    steps = [*seccomp._steps(column, machine)]
    thread, pid = 0x10000 | 0x100, os.getpid()

    def of(number: int | None, *arguments: int) -> int:
        assert number is not None
        return verdict(steps, machine, number, *(*arguments, 0, 0, 0, 0)[:4])

    refused = {numbers[column] for numbers in seccomp._REFUSED.values()} - {None}
    assert {of(number) for number in refused} == {errno.EPERM}
    assert of(seccomp._CLONE3[column]) == errno.ENOSYS
    checked: list[tuple[tuple[int, int], list[tuple[int, ...]], list[tuple[int, ...]]]] = [
        (seccomp._CLONE, [(thread,)], [(0x11,), (0,)]),
        (seccomp._TGKILL, [(pid,)], [(pid + 1,), (1,)]),
        (seccomp._FCNTL, [(3, 1), (3, 3), (3, 1030)], [(3, 8), (3, 10), (3, 15)]),
        (seccomp._IOCTL, [(1, 0x5401), (1, 0x80086601)], [(1, 0x40086602), (1, 0x8901)]),
        (
            seccomp._MMAP,
            [(0, 1, 3, 0x22), (0, 1, 3, 0x01), (0, 1, 1, 0x02), (0, 1, 3, 0x20022)],
            [(0, 1, 3, 0x21), (0, 1, 3, 0x23)],
        ),
        *((numbers, [(0,)], [(1,), (pid,)]) for numbers in seccomp._OF_ITSELF.values()),
    ]
    for numbers, fine, wrong in checked:
        assert {of(numbers[column], *arguments) for arguments in fine} == {0}, numbers
        assert {of(numbers[column], *arguments) for arguments in wrong} == {errno.EPERM}, numbers
    special = {numbers[column] for numbers, _, _ in checked} | {seccomp._CLONE3[column]}
    others = {*range(600)} - refused - special
    assert {of(number) for number in others} == {0}
    assert verdict(steps, machine, seccomp._X32 + 1, 0, 0, 0, 0) == errno.EPERM
    assert verdict(steps, 0x40000003, 1, 0, 0, 0, 0) == errno.EPERM  # of 32-bit x86


def test_the_kernel_refuses_every_call_of_the_filter() -> None:
    code = (
        "import ctypes, errno, json, platform\n"
        "from vafer import sandbox, seccomp\n"
        "sandbox.confine(1 << 30)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "column = seccomp._COLUMNS[platform.machine()][0]\n"
        "found = {}\n"
        "for name, numbers in seccomp._REFUSED.items():\n"
        "    if numbers[column] is not None:\n"
        "        result = libc.syscall(numbers[column], -1, 0, 0, 0, 0, 0)\n"
        "        found[name] = (result, errno.errorcode[ctypes.get_errno()])\n"
        "print(json.dumps(found))"
    )
    if platform.machine() not in seccomp._COLUMNS:
        pytest.skip("no filter for this machine")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) > 40
    assert {name: result for name, result in found.items() if result != [-1, "EPERM"]} == {}


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
