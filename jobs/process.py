"""What a process asks of the kernel: to die with its parent, and whether memory ran out. Linux only."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path

#: prctl(2)
PR_SET_PDEATHSIG = 1
#: Set for our own processes; another program finds its modules, its threads and the network as it would without us.
OURS_ONLY = ("PYTHONSAFEPATH", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE", "PYTORCH_NVML_BASED_CUDA_CHECK")

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
    """How many processes the kernel has killed for memory: in our control group (v2, else v1), else on the machine."""
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        groups = ""
    second = groups.partition("0::")[2].partition("\n")[0]
    first = groups.partition(":memory:")[2].partition("\n")[0]
    for path in (
        f"/sys/fs/cgroup{second}/memory.events",
        f"/sys/fs/cgroup/memory{first}/memory.oom_control",
        "/proc/vmstat",
    ):
        with contextlib.suppress(OSError, ValueError):
            words = Path(path).read_text().split()
            return int(words[words.index("oom_kill") + 1])
    return 0


def for_other_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what is meant for our own processes."""
    return {name: value for name, value in environment.items() if name not in OURS_ONLY}
