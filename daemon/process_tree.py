"""Whole process trees: adopting orphans, finding and ending everything that an attempt started.

RQ's own stop kills a process group; what calls setsid (every torchrun rank) survives that, so trees are swept here. Linux only.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from jobs.process import prctl

#: prctl(2)
PR_SET_CHILD_SUBREAPER = 36
SWEEP_PAUSE_S = 0.005


@dataclass(frozen=True)
class Swept:
    """What a sweep did: signals sent, and who still lives (stuck in the kernel: its slot must be held)."""

    signals: int
    left: tuple[int, ...]


def become_subreaper() -> None:
    """Orphans below this process become its children, whatever session they are in. Not inherited by fork."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")


def send(pid: int, sig: signal.Signals) -> None:
    """Signal one process; nothing when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def children(pid: int) -> list[int]:
    """The direct children of all its threads."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def descendants(pid: int, *, keep: Collection[int] = ()) -> list[int]:
    """Everything below a process, without the trees of `keep`."""
    seen: list[int] = []
    todo = children(pid)
    while todo:
        if (found := todo.pop()) not in seen and found not in keep:
            seen.append(found)
            todo += children(found)
    return seen


def kill_tree(*, keep: Collection[int] = (), deadline_s: float = 5.0) -> Swept:
    """SIGKILL everything below this process, which must be a subreaper, again and again until nothing lives."""
    return _kill_until_gone(lambda: descendants(os.getpid(), keep=keep), deadline_s)


def kill_marked(name: str, value: str, *, keep: Collection[int] = (), deadline_s: float = 5.0) -> Swept:
    """SIGKILL every other process that was started with `name=value` in its environment, or forked from one."""
    return _kill_until_gone(lambda: [pid for pid in marked(name, value) if pid not in keep], deadline_s)


def marked(name: str, value: str) -> list[int]:
    """Living processes that carry the mark, this one left out. Those of other users cannot be read."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
                if wanted in (entry / "environ").read_bytes().split(b"\0") and is_alive(int(entry.name)):
                    found.append(int(entry.name))
    return found


def reap() -> None:
    """Collect dead children that nobody waits for: adopted orphans."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill_until_gone(look: Callable[[], list[int]], deadline_s: float) -> Swept:
    """Done when a look finds nobody but those that were dead before it began.

    One that finds only dead ones is not enough: a process that dies while we read hands its children to a place that
    was read already.
    """
    end, signals = time.monotonic() + deadline_s, 0
    dead: set[int] | None = None
    while True:
        seen = look()
        left = [pid for pid in seen if is_alive(pid)]
        if not left and dead is not None and dead.issuperset(seen):
            return Swept(signals, ())
        if left and time.monotonic() > end:
            return Swept(signals, tuple(left))
        for pid in left:
            send(pid, signal.SIGKILL)
            signals += 1
        if left:
            time.sleep(SWEEP_PAUSE_S)
        dead = set(seen) - set(left)
