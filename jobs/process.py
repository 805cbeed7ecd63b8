"""Processes that die with their parent, forked or exec'd, and whether memory ran out. Linux only."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
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


def fork(work: Callable[[], int], environment: Mapping[str, str], folder: Path, output: int) -> int:
    """A child of this process as it is now, that does this work in a folder and exits with what it returns. Its pid.

    `output`: descriptor that both its outputs go to.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent(signal.SIGKILL, parent)
        _redirect(output)
        for sig in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(sig, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's own clean-up may run here


def execute(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, output: int, keep: Collection[int] = ()
) -> int:
    """A new Python with these arguments. Its pid; whoever starts it collects it. `keep`: descriptors that it inherits."""
    parent = os.getpid()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**environment, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
        cwd=folder,
        pass_fds=keep,
        preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent),
    )
    process.returncode = 0  # Popen would collect it, too
    return process.pid


def _redirect(output: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


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
