"""Who is this process, and does it still live? Identities that survive the reuse of process ids."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import msgspec

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None, use_errno=True)


class ProcessId(msgspec.Struct, frozen=True):
    """A process for all time: host, boot, process id, and start in clock ticks since that boot."""

    host: str
    boot: str
    pid: int
    start: int


@contextlib.contextmanager
def signal_handlers(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Handle these signals in the block, and then as before. Main thread only."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def identify_process(pid: int) -> ProcessId | None:
    """Return the identity of a living process of this host; None when there is none, or only its zombie."""
    start = _start_ticks(pid)
    return None if start is None else ProcessId(socket.gethostname(), _boot_id(), pid, start)


def process_alive(process: ProcessId) -> bool | None:
    """Whether the process lives; None when it is another host's, which cannot be known here."""
    if process.host != socket.gethostname():
        return None
    if process.boot != _boot_id():
        return False
    return _start_ticks(process.pid) == process.start


def signal_process(process: ProcessId, number: int) -> bool:
    """Send a signal to this very process; False when it is gone or of another host."""
    if not process_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_group(leader: ProcessId) -> None:
    """Kill the process group of a session leader that lives; nothing when it is gone or of another host."""
    if process_alive(leader):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)


def find_leaders(variable: str, value: str) -> list[tuple[ProcessId, dict[str, str]]]:
    """The session leaders of this host that were started with `variable=value`, with their environments.

    Other users' processes cannot be read, and are not ours. From /proc/PID/environ (proc(5)).
    """
    marker = os.fsencode(f"{variable}={value}")
    found = []
    for folder in os.scandir("/proc"):
        if not folder.name.isdigit():
            continue
        try:
            pairs = Path(folder.path, "environ").read_bytes().split(b"\0")
            leads = os.getsid(int(folder.name)) == int(folder.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        process = identify_process(int(folder.name)) if leads and marker in pairs else None
        if process is not None:
            found.append((process, dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs)))
    return found


def child_setup(parent: int) -> Callable[[], None]:
    """Return what a child must do between fork and exec.

    It asks the kernel for SIGTERM when `parent` dies (prctl(2), PR_SET_PDEATHSIG; kept over exec, so the batch shell's
    successor has it too), and undoes the parent's blocked and ignored signals, which exec would hand down.
    """

    def setup() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(128 + signal.SIGTERM)

    return setup


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None for none or a zombie. The name, field 2, may hold anything but NUL."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # hidden in some containers: the start time must do
        return ""
