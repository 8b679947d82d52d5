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
import json, os, resource, socket, subprocess, sys, threading
from pathlib import Path
folder, port = Path(sys.argv[1]), int(sys.argv[2])
kept = (folder / "kept").open("r")
from vafer.sandbox import confine
confine(300 << 20)
tries = {
    "read a file": lambda: (folder / "kept").read_text(),
    "list a folder": lambda: os.listdir(folder),
    "start a thread": lambda: threading.Thread(target=int).start(),
    "make a file": lambda: (folder / "new").write_text("x"),
    "write into a file": lambda: (folder / "kept").open("r+").write("x"),
    "cut a file": lambda: os.truncate(folder / "kept", 0),
    "delete a file": lambda: (folder / "kept").unlink(),
    "rename a file": lambda: (folder / "kept").rename(folder / "other"),
    "make a folder": lambda: (folder / "sub").mkdir(),
    "link a file": lambda: (folder / "link").symlink_to(folder / "kept"),
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "connect": lambda: socket.create_connection(("127.0.0.1", port), 2),
    "listen": lambda: socket.create_server(("127.0.0.1", 0)),
    "take memory": lambda: bytearray(600 << 20),
    "signal others": lambda: os.kill(os.getppid(), 0),
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


def test_a_confined_process_reads_and_computes_and_no_more(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(sandbox._LANDLOCK_CREATE_RULESET, None, 0, sandbox._LANDLOCK_VERSION)
    if version < 1:
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-c", TRIES, str(tmp_path), str(port)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    allowed = {"read a file", "list a folder", "start a thread"}
    if version < 3:
        allowed |= {"cut a file"}
    if version < 4:
        allowed |= {"connect", "listen"}
    if version < 6:
        allowed |= {"signal others"}
    assert set(json.loads(found.stdout)) == allowed
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "kept"


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
