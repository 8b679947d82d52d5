"""System calls that a process gives up for good, by a filter of the kernel: seccomp(2), no root.

A list of what is refused, not of what is allowed, since decoders and their libraries change: it
names the ways to reach other processes, the network, what belongs to files beside their bytes, and
memory that no limit counts. Numbers are those of asm/unistd.h, on 64-bit x86 and ARM.
"""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from typing import NamedTuple

_PR_SET_SECCOMP, _FILTER, _SET_FILTER, _AS_FAST = 22, 2, 1, 4  # linux/prctl.h, linux/seccomp.h
_SECCOMP = (317, 277)
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, (16, 24, 32, 40)  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_X32 = 0x40000000  # first number of x86-64's other set of calls
_COLUMNS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # linux/audit.h

# Numbers on x86-64 and on aarch64, None where there is no such call (asm/unistd.h of both).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # sockets, and the way around a filter
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "io_uring_setup": (425, 425),
    # processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # signals to others, looking into them, and their limits
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    # modes, owners, times and attributes of files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    # memory and queues with names, which others may share
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # parts of the kernel that decoding does not need
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40),
}  # fmt: skip
_CLONE, _CLONE3, _TGKILL = (56, 220), (435, 435), (234, 131)
_CLONE_THREAD = 0x10000
# Only of the process itself, which is number 0.
_OF_ITSELF = {
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip
# Refused with these second arguments: to have signals sent to others; flags of files.
_FCNTL, _FCNTL_REFUSED = (72, 25), (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_IOCTL = (16, 29)
_IOCTL_REFUSED = (0x8901, 0x8902, 0x40086602, 0x40046602, 0x401C5820)
# FIOSETOWN, SIOCSPGRP, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR
_MMAP, _MAP_SHARED, _MAP_ANONYMOUS = (9, 222), 0x01, 0x20  # RLIMIT_DATA counts none that is both


class _Step(NamedTuple):
    """An instruction of the filter: where its test holds, go on `then` steps further."""

    code: int
    value: int
    then: int = 0
    otherwise: int = 0


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def refuse_calls(libc: ctypes.CDLL) -> bool:
    """Refuse the calls above, with EPERM, to this process; True where the kernel has agreed.

    Threads can still be started, processes not. Needs `no_new_privs`; call it before any other
    thread runs.
    """
    if platform.machine() not in _COLUMNS:
        return False
    column, machine = _COLUMNS[platform.machine()]
    steps = [*_steps(column, machine)]
    instructions = (_Instruction * len(steps))(
        *(_Instruction(step.code, step.then, step.otherwise, step.value) for step in steps)
    )
    program = ctypes.byref(_Program(len(steps), instructions))
    # Without the flag, kernels before 5.16 slow such a process down, lest code that it runs for
    # somebody else reads its memory by speculation: it runs none.
    if libc.syscall(_SECCOMP[column], _SET_FILTER, _AS_FAST, program) == 0:
        return True
    return libc.prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0) == 0


def _steps(column: int, machine: int) -> Iterator[_Step]:
    """The filter, which starts anew with each call."""
    allow, refuse = _Step(_RETURN, _ALLOW), _Step(_RETURN, _REFUSE | errno.EPERM)

    def only_if(number: int, argument: int, test: _Step) -> Iterator[_Step]:
        """A call is allowed where the test of an argument's lower half holds."""
        yield _Step(_EQUAL, number, otherwise=4)
        yield _Step(_LOAD, _ARGUMENTS[argument])
        yield test._replace(otherwise=1)
        yield allow
        yield refuse

    yield _Step(_LOAD, _MACHINE)
    yield _Step(_EQUAL, machine, then=1)
    yield refuse  # calls of 32-bit programs
    yield _Step(_LOAD, _NUMBER)
    yield _Step(_AT_LEAST, _X32, otherwise=1)
    yield refuse
    for numbers in _REFUSED.values():
        if (refused := numbers[column]) is not None:
            yield _Step(_EQUAL, refused, otherwise=1)
            yield refuse
    # Its flags lie in memory, where no filter looks; told that it is not there, the C library
    # takes clone, whose flags are its first argument.
    yield _Step(_EQUAL, _CLONE3[column], otherwise=1)
    yield _Step(_RETURN, _REFUSE | errno.ENOSYS)
    yield from only_if(_CLONE[column], 0, _Step(_HAS_BITS, _CLONE_THREAD))
    yield from only_if(_TGKILL[column], 0, _Step(_EQUAL, os.getpid()))  # as abort(3) does
    for numbers in _OF_ITSELF.values():
        yield from only_if(numbers[column], 0, _Step(_EQUAL, 0))
    for number, commands in (
        (_FCNTL[column], _FCNTL_REFUSED),
        (_IOCTL[column], _IOCTL_REFUSED),
    ):
        yield _Step(_EQUAL, number, otherwise=2 + 2 * len(commands))
        yield _Step(_LOAD, _ARGUMENTS[1])
        for command in commands:
            yield _Step(_EQUAL, command, otherwise=1)
            yield refuse
        yield allow
    yield _Step(_EQUAL, _MMAP[column], otherwise=5)
    yield _Step(_LOAD, _ARGUMENTS[3])
    yield _Step(_HAS_BITS, _MAP_ANONYMOUS, otherwise=2)
    yield _Step(_HAS_BITS, _MAP_SHARED, otherwise=1)
    yield refuse
    yield allow
    yield allow
