"""Kills a process right after its n-th change to files, for every n: a crash at each moment that a reader could see.

Needs neither strace nor a compiler: ptrace(2) through ctypes, on Linux 5.3 or newer, x86_64 and aarch64.

What counts is a system call that succeeded and that changes files, makes a change durable, or ends it: `_CALLS` names
them. Calls on a descriptor count where it is a regular file or a folder (not a pipe, a socket, standard output or
error); an open counts where it may create or cut the file, a close where the file was open for writing. All that
merely waits, reads, maps memory or talks to other threads is noise: without it the count is the same in each run.
Not seen: changes through mmap, io_uring or ioctl, and what child processes of the action do (they outlive the kill, as
they would outlive any kill -9 of their parent). Not tried: a kill in the midst of one large write, and the loss of
power (what was written stays, synced or not).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import platform
import signal
import stat
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

PATIENCE_S = 120
"""A process that is still there after so many seconds is stuck: SIGALRM ends it, and the caller is told."""

# name: (number on x86_64, number on aarch64 or None where it has no such call, index of the descriptor argument or
# None where it takes a path). From asm/unistd_64.h and asm-generic/unistd.h.
_CALLS: dict[str, tuple[int | None, int | None, int | None]] = {
    "open": (2, None, None), "creat": (85, None, None), "openat": (257, 56, None), "close": (3, 57, 0),
    "write": (1, 64, 0), "pwrite64": (18, 68, 0), "writev": (20, 66, 0), "pwritev": (296, 70, 0),
    "pwritev2": (328, 287, 0), "sendfile": (40, 71, 0), "splice": (275, 76, 2), "copy_file_range": (326, 285, 2),
    "truncate": (76, 45, None), "ftruncate": (77, 46, 0), "fallocate": (285, 47, 0),
    "fsync": (74, 82, 0), "fdatasync": (75, 83, 0), "sync_file_range": (277, 84, 0), "syncfs": (306, 267, 0),
    "sync": (162, 81, None),
    "rename": (82, None, None), "renameat": (264, 38, None), "renameat2": (316, 276, None),
    "mkdir": (83, None, None), "mkdirat": (258, 34, None), "mknod": (133, None, None), "mknodat": (259, 33, None),
    "rmdir": (84, None, None), "unlink": (87, None, None), "unlinkat": (263, 35, None),
    "link": (86, None, None), "linkat": (265, 37, None), "symlink": (88, None, None), "symlinkat": (266, 36, None),
    "chmod": (90, None, None), "fchmod": (91, 52, 0), "fchmodat": (268, 53, None), "fchmodat2": (452, 452, None),
    "chown": (92, None, None), "fchown": (93, 55, 0), "lchown": (94, None, None), "fchownat": (260, 54, None),
    "utime": (132, None, None), "utimes": (235, None, None), "futimesat": (261, None, None),
    "utimensat": (280, 88, None),
    "setxattr": (188, 5, None), "lsetxattr": (189, 6, None), "fsetxattr": (190, 7, 0),
}  # fmt: skip
_FLAGS = {"open": 1, "openat": 2}  # which argument holds the flags
_MACHINES = {"x86_64": 0, "aarch64": 1}

# linux/ptrace.h
_SYSCALL, _SEIZE, _INTERRUPT, _LISTEN, _SYSCALL_INFO = 24, 0x4206, 0x4207, 0x4208, 0x420E
_TRACESYSGOOD, _TRACECLONE, _EXITKILL = 0x1, 0x8, 1 << 20
_EVENT_STOP = 128
_ENTRY, _EXIT = 1, 2
_INFO_BYTES = 88
_WALL = 0x40000000  # linux/wait.h: threads too

_BEGIN, _END = -1, -2  # descriptors that do not exist: a write to one changes nothing, and only a tracer takes notice


class NotPermittedError(OSError):
    """This machine does not let us trace a process of our own."""


def begin() -> None:
    """Called once by the action: what comes from here on counts, what went before was set-up."""
    _signal(_BEGIN)


def run_killed(action: Callable[[], object], after: int) -> int | None:
    """Run ``action`` in a fork and kill that with SIGKILL right after its ``after``-th call (from 1) since ``begin()``.

    ``action`` waits for its own threads. Call this from a process that has no threads and ran no torch operation.

    Returns:
        The number of calls where the action ended before there were ``after`` of them; None where it was killed.

    Raises:
        RuntimeError: the action raised (with its traceback), died of something else, or never called ``begin()``.
        NotPermittedError: see ``why_not``.
    """
    killed, calls = _traced(action, after)
    return None if killed else len(calls)


def names(action: Callable[[], object]) -> list[str]:
    """The calls that ``action`` makes since ``begin()``, in order, by name; raises as ``run_killed``."""
    return _traced(action, None)[1]


def points(action: Callable[[], object]) -> int:
    """How many calls ``action`` makes since ``begin()``: where it can be killed; raises as ``run_killed``."""
    return len(names(action))


def in_fork(action: Callable[[], Any]) -> Any:
    """What ``action`` returns (or the exception that it raised, as RuntimeError) in a fork that nobody traces."""
    with tempfile.TemporaryFile() as report:
        pid = _fork()
        if pid == 0:
            _act(lambda: pickle.dump(action(), report), report)
        _check(os.waitpid(pid, 0)[1], report)
        report.seek(0)
        return pickle.load(report)


@cache
def why_not() -> str | None:
    """Why nothing can be traced here, or None where it can: for a test to skip."""
    try:
        points(begin)
    except NotPermittedError as error:
        return f"ptrace: {error.strerror}"
    return None


# The child


def _fork() -> int:
    with warnings.catch_warnings():  # pytest-xdist has a thread that no action touches
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _act(action: Callable[[], object], report: IO[bytes]) -> NoReturn:
    """Be the child: act, and never come back to the code of the parent, nor to what it does at exit."""
    code = 1
    try:
        sys.dont_write_bytecode = True  # an import inside the action is no change that anybody asked about
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE_S)
        action()
        _signal(_END)
        report.flush()
        code = 0
    except BaseException:
        _signal(_END)
        report.seek(0)
        report.truncate()
        report.write(traceback.format_exc().encode())
        report.flush()
    finally:
        os._exit(code)


def _signal(marker: int) -> None:
    with contextlib.suppress(OSError):  # EBADF is what it is for
        os.write(marker, b"")


def _check(status: int, report: IO[bytes], doing: str = "the action") -> None:
    """Raise unless the child ended well."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        stuck = f": it was stuck for {PATIENCE_S} s" if code == -signal.SIGALRM else ""
        raise RuntimeError(f"{doing} died of {signal.Signals(-code).name}{stuck}")
    if code > 0:
        report.seek(0)
        raise RuntimeError(f"{doing} ended with {code}\n{report.read().decode()}")


# The tracer


def _traced(action: Callable[[], object], after: int | None) -> tuple[bool, list[str]]:
    """Whether ``action`` was killed, and the calls that it made."""
    if after is not None and after < 1:
        raise ValueError(f"after is {after}: the first call is 1")
    hold, go = os.pipe()
    with tempfile.TemporaryFile() as report:
        pid = _fork()
        if pid == 0:
            os.close(go)
            if not os.read(hold, 1):  # the parent cannot trace us, or is gone
                os._exit(1)
            os.close(hold)
            _act(action, report)
        os.close(hold)
        os.setpgid(pid, pid)  # so that we wait for its threads and for no other child of ours
        tracer = _Tracer(pid, after)
        try:
            try:
                tracer.seize()
                os.write(go, b"x")
            finally:
                os.close(go)
            status = tracer.follow()
        except BaseException:
            tracer.end()
            raise
        if not tracer.killed:
            _check(status, report, f"after {len(tracer.calls)} calls ({', '.join(tracer.calls[-3:])}) the action")
            if not tracer.counting:
                raise RuntimeError("the action never called begin()")
    return tracer.killed, tracer.calls


class _Tracer:
    """Follows one process and all threads that it starts, and counts what they do."""

    def __init__(self, pid: int, after: int | None) -> None:
        self.pid = pid
        self.after = after
        self.calls: list[str] = []
        self.counting = False
        self.ended = False
        self.killed = False
        self._entered: dict[int, str] = {}  # a thread's id: the call that counts which it is in
        self._info = ctypes.create_string_buffer(_INFO_BYTES)

    def seize(self) -> None:
        """Take hold of the child, which waits, and let it go on to its next system call."""
        if platform.machine() not in _MACHINES:
            raise NotPermittedError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
        _ptrace(_SEIZE, self.pid, 0, _TRACESYSGOOD | _TRACECLONE | _EXITKILL)
        _ptrace(_INTERRUPT, self.pid)
        os.waitpid(self.pid, _WALL)
        if _ptrace(_SYSCALL_INFO, self.pid, _INFO_BYTES, ctypes.addressof(self._info)) <= 0:
            raise NotPermittedError(errno.ENOSYS, "PTRACE_GET_SYSCALL_INFO says nothing")
        _ptrace(_SYSCALL, self.pid)

    def follow(self) -> int:
        """Go along until the process is gone; its wait status."""
        while True:
            thread, status = os.waitpid(-self.pid, _WALL)
            if os.WIFSTOPPED(status):
                with contextlib.suppress(ProcessLookupError):  # killed while it was stopped: the next wait says so
                    self._stopped(thread, os.WSTOPSIG(status), status >> 16)
            elif thread == self.pid:  # the kernel reports the first thread after all others
                return status

    def end(self) -> None:
        """Kill and reap."""
        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, _WALL)

    def _stopped(self, thread: int, number: int, event: int) -> None:
        if event == _EVENT_STOP and number != signal.SIGTRAP:  # a group stop lasts until SIGCONT
            _ptrace(_LISTEN, thread)
        elif number == signal.SIGTRAP | 0x80:
            self._at_system_call(thread)
            if not self.killed:
                _ptrace(_SYSCALL, thread)
        else:  # an event of the tracing itself, or a signal, which is passed on
            _ptrace(_SYSCALL, thread, 0, 0 if event else number)

    def _at_system_call(self, thread: int) -> None:
        _ptrace(_SYSCALL_INFO, thread, _INFO_BYTES, ctypes.addressof(self._info))
        if self._info.raw[0] == _ENTRY:
            number, *arguments = struct.unpack_from("=7Q", self._info.raw, 24)
            self._enter(thread, _numbers().get(number), arguments)
        elif self._info.raw[0] == _EXIT:
            name = self._entered.pop(thread, None)
            failed = self._info.raw[32]  # among them one that a signal interrupted: it is restarted, and then counts
            if name is not None and not failed and self.counting and not self.ended and not self.killed:
                self.calls.append(name)
                if len(self.calls) == self.after:
                    self.killed = True
                    os.kill(self.pid, signal.SIGKILL)

    def _enter(self, thread: int, name: str | None, arguments: list[int]) -> None:
        self._entered.pop(thread, None)
        if name is None:
            return
        where = _CALLS[name][2]
        descriptor = None if where is None else ctypes.c_int(arguments[where] & 0xFFFFFFFF).value
        if name == "write" and descriptor in (_BEGIN, _END):
            self.counting |= descriptor == _BEGIN
            self.ended |= descriptor == _END
        elif self.counting and self._changes(name, descriptor, arguments):
            self._entered[thread] = name

    def _changes(self, name: str, descriptor: int | None, arguments: list[int]) -> bool:
        if name in _FLAGS:
            flags = arguments[_FLAGS[name]]
            return bool(flags & (os.O_CREAT | os.O_TRUNC)) or flags & os.O_TMPFILE == os.O_TMPFILE
        if descriptor is None:
            return True
        if descriptor in (1, 2):
            return False
        try:
            mode = os.stat(f"/proc/{self.pid}/fd/{descriptor}").st_mode  # noqa: PTH116
            if name == "close":
                info = Path(f"/proc/{self.pid}/fdinfo/{descriptor}").read_text()
                flags = int(info.split("flags:")[1].split()[0], 8)
                return stat.S_ISREG(mode) and flags & os.O_ACCMODE != os.O_RDONLY
        except OSError:  # no such descriptor: the call will fail
            return False
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


@cache
def _numbers() -> dict[int, str]:
    column = _MACHINES[platform.machine()]
    return {number: name for name, row in _CALLS.items() if (number := row[column]) is not None}


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    return libc


def _ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> int:
    answer: int = _libc().ptrace(request, thread, address, data)
    if answer >= 0:
        return answer
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        raise ProcessLookupError(number, os.strerror(number))
    raise NotPermittedError(number, os.strerror(number))
