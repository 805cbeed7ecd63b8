"""What watching costs: the sampler on eight GPUs of the fake driver, and a night's telemetry as 600 points."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figures
from quiet import _pss_bytes
from rig import BenchFailed, short_folder

sys.path.insert(0, str(Path(__file__).parent.parent))

from fake_nvml.fakenvml import FakeNvml, build
from until import until

from daemon import telemetry
from daemon.recorder import Recorder
from daemon.samples import Identity, Minute, Sample

GPUS = 8
NIGHT_S, DAY_S, YEAR_MINUTES = 12 * 3600, 86_400, 365 * 1440
#: As long as each second is kept.
RAW_DAYS = 14
END = 1_800_000_000
#: How long, and how many days before the end of what is known it ends.
RANGES = {
    "10 minutes": (600, 0), "2 hours": (7_200, 0), "2 hours, 13 days ago": (7_200, 13), "2 hours, 100 days ago": (7_200, 100),
    "a night": (NIGHT_S, 0), "a week": (7 * DAY_S, 0), "30 days": (30 * DAY_S, 0), "30 days, 200 days ago": (30 * DAY_S, 200),
    "a year": (365 * DAY_S, 0),
}  # fmt: skip


def sampler(*, quick: bool) -> Iterator[Figures]:
    """The sampler through the binding, eight busy GPUs with two processes each: CPU, memory, driver calls, rounds."""
    seconds = 15 if quick else 60
    share, memory, calls = Figures("% of a core"), Figures("MiB"), Figures("calls per GPU-second")
    with short_folder() as home:
        fake = FakeNvml.create(home, build(home), ["3090"] * GPUS)
        for index in range(GPUS):
            fake.busy(index)
            fake.processes(index, [(os.getpid(), 8 << 30, "C"), (1, 200 << 20, "CG")])
        argv = [sys.executable, "-m", "daemon.sampler", "--home", str(home)]
        process = subprocess.Popen(argv, env=fake.env(), stderr=subprocess.DEVNULL)
        try:
            until(lambda: telemetry.latest(home, now=time.time()).at, within_s=30)
            time.sleep(5)
            for _ in range(3 if quick else 5):
                used_s, began, asked = _threads_s(process.pid), time.monotonic(), _asked(fake)
                time.sleep(seconds / (3 if quick else 5))
                wall_s = time.monotonic() - began
                for name, now_s in _threads_s(process.pid).items():
                    share.add(f"8 GPUs: {name}", (now_s - used_s[name]) / wall_s * 100)
                calls.add("driver calls", (_asked(fake) - asked) / GPUS / wall_s)
            memory.add("sampler, 8 GPUs (PSS)", _pss_bytes(process.pid))
            if fake.calls("PcieThroughput"):
                raise BenchFailed("the call that blocks for 20 ms was made")
        finally:
            process.terminate()
            process.wait(10)
    yield from (share, memory, calls)


def history(*, quick: bool) -> Iterator[Figures]:
    """Any range as at most about 600 points, of one GPU with 14 days of seconds and a year of minutes; seven more have a night."""
    figures, cpu, sizes = Figures("ms"), Figures("ms of CPU"), Figures("MiB")
    with short_folder() as home:
        _fill(home, days=1 if quick else RAW_DAYS)
        sizes.add("telemetry.sqlite", (home / "telemetry.sqlite").stat().st_size)
        for _ in range(5 if quick else 20):
            for name, (seconds, ago) in RANGES.items():
                until_s = END - ago * DAY_S
                began, used = time.perf_counter(), time.process_time()
                points = telemetry.series(home, "GPU-0", until_s - seconds, until_s, 600)
                figures.add(f"{name} as points", time.perf_counter() - began)
                cpu.add(f"{name} as points", time.process_time() - used)
                if not 100 <= len(points) <= 1200:
                    raise BenchFailed(f"{name}: {len(points)} points")
            began, used = time.perf_counter(), time.process_time()
            telemetry.summarize(home, ["GPU-0"], END - 7_200, END)
            figures.add("summary of a job of 2 hours", time.perf_counter() - began)
            cpu.add("summary of a job of 2 hours", time.process_time() - used)
    yield from (figures, cpu, sizes)


def _threads_s(pid: int) -> dict[str, float]:
    """Seconds on a CPU by the kernel's own count, in nanoseconds: `/proc/PID/stat` counts ticks of 10 ms."""
    spent = {
        task.name: int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    reads = spent[str(pid)]
    return {"reading, recording": reads, "waiting for XIDs and the log": sum(spent.values()) - reads}


def _asked(fake: FakeNvml) -> int:
    calls = fake.all_calls()
    return sum(calls.values()) - calls["EventWait"]  # waiting for events asks no GPU


def _fill(home: Path, days: int) -> None:
    recorder = Recorder(home)
    for number in range(GPUS):
        recorder.know(Identity(f"GPU-{number}", "NVIDIA GeForce RTX 3090"))
    recorder.save(now=END - DAY_S * days)
    database = recorder._database
    sample = Sample(0, 97, 45, 21_000, 71, None, 345_000, 348_000, 350_000, 10**9, 1695, 9751, 4, 2, 68, 0, 5, 0, 0, 0)
    minute = Minute(0, 60, 97.0, 99, 21_000, 70.5, 72, 344_000.0, 349_000, 1690.0, 4, 20_000_000, 30_000, 0, 0, 0)
    places = ", ".join("?" * (len(Sample._fields) + 1))
    minutes = ", ".join("?" * (len(Minute._fields) + 1))
    database.execute("BEGIN")
    for number in range(1, GPUS + 1):
        rows = (
            (number, *sample._replace(ts=ts)) for ts in range(END - (DAY_S * days if number == 1 else NIGHT_S), END)
        )
        database.executemany(f"INSERT OR REPLACE INTO s VALUES ({places})", rows)
    for table, step_s in (("s60", 60), ("s600", 600), ("s3600", 3600)):
        ages = ((1, *minute._replace(ts=END - step_s * n)) for n in range(1, YEAR_MINUTES * 60 // step_s))
        database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({minutes})", ages)
    database.execute("COMMIT")
    recorder.close()
