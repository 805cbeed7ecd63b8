"""Start the rig's processes and restart what dies, with back-off. Knows nothing of jobs."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from daemon.notify import config as notify_config
from daemon.settings import PREFIX, Settings

log = logging.getLogger(__name__)

#: How the names of the slots' workers begin.
WORKER = "worker "
#: In the environment of everything that a daemon starts. The value names the data folder and the rig, so that another
#: daemon on the machine is not swept.
MARK, SLOT_MARK = "OVERNIGHT_MARK", "OVERNIGHT_MARK_SLOT"
#: Seconds until the next start, by how often it died in a row.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: A process that lived this long begins with a clean record.
STABLE_S = 60.0
STOP_TIMEOUT_S = 10.0


def mark(settings: Settings) -> str:
    """The mark's value for this rig."""
    return f"{settings.home}:{settings.rig}"


def slot_mark(settings: Settings, slot: str) -> str:
    """The mark's value for one slot's worker and everything below it."""
    return f"{mark(settings)}:{slot}"


def worker_name(slot: str) -> str:
    """How a slot's worker is called here, and in the daemon's beat."""
    return f"{WORKER}{slot}"


@dataclass
class Process:
    """One process that is kept running."""

    name: str
    argv: list[str]
    environment: dict[str, str]
    popen: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    deaths: int = 0
    start_at: float = 0.0
    last_exit: str = ""

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.returncode is None


@dataclass
class Supervisor:
    """Everything that runs beside the planning loop."""

    settings: Settings
    monotonic: Callable[[], float] = time.monotonic
    processes: dict[str, Process] = field(default_factory=dict)

    def add(
        self, name: str, argv: list[str], environment: Mapping[str, str] | None = None, *, after_s: float = 0.0
    ) -> None:
        """A process to keep running from now on, or from a moment later: `python -m argv...`."""
        self.processes[name] = Process(
            name,
            [sys.executable, "-m", *argv],
            {**self._environment(), **(environment or {})},
            start_at=self.monotonic() + after_s,
        )

    def start_due(self) -> None:
        """Start what does not run and is not held back."""
        for process in self.processes.values():
            if not process.alive and self.monotonic() >= process.start_at:
                self._start(process)

    def died(self) -> list[str]:
        """Names of those that have died since the last look; each one's next start is set."""
        gone = []
        for process in self.processes.values():
            if process.alive and process.popen is not None and process.popen.poll() is not None:
                self._note_death(process, process.popen.returncode)
                gone.append(process.name)
        return gone

    def pids(self) -> list[int]:
        """Of all that run."""
        return [p.popen.pid for p in self.processes.values() if p.alive and p.popen is not None]

    def report(self) -> dict[str, dict[str, object]]:
        """For the page: what runs, how often it died, and how it ended last."""
        return {
            p.name: {"alive": p.alive, "deaths": p.deaths, "last_exit": p.last_exit} for p in self.processes.values()
        }

    def age_s(self, name: str) -> float:
        """How long it has been running; 0 when it does not."""
        process = self.processes.get(name)
        return self.monotonic() - process.started if process and process.alive else 0.0

    def kill(self, name: str, *, wait: bool = True) -> None:
        """End one at once. Without waiting (it may sit in the kernel) it counts as dead all the same."""
        process = self.processes[name]
        if process.alive and process.popen is not None:
            process.popen.kill()
            code = process.popen.wait() if wait else -signal.SIGKILL
            self._note_death(process, code)

    def stop(self, names: list[str]) -> None:
        """SIGTERM to all of these, then SIGKILL to those that take too long."""
        running = [p for n in names if (p := self.processes.pop(n, None)) and p.alive and p.popen is not None]
        for process in running:
            if process.popen is not None:
                process.popen.send_signal(signal.SIGTERM)
        deadline = self.monotonic() + STOP_TIMEOUT_S
        for process in running:
            if process.popen is None:
                continue
            try:
                process.popen.wait(max(0.0, deadline - self.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop within %.0f s and was killed", process.name, STOP_TIMEOUT_S)
                process.popen.kill()
                process.popen.wait()

    def _start(self, process: Process) -> None:
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        path = self.settings.logs / f"{process.name.replace(' ', '-').replace(':', '-')}.log"
        _rotate(path)
        with path.open("ab") as output:
            process.popen = subprocess.Popen(
                process.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=process.environment,
                # Ctrl-C belongs to the daemon; and a kill of a worker's group must not hit its siblings
                start_new_session=True,
            )
        process.started = self.monotonic()

    def _note_death(self, process: Process, code: int) -> None:
        lived_s = self.monotonic() - process.started
        process.deaths = 1 if lived_s > STABLE_S else process.deaths + 1
        process.last_exit = f"signal {-code}" if code < 0 else f"status {code}"
        wait_s = BACKOFF_S[min(process.deaths, len(BACKOFF_S)) - 1]
        process.start_at = self.monotonic() + wait_s
        process.popen = None
        log.warning("%s ended (%s); it starts again in %.1f s", process.name, process.last_exit, wait_s)

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k.startswith("OVERNIGHT_SECRET_")}
        return {
            **kept,
            **as_environment(self.settings),
            MARK: mark(self.settings),
            "OVERNIGHT_PARENT_PID": str(os.getpid()),
            # setproctitle, where it is installed, would overwrite /proc/PID/environ and with it the mark
            "SPT_NOENV": "1",
            # a folder named like one of our packages in the working folder must not be imported instead
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
        }


def as_environment(settings: Settings) -> dict[str, str]:
    """The settings that differ from their defaults, as the environment variables that `load` reads."""
    values = {}
    for name, value in settings.model_dump(exclude_defaults=True).items():
        if name == "window" and not isinstance(value, str):
            continue  # a list or a table can only come from config.toml, which every process reads
        if name == "tariff":
            value = json.dumps(value)
        if name == "notify":
            value = json.dumps(notify_config.plain(settings.notify))
        if isinstance(value, Mapping):
            continue
        if isinstance(value, tuple):
            value = os.pathsep.join(str(part) for part in value)
        values[PREFIX + name.upper()] = str(value)
    return values | {PREFIX + "HOME": str(settings.home), PREFIX + "RIG": settings.rig}


def _rotate(path: Path, *, largest_bytes: int = 10_000_000) -> None:
    """Keep one older log."""
    if path.exists() and path.stat().st_size > largest_bytes:
        path.replace(path.with_suffix(".log.1"))
