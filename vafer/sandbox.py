"""What a process that decodes may do: read, compute, and answer. Plain Linux, without root.

docs/security.md says what this guards against, and what not.
"""

import ctypes
import os
import resource
import signal
from contextlib import suppress

from vafer.seccomp import refuse_calls

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
# linux/landlock.h; the numbers are the same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_VERSION = 1
_READ = (1 << 2) | (1 << 3)  # of files and of folders
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # by version of the interface: how many bits
_TCP = 0b11  # from version 4 on
_SCOPES = 0b11  # from version 6 on: sockets without a name, signals


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def confine(memory_bytes: int) -> None:
    """Give up, for this process and for good, what decoding does not need.

    It may hold `memory_bytes` of its own memory, let no file grow and leave no core; it dies with
    the thread that started it. Where the kernel has Landlock (5.13), it opens no file for writing,
    makes, renames or removes none and starts no program. What `vafer.seccomp` refuses, it cannot
    do. Call it before any other thread runs. What the kernel does not know is left out.
    """
    for kind, most in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # the user's own limit is lower still
            resource.setrlimit(kind, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):  # no Linux
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _landlock(libc)
        refuse_calls(libc)


def _landlock(libc: ctypes.CDLL) -> None:
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return
    n_rights = _FILE_RIGHTS.get(version, _FILE_RIGHTS[5])
    ruleset = _Ruleset(((1 << n_rights) - 1) & ~_READ)
    size = 8
    if version >= 4:
        ruleset.handled_access_net, size = _TCP, 16
    if version >= 6:
        ruleset.scoped, size = _SCOPES, 24
    descriptor = libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if descriptor >= 0:  # no rule is added, so nothing of what is handled is allowed
        libc.syscall(_LANDLOCK_RESTRICT_SELF, descriptor, 0)
        os.close(descriptor)
