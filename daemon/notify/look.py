"""What the messenger sees of the rig: the queue's ends, and what a person must know of at once."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import redis

from daemon import quarantine, telemetry
from daemon.facts import disk_hold, problem_of
from daemon.notify.decide import Seen, Trouble
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import BEAT_TTL_S, Store, Wanted
from daemon.supervisor import STABLE_S, WORKER
from daemon.telemetry import Live
from jobs.model import Job, State

#: How long each trouble must last before it is one.
DISK_S, SILENT_S, DEAD_S, LOST_S = 20.0, 60.0, 90.0, 45.0
#: So many waiting jobs are looked at to tell whether all of them are held.
HELD_READ = 50
EVENTS_PER_LOOK, EVENTS_PER_READ = 20_000, 1_000
ENDED_PER_READ, ENDED_READ = 200, 2_000
#: The processes that a beat tells of; ours would not be there to tell of itself.
OURS = "messages"


class Lookout:
    """Follows the queue's events from where the last look ended. Redis away is no error here."""

    def __init__(self, store: Store, settings: Settings, *, cursor: str | None, looked_at: float | None):
        self._store, self._settings = store, settings
        #: The last event that was seen; kept over restarts.
        self.cursor = cursor
        self._looked_at = looked_at
        self._dead_at: dict[str, float] = {}

    def look(self, now: float) -> Seen:
        """The rig at this moment."""
        live = telemetry.latest(self._settings.home, now=now)
        try:
            found = self._with_queue(live, now)
        except redis.RedisError:
            return Seen(now=now, troubles=(*_of_disk(self._settings), _no_queue()))
        self._looked_at = now
        return found

    def _with_queue(self, live: Live, now: float) -> Seen:
        store, settings = self._store, self._settings
        ended = self._ended()
        counts = store.counts()
        running, waiting = counts[State.RUNNING], counts[State.QUEUED]
        told = store.rigs().get(settings.rig, {})
        slots = [Slot.from_json(record) for record in told.get("slots", ())]
        held, beat = quarantine.read(store, settings.rig), store.last_beat(settings.rig)
        return Seen(
            now=now,
            troubles=(
                *_of_disk(settings),
                *_of_gpus(slots, live, held, told.get("started_at") or 0.0),
                *_of_beat(beat),
                *self._of_processes(beat, slots, now),
            ),
            ended=tuple(ended),
            running=running,
            resting=not running and (not waiting or self._nothing_will_start(waiting, now)),
        )

    def _of_processes(self, beat: Mapping[str, Any] | None, slots: list[Slot], now: float) -> Iterator[Trouble]:
        """One that is started again and again counts as dead in between, too."""
        processes = (beat or {}).get("processes", {})
        for name, report in processes.items():
            if not report.get("alive"):
                self._dead_at[name] = now
            if name != OURS and now - self._dead_at.get(name, -math.inf) < STABLE_S:
                yield _of_process(name, report, {slot.id: slot for slot in slots})

    def _nothing_will_start(self, waiting: int, now: float) -> bool:
        """Whether the jobs that wait are held, or wait for another evening or for a person."""
        settings = self._settings
        if not settings.windows.is_open(now, settings.zone) or settings.rig in self._store.paused():
            return True
        if waiting > HELD_READ:
            return False
        return all(job.held for job in self._store.page(Wanted(states=(State.QUEUED,)), limit=HELD_READ).jobs)

    def _ended(self) -> list[Job]:
        """This rig's jobs that ended since the last look, in order."""
        first = self._store.first_event_id()
        if self.cursor is None:  # what ended before anybody wanted to know is no news
            self.cursor = self._store.last_event_id()
            return []
        if first is None or _number(self.cursor) < _number(first) or _number(self.cursor) > _number(self._store.last_event_id()):  # fmt: skip
            # the stream is a new one, or it goes no longer so far back: the records know
            self.cursor = self._store.last_event_id()
            return [job for job in self._from_records() if self._is_mine(job)]
        ids: dict[str, None] = {}
        for _ in range(EVENTS_PER_LOOK // EVENTS_PER_READ):
            events = self._store.events(self.cursor, count=EVENTS_PER_READ)
            if not events:
                break
            self.cursor = events[-1].id
            final = (e.job for e in events if e.type == "state" and State(e.data["state"]).final)
            ids |= dict.fromkeys(final)
        records = self._store.get_many(list(ids))
        found = [job for job in records.values() if job.state.final and self._is_mine(job)]
        return sorted(found, key=lambda job: (job.finished_at or 0.0, int(job.id)))

    def _from_records(self) -> list[Job]:
        found: list[Job] = []
        cursor: str | None = None
        since = self._looked_at
        while since is not None and len(found) < ENDED_READ:
            page = self._store.ended(limit=ENDED_PER_READ, cursor=cursor)
            new = [job for job in page.jobs if (job.finished_at or 0.0) >= since]
            found += new
            cursor = page.next
            if cursor is None or len(new) < len(page.jobs):
                break
        return found[::-1]

    def _is_mine(self, job: Job) -> bool:
        """Of several rigs, the one that ran it last tells of it; one that never ran is told by all who send messages."""
        return not job.attempts or job.attempts[-1].rig == self._settings.rig


def _number(event_id: str) -> tuple[int, int]:
    first, _, second = event_id.partition("-")
    return int(first), int(second or 0)


# -- troubles ---------------------------------------------------------------------------------------------------------------


def _no_queue() -> Trouble:
    return Trouble(
        "queue",
        "The queue does not answer",
        "Redis is away. Running jobs go on; nothing new starts until it is back. On the rig: overnight doctor",
        SILENT_S,
    )


def _of_disk(settings: Settings) -> Iterator[Trouble]:
    if reason := disk_hold(settings):
        yield Trouble("disk", "The rig's disk is full: no job starts", f"{reason[0].upper()}{reason[1:]}.", DISK_S)


def _of_gpus(
    slots: list[Slot], live: Live, held: Mapping[str, quarantine.Quarantine], started_at: float
) -> Iterator[Trouble]:
    gpus = [slot for slot in slots if slot.is_gpu]
    if gpus and live.hold:
        yield Trouble("hold", "The rig is held: no job starts", live.hold)
    for slot in gpus:
        one = held.get(slot.id)
        if one is not None and one.active:
            text = f"{one.reason}. Jobs go on elsewhere. On the rig: overnight gpus check {slot.index}, or release {slot.index}"
            yield Trouble(f"quarantine:{slot.id}:{one.at:.0f}", f"GPU {slot.index} is out of service", text)
        elif problem := problem_of(slot, live, started_at):
            yield Trouble(f"gpu:{slot.id}", f"GPU {slot.index} takes no job", f"{slot.name}: {problem}.", LOST_S)


def _of_beat(beat: Mapping[str, Any] | None) -> Iterator[Trouble]:
    if beat is None:
        text = f"It has said nothing for more than {BEAT_TTL_S} s. Running jobs go on; nothing new starts."
        yield Trouble("daemon", "The daemon is silent", text, SILENT_S)


def _of_process(name: str, report: Mapping[str, Any], slots: Mapping[str, Slot]) -> Trouble:
    slot = slots.get(name.removeprefix(WORKER))
    what = f"The worker of GPU {slot.index}" if slot and slot.is_gpu else f"The {name}"
    text = f"It ended {report.get('deaths')} times in a row, the last time with {report.get('last_exit')}. On the rig: overnight doctor"  # fmt: skip
    return Trouble(f"process:{name}", f"{what} does not stay alive", text, DEAD_S)
