"""What a rig costs that has nothing to do, and what one undisturbed job costs its Redis."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from figures import Figures
from rig import Rig, rig
from starts import both_rigs

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
END = "bench-end"


def idle(*, quick: bool) -> Iterator[Figures]:
    """CPU seconds per minute and memory of each process, both rigs at the same time."""
    duration_s = 15.0 if quick else 60.0
    cpu, memory = Figures("CPU s/min"), Figures("MiB")
    with ExitStack() as stack:
        rigs = both_rigs(stack, "cpu:2")
        time.sleep(5)
        before = {name: _cpu(each) for name, each in rigs.items()}
        began = time.monotonic()
        time.sleep(duration_s)
        minutes = (time.monotonic() - began) / 60
        for rig_name, each in rigs.items():
            used = {name: (now - before[rig_name][name]) / minutes for name, now in _cpu(each).items()}
            held = {name: _pss_bytes(pid) for name, pid in each.processes().items()}
            for name in sorted(used):
                cpu.add(f"{rig_name}: {name}", used[name])
                memory.add(f"{rig_name}: {name}", held[name])
            cpu.add(f"{rig_name}: all", sum(used.values()))
            memory.add(f"{rig_name}: all", sum(held.values()))
    yield cpu
    yield memory


def _cpu(rig: Rig) -> dict[str, float]:
    return {name: _cpu_s(pid) for name, pid in rig.processes().items()}


def _cpu_s(pid: int) -> float:
    """User and system time, with that of children that it has waited for."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(word) for word in words[11:15]) / TICKS_PER_S


def _pss_bytes(pid: int) -> int:
    """Proportional set size: a page that n processes share counts one n-th for each."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no Pss for {pid}")


def transactions(*, quick: bool) -> Iterator[Figures]:
    """Transactions and single writes per undisturbed job, as the server's MONITOR shows them; a quiet rig's are taken off."""
    jobs = 5 if quick else 20
    figures = Figures("per job")
    with rig() as ours:
        time.sleep(3)
        writes = _write_commands(ours)
        busy, busy_s = _watched(ours, jobs, writes)
        quiet, quiet_s = _watched(ours, 0, writes, at_least_s=busy_s)
    for name in sorted(busy | quiet):
        figures.add(name, (busy[name] - quiet[name] * busy_s / quiet_s) / jobs)
    yield figures


def _watched(rig: Rig, jobs: int, writes: set[str], *, at_least_s: float = 0.0) -> tuple[Counter[str], float]:
    began = time.monotonic()
    with rig.store.redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        for _ in range(jobs):
            rig.wait_succeeded(rig.command("true"))
        time.sleep(max(0.5, began + at_least_s - time.monotonic()))
        seconds = time.monotonic() - began
        rig.store.redis.echo(END)
        found: Counter[str] = Counter()
        inside = False
        for entry in monitor.listen():
            command = entry["command"]
            if END in command:
                return found, seconds
            name = command.split()[0].lower()
            if name in ("multi", "exec"):  # one packet: nobody else's commands come in between
                inside = name == "multi"
                found["transactions"] += not inside
            elif name in writes:
                found["writes inside transactions" if inside else f"write outside: {name}"] += 1
    raise AssertionError("MONITOR does not end by itself")


def _write_commands(rig: Rig) -> set[str]:
    return {str(name).lower() for name, facts in rig.store.redis.command().items() if "write" in facts["flags"]}
