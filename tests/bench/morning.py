"""What the morning's page costs, with 100,000 jobs and a year of telemetry in store: the server's time, bytes, and a slow phone's."""

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

import psutil
from figures import Figures
from rig import BenchFailed, short_folder

sys.path.insert(0, str(Path(__file__).parent.parent))

from browser.filled_rig import GPUS, FilledRig, finetune, rig_at
from live_api import address_of, start_api
from until import until

from daemon import redis_server
from daemon.recorder import Recorder
from daemon.samples import Identity, Minute, Sample, database_path
from daemon.store import Store, connect, new_job
from jobs.model import Cause, End, Job, Outcome
from jobs.spec import parse

JOBS, WAITING = 100_000, 500
DAY_S = 86_400
YEAR_S, RAW_S = 365 * DAY_S, 3 * DAY_S
PATHS = ("/", "/fragments/night", "/fragments/slots", "/fragments/jobs")
#: As the notes' slow phone: 1.6 Mbit/s, 150 ms, a quarter of this machine's speed.
NETWORK = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 750e3 / 8}
SLOWER = 4
TICKS = 10
SOON_S = 2.0
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}  # fmt: skip
ARGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
#: Notes when the first stream opens.
WHEN_LIVE = """const Plain = EventSource; window.EventSource = class extends Plain { constructor(url) { super(url);
  this.addEventListener('open', () => { window.liveAt ||= performance.now(); }); } };"""


def page(*, quick: bool) -> Iterator[Figures]:
    """The page and its parts over HTTP, 100,000 jobs and a year of telemetry in store: while nothing happens, and when something has.

    The API's own work is told beside it: others on this machine do not lengthen that.
    """
    rounds = 10 if quick else 40
    times, sizes, first, own = Figures("ms"), Figures("kB"), Figures("ms"), Figures("ms")
    with full_rig(quick) as (rig, running, url, token):
        ask = Asker(url, token)
        time.sleep(
            SOON_S
        )  # it makes the first look ready; nobody opens the page within the second in which the rig starts
        first.add("the very first look, 2 s after the start", ask("/")[0])
        api = psutil.Process(json.loads((rig.settings.home / "api.json").read_text())["pid"])
        for path in PATHS:
            began = _cpu_s(api)
            for _ in range(rounds):
                seconds, count = ask(path)
                times.add(f"{path}, nothing new", seconds)
                sizes.add(f"{path}, compressed", count / 1000)
            own.add(f"{path}, nothing new: the API's own work", (_cpu_s(api) - began) / rounds)
        for number in range(rounds):
            for path in PATHS:
                rig.progress(rig.store.get(running), number, 2000, eta_s=60.0, loss=1.2)
                times.add(f"{path}, after a job's progress", ask(path)[0])
        waiting = list(rig.store.unfinished().values())
        for number, path in enumerate(PATHS[:2]):
            began = _cpu_s(api)
            for job in waiting[-rounds * (number + 1) :][:rounds]:
                rig.cancel(job, time.time())
                times.add(f"{path}, after a job's end", ask(path)[0])
            own.add(f"{path}, after a job's end: the API's own work", (_cpu_s(api) - began) / rounds)
    yield from (times, own, first, sizes)


def phone(*, quick: bool) -> Iterator[Figures]:
    """The same page on an emulated slow phone (1.6 Mbit/s, 150 ms, CPU / 4) and on a desktop: bytes, live, work per tick.

    Work is told twice: as the thread's own time, which others on this machine do not lengthen (it has the slowing-down in it, which is a
    loop between its instructions), and as it passes on the clock.
    """
    rounds = 2 if quick else 7
    figures = Figures("ms"), Figures("ms"), Figures("kB")
    with full_rig(quick) as (rig, running, url, token), chromium() as browser:
        Asker(url, token)("/")
        for _ in range(rounds):
            for slow in (True, False):
                _look(Visit(browser, rig, running, url, token), slow, *figures)
    yield from figures


def _cpu_s(process: psutil.Process) -> float:
    """Of all its threads, what follows the events included."""
    spent = process.cpu_times()
    return float(spent.user + spent.system)


@contextmanager
def full_rig(quick: bool) -> Iterator[tuple[FilledRig, str, str, str]]:
    """A rig with all of it, its beat, and its API."""
    with short_folder() as home:
        settings = rig_at(home)
        server = redis_server.start(settings)
        store = Store(connect(str(server.socket)))
        rig = FilledRig(settings, store, now=time.time())
        rig.begin()
        log = home / "api.log"
        own = {"OVERNIGHT_RIG": settings.rig, "OVERNIGHT_TIMEZONE": settings.timezone, "OVERNIGHT_WINDOW": settings.window}  # fmt: skip
        try:
            began = time.monotonic()
            running = fill(rig, JOBS)
            remember(home, rig.now, quick)
            rig.live(time.time())
            print(f"  filled in {time.monotonic() - began:.0f} s", flush=True)
            process = start_api(home, log, **own)
            try:
                address = address_of(home, process, log)
                yield rig, running, str(address["url"]), (home / "token").read_text().strip()
            finally:
                process.terminate()
                process.wait(10)
        finally:
            store.redis.close()
            server.stop()


def fill(rig: FilledRig, jobs: int) -> str:
    """A year of jobs, of which a night had some hundred; two run, and some wait. Returns one that runs."""
    redis, store = rig.store.redis, rig.store
    redis.config_set("appendfsync", "no")
    chance, night_s = Random(1), 9 * 3600
    documents = [parse(finetune(f"support-bot lora-r{2**n} lr=2e-4", lora={"r": 2**n})) for n in range(2, 7)]
    made: list[Job] = []
    for number in range(1, jobs - 1):
        days_ago, hour = (jobs - number) * 365 / jobs, chance.random()
        end = rig.now - max(60.0, days_ago // 1 * DAY_S + hour * night_s)
        made.append(_ended(new_job(documents[number % 5], number, end - 3600), end, rig.slots[number % 2].id, chance))
        if len(made) == 1_000 or number == jobs - 2:
            with redis.pipeline() as pipe:
                store._index_new(pipe, made)
                pipe.execute()
            made = []
    redis.set("overnight:seq", jobs - 2)
    for slot in rig.slots:
        job = rig.run(rig.submit(finetune(f"long run on {slot.index}"), rig.now - 7200), rig.now - 5400, [slot])
        rig.progress(job, 742, 2000, eta_s=3600.0, loss=1.19)
    waiting = [parse(finetune(f"waiting lora-r16 seed={n}", lora={"r": 16})) for n in range(WAITING)]
    store.submit(waiting, now=rig.now - 3000)
    rig.busy = {slot.id: 0.95 for slot in rig.slots}
    redis.config_set("appendfsync", "always")
    return job.id


def _ended(job: Job, end: float, slot: str, chance: Random) -> Job:
    run = job.offered(rig="atlas", slots=(slot,), now=end - 1900).claimed(fence=1, owner="w", now=end - 1800)
    usage = {"gpu_s": 1800.0, "energy_j": 550_000.0, "peak_memory_bytes": 19 << 30}
    if chance.random() < 0.04:
        outcome = Outcome(end=End.FAILED, cause=Cause.OOM_GPU, message="The GPU's memory ran out.", usage=usage)
        return run.ended(fence=1, outcome=outcome, now=end)
    metrics = {"eval_loss": round(1.1 + chance.random() * 0.4, 4), "train_loss": 1.1, "steps": 480}
    return run.ended(fence=1, outcome=Outcome(end=End.SUCCEEDED, metrics=metrics, usage=usage), now=end)


def remember(home: Path, now: float, quick: bool) -> None:
    """A year in minutes, ten minutes and hours, and three days of every second, of both GPUs."""
    recorder = Recorder(home)
    for slot in GPUS:
        recorder.know(Identity(slot.id, slot.name))
    recorder.save(now=now - YEAR_S)
    recorder.close()
    end, raw_s = int(now), RAW_S
    sample = Sample(0, 97, 45, 21_000, 71, None, 345_000, 348_000, 350_000, 10**9, 1695, 9751, 4, 2, 68, 0, 5, 0, 0, 0)
    minute = Minute(0, 60, 97.0, 99, 21_000, 70.5, 72, 344_000.0, 349_000, 1690.0, 4, 20_000_000, 30_000, 0, 0, 0)
    places, minutes = ", ".join("?" * (len(Sample._fields) + 1)), ", ".join("?" * (len(Minute._fields) + 1))
    with sqlite3.connect(database_path(home)) as database:
        for gid in range(1, len(GPUS) + 1):
            rows = ((gid, *sample._replace(ts=ts, energy_mj=345_000 * (ts - end + raw_s))) for ts in range(end - raw_s, end))  # fmt: skip
            database.executemany(f"INSERT OR REPLACE INTO s VALUES ({places})", rows)
            for table, step_s in (("s60", 60), ("s600", 600), ("s3600", 3600)):
                ages = ((gid, *minute._replace(ts=end // step_s * step_s - step_s * n)) for n in range(1, YEAR_S // step_s))  # fmt: skip
                database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({minutes})", ages)


class Asker:
    """One kept connection, as a browser has it."""

    def __init__(self, url: str, token: str):
        self._http = HTTPConnection(url.rpartition("/")[2], timeout=60)
        self._headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "gzip", "Accept": "text/html"}

    def __call__(self, path: str) -> tuple[float, int]:
        """Seconds until the answer was there, and its bytes."""
        began = time.perf_counter()
        self._http.request("GET", path, headers=self._headers)
        answer = self._http.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise BenchFailed(f"{path} answered {answer.status}")
        return time.perf_counter() - began, len(body)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise BenchFailed("no Chromium: install it, or set CHROMIUM to its path")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(ARGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Visit:
    """Who looks at what."""

    browser: Any
    rig: FilledRig
    running: str
    url: str
    token: str


def _look(visit: Visit, slow: bool, times: Figures, work: Figures, sizes: Figures) -> None:
    """One visit without anything kept: until it is live, and then ten ticks."""
    name, shape = ("slow phone", PHONE) if slow else ("desktop", {"viewport": {"width": 1280, "height": 900}})
    rig = visit.rig
    context = visit.browser.new_context(**shape, color_scheme="dark")
    context.request.post(f"{visit.url}/login", data={"token": visit.token})
    page = context.new_page()
    page.add_init_script(WHEN_LIVE)
    cdp, clock = context.new_cdp_session(page), context.new_cdp_session(page)
    received: list[float] = []
    cdp.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    cdp.send("Network.enable")
    cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
    clock.send("Performance.enable", {"timeDomain": "timeTicks"})
    if slow:
        cdp.send("Network.emulateNetworkConditions", NETWORK)
        cdp.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    try:
        rig.live(time.time())
        page.goto(visit.url, wait_until="load")
        until(lambda: page.evaluate("() => window.liveAt"), within_s=30.0)
        times.add(f"{name}: live", page.evaluate("() => window.liveAt") / 1000)
        times.add(f"{name}: first paint", _first_paint_s(page))
        sizes.add(f"{name}: all that came until then", sum(received) / 1000)
        began = _busy_s(cdp), _busy_s(clock)
        for tick in range(TICKS):
            step, seen = 800 + tick + int(time.time()) % 900, len(received)
            rig.live(time.time())
            rig.progress(rig.store.get(visit.running), step, 2000, eta_s=60.0, loss=1.2)
            # waits in the driver, so that its events come in and the page does nothing for it
            until(lambda seen=seen: page.wait_for_timeout(10) or len(received) > seen, within_s=15.0)  # type: ignore[misc]
            page.wait_for_timeout(250)
        work.add(f"{name}: work per tick, its own time", (_busy_s(cdp) - began[0]) / TICKS)
        work.add(f"{name}: work per tick, on the clock", (_busy_s(clock) - began[1]) / TICKS)
    finally:
        context.close()


def _first_paint_s(page: Any) -> float:
    return (
        float(page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime || 0")) / 1000
    )


def _busy_s(cdp: Any) -> float:
    """Seconds that the page's main thread has worked."""
    metrics = {metric["name"]: metric["value"] for metric in cdp.send("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])
