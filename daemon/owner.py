"""Who uses a GPU: our own jobs, the desktop, or somebody else, who comes first. Reads /proc, asks no driver.

The driver lists the processes of every user by the pids of the host. First hit wins: *own* (the daemon's mark in its
environment, which a process that was forked away keeps; or it descends from the daemon), *desktop* (a compositor or a
browser: memory, but nobody at work), *unseen* (no such pid here: it ended, or lives outside this container), *other*.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from daemon.samples import GpuProcess

MIB = 1 << 20
#: Below this, a process only looks at the GPU. Graphics needs more to be a game.
LEAST_COMPUTE_BYTES, LEAST_GRAPHICS_BYTES = 256 * MIB, 512 * MIB
#: Names as the kernel cuts them, to 15 bytes.
DESKTOP = frozenset(
    """Xorg Xwayland gnome-shell mutter mutter-x11-fram gnome-remote-de gnome-control-c nautilus kwin_wayland kwin_x11
    plasmashell plasma-keyboard krunner systemsettings xwaylandvideobr sway Hyprland weston cosmic-comp cinnamon xfwm4
    budgie-wm gdm-x-session sddm-greeter xdg-desktop-por firefox firefox-bin chrome chromium brave msedge electron
    thunderbird gjs""".split()  # noqa: SIM905 - a table reads better
)
LONGEST_ANCESTRY = 64


class Kind(Enum):
    """Whose a process is."""

    OWN = "own"
    DESKTOP = "desktop"
    UNSEEN = "unseen"
    OTHER = "other"


@dataclass(frozen=True)
class Process:
    """One process on a GPU, with its owner."""

    pid: int
    name: str
    kind: Kind
    memory_bytes: int | None
    #: Whether it computes; else it only draws.
    computes: bool
    #: Of ours: the slot whose worker it is, or was started by; empty: no worker's.
    slot: str = ""

    @property
    def matters(self) -> bool:
        """Whether it holds more than somebody who only looks."""
        if self.memory_bytes is None:  # the driver cannot tell (MIG, some platforms)
            return self.computes
        return self.memory_bytes >= (LEAST_COMPUTE_BYTES if self.computes else LEAST_GRAPHICS_BYTES)

    def __str__(self) -> str:
        name = self.name if self.kind is not Kind.UNSEEN else "a process that cannot be seen from here"
        holds = f", {self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes is not None else ""
        return f"{name} (pid {self.pid}{holds})"


def look_up(processes: Iterable[GpuProcess], *, mark: str, daemon: int) -> tuple[Process, ...]:
    """Whose each process is. `mark`: NAME=VALUE in the environment of all that this daemon starts."""
    return tuple(_look_up(process, mark.encode(), daemon) for process in processes)


@dataclass(frozen=True)
class Whose:
    """Tells for the sampler whose each process is. Without a mark, only descent tells."""

    mark: str
    daemon: int

    def __call__(self, processes: Iterable[GpuProcess]) -> tuple[GpuProcess, ...]:
        """The same processes, with names and owners."""
        listed = tuple(processes)
        found = look_up(listed, mark=self.mark, daemon=self.daemon)
        return tuple(
            replace(one, name=known.name, owner=known.kind.value) for one, known in zip(listed, found, strict=True)
        )


def held_bytes(processes: Iterable[GpuProcess], kind: Kind) -> int | None:
    """What the processes of this kind hold; None where the driver does not tell of one."""
    mine = [process for process in processes if process.owner == kind.value]
    known = [process.memory_bytes for process in mine if process.memory_bytes is not None]
    return None if len(known) < len(mine) else sum(known)


def strangers(processes: Sequence[Process], *, idle: bool) -> tuple[Process, ...]:
    """Those who use the GPU for themselves. Under a job of ours, who cannot be seen may be the job (a container's pids)."""
    kinds = {Kind.OTHER, Kind.UNSEEN} if idle else {Kind.OTHER}
    return tuple(process for process in processes if process.kind in kinds and process.matters)


def _look_up(process: GpuProcess, mark: bytes, daemon: int) -> Process:
    folder, computes = Path(f"/proc/{process.pid}"), "C" in process.kind
    try:
        name, parent = _stat(folder)
        own = _carries(folder, mark) or _descends(parent, daemon)
    except (FileNotFoundError, ProcessLookupError):
        return Process(process.pid, "", Kind.UNSEEN, process.memory_bytes, computes)
    kind = Kind.OWN if own else Kind.DESKTOP if name in DESKTOP else Kind.OTHER
    slot = _slot_of(folder, mark) if own else ""
    return Process(process.pid, name, kind, process.memory_bytes, computes, slot)


def _slot_of(folder: Path, mark: bytes) -> str:
    """From `OVERNIGHT_MARK_SLOT=<mark's value>:<slot>` (daemon.supervisor)."""
    name, _, value = mark.partition(b"=")
    prefix = name + b"_SLOT=" + value + b":"
    try:
        entries = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((entry.removeprefix(prefix).decode() for entry in entries if mark and entry.startswith(prefix)), "")


def _stat(folder: Path) -> tuple[str, int]:
    """Name and parent. The name may hold blanks and brackets."""
    head, _, rest = (folder / "stat").read_bytes().rpartition(b")")
    return head.partition(b"(")[2].decode(errors="replace"), int(rest.split()[1])


def _carries(folder: Path, mark: bytes) -> bool:
    if not mark:
        return False
    try:
        return mark in (folder / "environ").read_bytes().split(b"\0")
    except PermissionError:  # another user's: certainly not ours
        return False


def _descends(pid: int, ancestor: int) -> bool:
    for _ in range(LONGEST_ANCESTRY):
        if pid == ancestor:
            return True
        if pid <= 1:
            return False
        try:
            pid = _stat(Path(f"/proc/{pid}"))[1]
        except (FileNotFoundError, ProcessLookupError):
            return False
    return False
