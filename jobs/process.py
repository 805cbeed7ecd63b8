"""What a process asks of the kernel: to die with its parent, and whether memory ran out. Linux only."""

import ctypes
import os
import signal
from pathlib import Path

#: prctl(2)
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """One prctl(2) call. Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def die_with_parent(sig: signal.Signals, parent_pid: int) -> None:
    """Get `sig` when the parent dies; exit at once when it is dead already.

    It follows the thread that forked us and does not reach our own children: a complement to sweeping, not the whole.
    """
    prctl(PR_SET_PDEATHSIG, int(sig))
    if os.getppid() != parent_pid:
        os._exit(1)


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for memory; 0 where it does not tell (cgroup v2)."""
    try:
        group = Path("/proc/self/cgroup").read_text().partition("0::")[2].splitlines()[0]
        words = Path(f"/sys/fs/cgroup{group}/memory.events").read_text().split()
        return int(dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", 0))
    except (OSError, IndexError, ValueError):
        return 0
