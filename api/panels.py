"""What the status page shows of the rig: its health in words, a card for each slot, the queue, what ended.

Everything comes in: the facts of the planner, the daemon's beat, the sampler's last report. Redis is asked for one page of
records and for the counts, so that the page costs the same with a hundred thousand jobs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Any
from urllib.parse import quote

import redis

from api.acts import Act, of_slot
from api.context import ready_slots
from api.svg import sparkline
from api.wording import age, clock, count, duration, number
from daemon import telemetry
from daemon.explain import explain
from daemon.facts import Ledger
from daemon.notify import status as messages
from daemon.plan import Facts, SlotFacts
from daemon.quarantine import OUT_OF_SERVICE
from daemon.samples import SlotNow
from daemon.settings import Settings
from daemon.situation import place_in_queue
from daemon.store import BEAT_TTL_S, Store
from daemon.telemetry import Live
from jobs.model import Job, State

ROWS = 25
#: How the planner's word on a GPU in quarantine begins (daemon.quarantine.words_of).
#: A beat older than this is none, even when Redis still has it: somebody stopped the clock.
SILENT_S = 2.0 * BEAT_TTL_S
SAMPLER = "sampler"
FRESH_S = 3.0
SPARK_S, SPARK_POINTS, SPARK_GAP_S = 600.0, 120, 30.0


@dataclass(frozen=True)
class Snapshot:
    """One look at everything. `facts` is None while Redis does not answer."""

    now: float
    settings: Settings
    live: Live
    facts: Facts | None = None
    beat: Mapping[str, Any] | None = None
    counts: Mapping[str, int] | None = None
    #: The last event before this look: a follower begins there and misses nothing.
    since: str = ""
    #: The rig has published its slots at least once.
    known: bool = True


@dataclass(frozen=True)
class Banner:
    """Something that the owner should know before reading on. Levels: warn, info."""

    level: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Heart:
    """How fresh everything on the page is. `age_s` is that of the older of both; 0 when one is silent."""

    well: bool
    words: str
    daemon: str
    sampler: str
    age_s: float = 0.0

    @property
    def short(self) -> str:
        """As the page's script writes it: what is younger than a beat or two is of now, and nothing to be drawn anew every second."""
        return duration(int(self.age_s)).replace(".0", "") if self.age_s >= FRESH_S else "now"


@dataclass(frozen=True)
class SlotCard:
    """One slot, as its card shows it."""

    id: str
    title: str
    name: str
    state: str
    words: str
    shared: bool
    paused: bool
    now: SlotNow | None
    spark: tuple[str, str]
    job: Job | None
    acts: Sequence[Act] = ()
    #: Why it is out of service for a fault; empty when it is not.
    held: str = ""
    #: Why no job starts on it otherwise: in use by somebody, too hot, memory that is not free.
    because: str = ""

    @property
    def memory_ratio(self) -> float | None:
        return _ratio(self.now.memory_used_bytes, self.now.memory_total_bytes) if self.now else None

    @property
    def power_ratio(self) -> float | None:
        return _ratio(self.now.power_w, self.now.power_limit_w) if self.now else None


@dataclass(frozen=True)
class Waiting:
    """A waiting job, the reason, and where it stands: its place, and the neighbours that it may change places with."""

    job: Job
    reason: str
    place: int
    earlier: str = ""
    later: str = ""


def look(store: Store, ledger: Ledger, settings: Settings, now: float) -> Snapshot:
    """Read what the page needs. Redis away is no error here: the page says so."""
    live = telemetry.latest(settings.home, now=now)
    try:
        since = store.last_event_id()
        beat = store.last_beat(settings.rig)
        facts = ledger.facts(now, settings, ready=ready_slots(beat))
        known = bool(facts.slots) or settings.rig in store.rigs()
        return Snapshot(now, settings, live, facts, beat, store.counts(), since, known)
    except redis.RedisError:
        ledger.forget()
        return Snapshot(now, settings, live)


def heart(snap: Snapshot) -> Heart:
    """The age of the last word of the daemon and of the sampler."""
    beat_age = _beat_age_s(snap)
    daemon = "unknown" if snap.facts is None else age(beat_age) if beat_age is not None else f"over {BEAT_TTL_S} s ago"
    sampler = age(snap.live.age_s) if snap.live.age_s is not None else "never"
    well = beat_age is not None and not snap.live.stale
    if snap.facts is None:
        return Heart(False, "queue unknown", daemon, sampler)
    if beat_age is None:
        return Heart(False, "daemon silent", daemon, sampler)
    oldest_s = max(beat_age, snap.live.age_s or 0.0)
    silent = "sampler silent" + (f" {duration(snap.live.age_s)}" if snap.live.age_s is not None else "")
    return Heart(well, age(oldest_s) if well else silent, daemon, sampler, oldest_s if well else 0.0)


def banners(snap: Snapshot) -> list[Banner]:
    """What is not as it should be, and what explains an idle rig. The worst first."""
    found = [*_queue_banners(snap), *_process_banners(snap), *_telemetry_banners(snap), *_message_banners(snap)]
    return [*found, *_closed_banners(snap.facts)] if snap.facts else found


def headline(snap: Snapshot) -> str:
    """The rig in one sentence."""
    if snap.facts is None:
        return "The queue does not answer"
    counts = snap.counts or {}
    running, waiting = counts.get(State.RUNNING, 0), counts.get(State.QUEUED, 0)
    if running:
        return f"{count(running, 'job')} running" + (f", {number(waiting)} waiting" if waiting else "")
    if not waiting:
        return "Idle: nothing waits" if any(counts.values()) else "Nothing has run yet"
    if snap.facts.paused:
        return f"Paused with {count(waiting, 'job')} waiting"
    if not snap.facts.window_open and snap.facts.window_opens_at:
        return f"{count(waiting, 'job')} waiting for {clock(snap.facts.window_opens_at, snap.now, snap.facts.zone)}"
    return f"{count(waiting, 'job')} waiting"


def subline(snap: Snapshot) -> str:
    """The window, in words."""
    windows, zone = snap.settings.windows, snap.settings.zone
    if not windows.ranges:
        return "Runs at any hour"
    closes = windows.closes_at(snap.now, zone)
    if closes is not None:
        return f"Window open until {clock(closes, snap.now, zone)}"
    return "Window open" if windows.is_open(snap.now, zone) else "Window closed"


def slots(snap: Snapshot) -> list[SlotCard]:
    """A card for each slot of this rig; without Redis those that the sampler knows."""
    if snap.facts is not None:
        return [_card(snap, slot) for slot in snap.facts.slots]
    return [_blind_card(snap, slot_id, now) for slot_id, now in snap.live.slots.items()]


def waiting(facts: Facts, start: int = 0, limit: int = ROWS) -> tuple[list[Waiting], int | None]:
    """A part of the queue in the order in which it starts, offers first. Second: where the next part begins."""
    queued = [job for job in facts.jobs.values() if job.state is State.QUEUED]
    head = nsmallest(start + limit + 1, queued, key=lambda job: (job.offer is None, *place_in_queue(job)))
    around = near(facts, head)
    rows = [
        Waiting(job, explain(around, job) or "", place, _beside(head, place - 1, -1), _beside(head, place - 1, 1))
        for place, job in enumerate(head[start : start + limit], start + 1)
    ]
    return rows, start + limit if start + limit < len(queued) else None


def _beside(head: Sequence[Job], at: int, step: int) -> str:
    """The neighbour, when the two can change places."""
    if not 0 <= at + step < len(head):
        return ""
    other = head[at + step]
    return other.id if other.offer is None and other.priority is head[at].priority else ""


def near(facts: Facts, head: Sequence[Job]) -> Facts:
    """Facts that explain the head of the queue as well as all of them do: who is behind it does not matter to it."""
    parents = {parent for job in head for parent, _ in job.parents}
    jobs = {job.id: job for job in head} | {
        job_id: job for job_id, job in facts.jobs.items() if job.slots or job_id in parents
    }
    return replace(facts, jobs=jobs)


def elsewhere(facts: Facts) -> list[Job]:
    """Jobs that run on other rigs of this queue."""
    running = (job for job in facts.jobs.values() if job.state is State.RUNNING and job.rig != facts.rig)
    return sorted(running, key=lambda job: int(job.id))


def names(facts: Facts | None, ids: Iterable[str]) -> str:
    """Slots as people call them: GPU 0 and GPU 1."""
    known = {s.slot.id: title_of(s.slot.is_gpu, s.slot.index) for s in facts.slots} if facts else {}
    return " and ".join(
        known.get(slot, title_of(False, int(slot[4:])) if slot.startswith("cpu:") else slot) for slot in ids
    )


# -- inside -----------------------------------------------------------------------------------------------------------------


def _queue_banners(snap: Snapshot) -> Iterable[Banner]:
    if snap.facts is None:
        yield Banner(
            "warn",
            "Redis does not answer.",
            "The queue cannot be read. Running jobs go on, and nothing that was accepted is lost.",
        )
    elif not snap.known:
        yield Banner("warn", f"No daemon has reported from {snap.settings.rig} yet.", "Start it with: overnight up")
    elif _beat_age_s(snap) is None:
        yield Banner(
            "warn",
            f"The daemon has been silent for more than {BEAT_TTL_S} s.",
            "Nothing new starts until it is back. Running jobs go on.",
        )


def _processes(snap: Snapshot) -> Mapping[str, Mapping[str, Any]]:
    """What the daemon told last of what it started, by name."""
    return (snap.beat or {}).get("processes") or {}


def _process_banners(snap: Snapshot) -> Iterable[Banner]:
    for name, report in _processes(snap).items():
        if not report.get("alive") and not (name == SAMPLER and snap.live.stale):  # its own banner says it
            exit_ = report.get("last_exit")
            yield Banner(
                "warn",
                f"The {name} is down and will be restarted.",
                f"Last exit status: {exit_}." if exit_ is not None else "",
            )


def _telemetry_banners(snap: Snapshot) -> Iterable[Banner]:
    live = snap.live
    if live.age_s is None:
        yield Banner("warn", "No readings yet.", live.problem or "")
    elif live.stale:
        is_down = not _processes(snap).get(SAMPLER, {}).get("alive", True)
        why = "It is down and will be restarted. " if is_down else ""
        yield Banner("warn", f"The sampler spoke last {age(live.age_s)}.", f"{why}The readings below are old.")
    if live.source == "cpu":
        yield Banner("info", "No NVIDIA driver: CPU slots, sampled with psutil.", _without_repetition(live.problem))
    elif live.age_s is not None and live.problem:
        yield Banner("warn", live.problem)


def _message_banners(snap: Snapshot) -> Iterable[Banner]:
    for name, health in messages.failing_long(snap.settings, now=snap.now):
        since = clock(health.failing_since or snap.now, snap.now, snap.settings.zone)
        yield Banner(
            "warn",
            f"Messages to {name} have been failing since {since}.",
            f"The last time: {health.last_error}. Try it with: overnight notify test {name}",
        )


def _without_repetition(problem: str | None) -> str:
    """What the sampler says beyond the missing driver."""
    return "" if not problem or problem.startswith("No NVIDIA driver was found") else problem


def _closed_banners(facts: Facts) -> Iterable[Banner]:
    if facts.paused:
        yield Banner("info", "The rig is paused.", "Running jobs go on, no new one starts.")
    if not facts.window_open:
        opens = f" It opens at {clock(facts.window_opens_at, facts.now, facts.zone)}." if facts.window_opens_at else ""
        yield Banner("info", f"Outside the window.{opens}", 'Only jobs with window = "any" start now.')


def _beat_age_s(snap: Snapshot) -> float | None:
    if snap.beat is None:
        return None
    at = snap.beat.get("at")
    seconds = max(0.0, snap.now - at) if isinstance(at, (int, float)) else 0.0
    return seconds if seconds <= SILENT_S else None


def _card(snap: Snapshot, facts: SlotFacts) -> SlotCard:
    assert snap.facts is not None
    slot, now = facts.slot, snap.live.slots.get(facts.slot.id)
    job = snap.facts.jobs.get(facts.job) if facts.job else None
    state, words = _slot_state(facts, now, job)
    held = facts.problem if facts.problem and facts.problem.startswith(OUT_OF_SERVICE) else None
    return SlotCard(
        id=slot.id,
        title=title_of(slot.is_gpu, slot.index),
        name=now.name if now and not slot.is_gpu else slot.name,
        state=state,
        words=words,
        shared=not slot.is_gpu,
        paused=facts.paused,
        now=now,
        spark=_spark(snap, slot.id),
        job=job,
        acts=of_slot(facts, title_of(slot.is_gpu, slot.index), f"/do/gpus/{quote(slot.id, safe='')}", job),
        held=held.removeprefix(OUT_OF_SERVICE).strip(" ()") if held else "",
        because="" if held else facts.problem or facts.resting or "",
    )


def _blind_card(snap: Snapshot, slot_id: str, now: SlotNow) -> SlotCard:
    is_gpu = not slot_id.startswith("cpu:")
    title = title_of(is_gpu, now.index)
    return SlotCard(slot_id, title, now.name, "unknown", "unknown", not is_gpu, False, now, _spark(snap, slot_id), None)


def _slot_state(facts: SlotFacts, now: SlotNow | None, job: Job | None) -> tuple[str, str]:
    if now is not None and now.state == "lost":
        return "lost", "lost"
    if job is not None and job.state is State.RUNNING:
        return "busy", "busy, then paused" if facts.paused else "busy"
    if job is not None:
        return "busy", "starting"
    if facts.paused:
        return "paused", "paused"
    if facts.problem is not None and facts.problem.startswith(OUT_OF_SERVICE):
        return "lost", OUT_OF_SERVICE
    if not facts.ready:
        return "lost", "worker down"
    if now is not None and now.state in ("stale", "suspect"):
        return "paused", "does not answer" if now.state == "stale" else "suspect"
    if facts.problem or facts.resting:
        return "paused", "in use" if (facts.problem or "").startswith("in use") else "held"
    return "idle", "idle"


def _spark(snap: Snapshot, slot_id: str) -> tuple[str, str]:
    start = snap.now - SPARK_S
    points = [
        (float(point["at"]), float(point["utilization_mean"]))
        for point in telemetry.series(snap.settings.home, slot_id, start, snap.now, points=SPARK_POINTS)
        if point["utilization_mean"] is not None
    ]
    return sparkline(points, start, snap.now, gap=SPARK_GAP_S)


def title_of(is_gpu: bool, index: int) -> str:
    """What people call a slot."""
    return f"GPU {index}" if is_gpu else f"CPU slot {index}"


def _ratio(part: float | None, whole: float | None) -> float | None:
    return min(1.0, part / whole) if part is not None and whole else None


def energy_j(job: Job) -> float | None:
    """What all its attempts used, as far as it is known."""
    known = [float(used) for used in _usages(job, "energy_j")]
    return sum(known) if known else None


def gpu_s(job: Job) -> float | None:
    known = [float(used) for used in _usages(job, "gpu_s")]
    return sum(known) if known else None


def peak_memory_bytes(job: Job) -> float | None:
    known = [float(used) for used in (*_usages(job, "peak_memory_bytes"), *_usages(job, "peak_vram_bytes"))]
    return max(known, default=None)


def _usages(job: Job, name: str) -> Sequence[Any]:
    return [run.usage[name] for run in job.attempts if run.usage.get(name) is not None]
