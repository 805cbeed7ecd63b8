"""XIDs from the kernel's log, which sees more of them than NVML, and names the process. In a thread of the sampler.

Tried in this order: a file that was named, /dev/kmsg (root, or where `kernel.dmesg_restrict` is 0), the journal
(`journalctl -k`, for members of adm or systemd-journal). Where none may be read, NVML's events are all that is known.

A sampler that took over from one that was ended reads what was written since that one's last word: a driver that hangs
has often said why before anybody could note it.
"""

import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

KMSG = Path("/dev/kmsg")
RECORD_BYTES = 8192
POLL_S = 0.2
XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<bdf>[0-9a-fA-F:]+)[^)]*\): (?P<code>\d+)(?:, pid='?(?P<pid>\d+))?(?P<rest>.*)"
)
#: The same loss, told without a code.
OFF_THE_BUS = re.compile(r"NVRM: GPU (?:at PCI:)?(?P<bdf>[0-9a-fA-F:]+)(?:\.\d)?: GPU has fallen off the bus")
FALLEN_OFF = 79
#: How a record of /dev/kmsg begins: priority, number, microseconds since the boot.
STAMP = re.compile(r"\d+,\d+,(?P<us>\d+),")


class KernelXid(NamedTuple):
    """One line of the log."""

    bus: str  # as `bus_key` writes it
    code: int
    pid: int | None
    text: str
    at: float | None = None  # when it was written, where that is earlier than its reading


def parse(line: str) -> KernelXid | None:
    """What a line says of an XID; None when it says nothing."""
    if found := XID.search(line):
        pid = int(found["pid"]) if found["pid"] else None
        return KernelXid(bus_key(found["bdf"]), int(found["code"]), pid, found[0].strip())
    if found := OFF_THE_BUS.search(line):
        return KernelXid(bus_key(found["bdf"]), FALLEN_OFF, None, found[0].strip())
    return None


def bus_key(address: str) -> str:
    """domain:bus:device as both NVML (00000000:01:00.0) and the kernel (0000:01:00) write it."""
    parts = address.lower().partition(".")[0].split(":")
    *domain, bus, device = parts if len(parts) > 2 else ["0", *parts]
    return f"{int(domain[0], 16):x}:{int(bus, 16):x}:{int(device, 16):x}"


class KernelLog(threading.Thread):
    """Follows the log from now on and puts each XID into the queue."""

    def __init__(
        self, found: "SimpleQueue[KernelXid]", *, path: Path | None = None, since: float | None = None
    ) -> None:
        super().__init__(name="kernel-log", daemon=True)
        self._found, self._path, self._since = found, path, since
        self._ended = threading.Event()
        self._journal: subprocess.Popen[bytes] | None = None
        self._descriptor, self.source = self._open()

    def end(self) -> None:
        """It dies with the process; the journal's reader must be told."""
        self._ended.set()
        if self._journal is not None:
            with suppress(OSError):
                self._journal.kill()
            self._journal.wait()

    def run(self) -> None:
        if self._descriptor is None:
            return
        for line in self._lines(self._descriptor):
            if (xid := parse(line)) is None:
                continue
            at = self._written_at(line) if self._since is not None else None
            if at is None or at > (self._since or 0.0):
                self._found.put(xid._replace(at=at))

    def _written_at(self, line: str) -> float | None:
        """When a line of what was there before us was written; the journal gives only what is young enough."""
        stamp = STAMP.match(line)
        return time.time() - time.monotonic() + int(stamp["us"]) / 1e6 if stamp else None

    def _open(self) -> tuple[int | None, str | None]:
        """A descriptor at the end of the log, and what it is; (None, None) where none may be read."""
        for path, source in ((self._path, "file"), (None if self._path else KMSG, "kmsg")):
            if path is None:
                continue
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                os.lseek(descriptor, 0, os.SEEK_END if self._since is None else os.SEEK_SET)
                if source == "kmsg":
                    _probe(descriptor)
                return descriptor, source
        return self._open_journal() if self._path is None else (None, None)

    def _open_journal(self) -> tuple[int | None, str | None]:
        if shutil.which("journalctl") is None:
            return None, None
        begin = ["--lines=0"] if self._since is None else ["--no-tail", f"--since=@{self._since:.0f}"]
        argv = ["journalctl", "--dmesg", "--follow", *begin, "--output=cat", "--quiet"]
        try:
            self._journal = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return None, None
        if self._journal.stdout is None:
            return None, None
        os.set_blocking(self._journal.stdout.fileno(), False)
        return self._journal.stdout.fileno(), "journal"

    def _lines(self, descriptor: int) -> Iterator[str]:
        rest = b""
        while not self._ended.is_set():
            try:
                piece = os.read(descriptor, RECORD_BYTES)  # of kmsg: one record
            except BlockingIOError:
                piece = b""
            except BrokenPipeError:  # records were overwritten before we read them: the next read goes on
                continue
            except OSError:
                return
            if not piece:
                if self.source != "journal":
                    self._since = None  # from here on, lines are as old as their reading
                if self._journal is not None and self._journal.poll() is not None:
                    return
                if self.source == "file":
                    self._ended.wait(POLL_S)  # a regular file is always readable
                else:
                    select.select([descriptor], [], [], 1.0)
                continue
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)


def _probe(descriptor: int) -> None:
    """Reading may be forbidden although opening is not. Raises OSError."""
    with suppress(BlockingIOError, BrokenPipeError):
        os.read(descriptor, RECORD_BYTES)
