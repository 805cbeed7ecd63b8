"""The planning loop: facts → plan → act, on every change and at least once a second. Too dull to go wrong."""

import logging
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import redis

from daemon import peers, power, redis_server, telemetry
from daemon.conditions import Conditions
from daemon.facts import Ledger
from daemon.housekeeping import Housekeeper
from daemon.newcomers import add_worker, newcomers, stand_ins
from daemon.plan import Cancel, Decision, DeclareLost, Interrupt, Offer, Withdraw, plan
from daemon.process_tree import is_alive, kill_marked, kill_tree, send
from daemon.quarantine import Warden
from daemon.redis_server import Server
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.settle import settle
from daemon.store import OldEpoch, SlotTaken, Store, UnknownJob
from daemon.supervisor import SLOT_MARK, Supervisor, slot_mark, worker_name
from daemon.sweep_watch import SweepWatch
from daemon.telemetry import Live
from jobs.model import RECORD_VERSION, Cause, End, InvalidTransition, Job, Outcome, State, Wish, WishKind

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
#: Below redis-py's own socket timeout of 5 s, or the connection would be made anew each time.
FOLLOW_BLOCK_MS = 2_000
REDIS_PAUSE_S = 0.2
#: At the earliest, a server that does not start is tried again.
REDIS_AGAIN_S = 1.0
SAY_EVERY_S = 10.0
#: Without a look for so long, leases may have run out under living workers.
BREAK_S = 3.0
#: A sampler this old that has told nothing for `telemetry.STALE_S` hangs.
SAMPLER_PATIENCE_S = 30.0
#: After the grace in which jobs save: for their end to be told and swept.
STOP_MARGIN_S = 15.0


class TakenOver(Exception):
    """Another daemon runs this rig now."""


class Alarm:
    """Wakes the loop: by a signal, a dead child, or an event in the queue."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def by_signals(self) -> None:
        """Every handled signal wakes the loop. Main thread only."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def ring(self) -> None:
        """Wake it now."""
        try:
            os.write(self._write, b"!")
        except BlockingIOError:
            return  # it is ringing already

    def wait(self, seconds: float) -> None:
        """Return at the next ring, or after so long."""
        if select.select([self._read], [], [], seconds)[0]:
            os.read(self._read, 65_536)


class Loop:
    """One rig's planner at work."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        supervisor: Supervisor,
        slots: tuple[Slot, ...],
        epoch: int,
        *,
        server: Server | None = None,
        now: Callable[[], float] = time.time,
    ):
        self._settings, self._store, self._supervisor = settings, store, supervisor
        self._slots, self._epoch, self._server, self._now = slots, epoch, server, now
        self._ledger, self._conditions = Ledger(store), Conditions(settings)
        self._housekeeper = Housekeeper(settings, now=now())
        self._warden = Warden(settings, store, began=now())
        self._sweeps = SweepWatch(store, settings.runs)
        self._alarm = Alarm()
        self._stops_asked = 0
        self._last_beat = -math.inf
        self._began = now()
        self._told_url = ""
        self._verdicts: dict[str, tuple[bool, bool, bool]] = {}
        self._dead: list[str] = []
        #: Workers that have not taken their last offer.
        self._untaken: set[str] = set()
        self._seen_since = self._seen_at = 0.0
        self._tried_redis_at = self._said_redis_at = -math.inf

    def run(self) -> None:
        """Plan until asked to stop; then let running jobs save. Raises TakenOver."""
        self._alarm.by_signals()
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._on_stop)
        threading.Thread(target=self._follow, name="events", daemon=True).start()
        while not self._stops_asked:
            self._guarded(self.run_once)
            self._alarm.wait(LOOK_EVERY_S)
        self._warden.end()
        self._stop_jobs()

    def run_once(self) -> None:
        """One look: bury the dead, start what is missing, plan, act."""
        self._look_at_redis()
        self._dead += self._supervisor.died()
        while self._dead:  # one that could not be buried, because Redis was away, is tried again at the next look
            self._bury(self._dead[0])
            self._dead.pop(0)
        live = telemetry.latest(self._settings.home, now=self._now())
        self._end_stale_sampler(live)
        self._welcome(live)
        self._supervisor.start_due()
        facts = self._ledger.facts(self._now(), self._settings, ready=self._ready(), conditions=self._conditions)
        self._end_left_behind()
        self._untaken -= {worker_name(job.slots[0]) for job in facts.here if job.state is State.RUNNING}
        for decision in plan(replace(facts, seen_for_s=self._seen_for_s())):
            self._act(decision)
        self._housekeeper.look(facts.now)
        self._warden.look(facts)
        for early in self._sweeps.look(facts):
            self._act(early)
        self._beat(facts.now)

    def _seen_for_s(self) -> float:
        """How long the queue has been seen without a break: Redis was away, or the whole machine slept."""
        now = self._now()
        if now - self._seen_at > BREAK_S:
            self._seen_since = now
        self._seen_at = now
        return now - self._seen_since

    # -- acting -----------------------------------------------------------------------------------------------------------

    def _act(self, decision: Decision) -> None:
        try:
            self._carry_out(decision)
        except OldEpoch:
            raise TakenOver(f"another daemon has taken over rig {self._settings.rig}") from None
        except (InvalidTransition, SlotTaken, UnknownJob) as error:
            log.debug("%s came too late: %s", decision, error)  # the next look sees why

    def _carry_out(self, decision: Decision) -> None:
        now = self._now()
        match decision:
            case Offer(job, slots, ahead_of):
                self._store.offer(job, rig=self._settings.rig, slots=slots, epoch=self._epoch, now=now)
                passing = f", back-filled before job {ahead_of}" if ahead_of else ""
                log.info("job %s is offered to %s%s", job, ", ".join(slots), passing)
            case Withdraw(job, fence):
                self._withdraw(job, fence)
            case DeclareLost(job, fence):
                self._end_worker_of(job, fence)
            case Interrupt(job, reason):
                self._store.wish(job, Wish(kind=WishKind.PREEMPT, reason=reason, asked_at=now))
                log.info("job %s is asked to save and leave: %s", job, reason)
            case Cancel(job, reason, ""):
                self._store.wish(job, Wish(kind=WishKind.CANCEL, reason=reason, asked_at=now))
            case Cancel(job, reason, parent):
                self._store.abandon(job, parent, reason, now=now)

    def _withdraw(self, job_id: str, fence: int) -> None:
        """Take an untaken offer back. A worker that leaves two in a row hangs: it is ended, and another one started."""
        offer = self._store.get(job_id).offer
        self._store.change(job_id, lambda record: record.withdrawn(fence=fence))
        log.warning("nobody claimed job %s: its offer is withdrawn", job_id)
        if offer and offer.rig != self._settings.rig:
            return
        name = worker_name(offer.slots[0]) if offer else ""
        if name in self._untaken and name in self._supervisor.processes:
            log.error("%s takes no offer: it is ended", name)
            self._supervisor.kill(name)
            self._bury(name)
        self._untaken ^= {name}

    def _end_worker_of(self, job_id: str, fence: int) -> None:
        """A worker that lives but no longer renews: end it; burying it ends the run."""
        job = self._store.get(job_id)
        if job.fence != fence or job.state is not State.RUNNING:
            return  # it has been told in the meantime
        if job.rig != self._settings.rig:
            self._give_back(job)
            return
        lead = job.slots[0]
        log.warning("job %s's worker is silent: it is ended", job_id)
        self._supervisor.kill(worker_name(lead))
        self._bury(worker_name(lead))

    def _give_back(self, job: Job) -> None:
        """End the run of a rig that has vanished. Every rig tries it: the fence lets one through."""
        message = f"Rig {job.rig} vanished: neither it nor the job's lease was renewed."
        outcome = Outcome(
            end=End.FAILED, cause=Cause.LOST, message=message, hint="docs/several-rigs.md: what is promised"
        )
        after = self._store.finish(job.id, fence=job.fence, outcome=outcome, now=self._now())
        log.warning("job %s was left by rig %s, which is silent; it is %s", job.id, job.rig, after.state)

    def _bury(self, name: str) -> None:
        """End what a dead worker left: its tree first, then its run, then RQ's memory of it."""
        slot = next((s.id for s in self._slots if worker_name(s.id) == name), None)
        if slot is None:
            return
        keep = [*self._supervisor.pids(), *self._warden.pids(), *([self._server.pid] if self._server else [])]
        kill_tree(keep=keep)
        kill_marked(SLOT_MARK, slot_mark(self._settings, slot))
        clear_slot(self._store, self._settings, slot, now=self._now())

    def _end_left_behind(self) -> None:
        """Processes that outlived the sweep after their job, and still hold a GPU."""
        workers = self._supervisor.pids()
        for process in self._conditions.left_behind.values():
            if process.pid in workers:
                continue
            log.error("%s was left behind on a GPU by a job on %s that has ended: it is ended", process, process.slot)
            send(process.pid, signal.SIGKILL)
        self._conditions.left_behind.clear()

    def _welcome(self, live: Live) -> None:
        """Make slots of GPUs that have come since the start. CPU slots that stood in for them go when they are free."""
        found = newcomers(self._settings.slots, self._slots, live) if (live.at or 0.0) > self._began else ()
        slots = (*self._slots, *found)
        gone = [s for s in stand_ins(self._settings.slots, slots) if not self._store.occupant(self._settings.rig, s.id)]
        if not found and not gone:
            return
        for slot in gone:
            self._supervisor.kill(worker_name(slot.id))
            self._bury(worker_name(slot.id))
            del self._supervisor.processes[worker_name(slot.id)]
        for slot in found:
            log.warning("GPU %d (%s, %s) has come and gets jobs from now on", slot.index, slot.name, slot.id)
            add_worker(self._supervisor, self._settings, slot)
        self._slots = tuple(slot for slot in slots if slot not in gone)
        told = self._store.rigs().get(self._settings.rig, {})
        record = {**told, "slots": [slot.to_json() for slot in self._slots], "problem": live.problem}
        self._store.describe_rig(self._settings.rig, record)
        threading.Thread(target=self._limit_power, args=(found,), name="power", daemon=True).start()

    def _limit_power(self, slots: tuple[Slot, ...]) -> None:
        """In a thread of its own: the driver may take its time."""
        for sentence in power.set_limits(power.wanted(self._settings.gpu_power_limit_w, slots)):
            log.info("%s", sentence)

    def _end_stale_sampler(self, live: Live) -> None:
        """A sampler that hangs in the driver is replaced. Nobody waits for it: it may be stuck in the kernel."""
        if live.stale and self._supervisor.age_s("sampler") > SAMPLER_PATIENCE_S:
            self._supervisor.kill("sampler", wait=False)

    def _ready(self) -> list[str]:
        report = self._supervisor.report()
        return [slot.id for slot in self._slots if report.get(worker_name(slot.id), {}).get("alive")]

    def _beat(self, now: float) -> None:
        """We live, and this is what we think of each GPU. At once when something of it has changed."""
        url, conditions = peers.address(self._settings), self._conditions.latest
        verdicts = {slot: condition.verdict for slot, condition in conditions.items()}
        late = now - self._last_beat >= peers.beat_every_s(self._settings)
        if not late and (url, verdicts) == (self._told_url, self._verdicts):
            return
        self._last_beat, self._told_url, self._verdicts = now, url, verdicts
        self._store.beat(
            self._settings.rig,
            {
                "at": now,
                "pid": os.getpid(),
                "processes": self._supervisor.report(),
                "conditions": {slot: condition.to_json() for slot, condition in conditions.items()},
                "identity": peers.identity(self._settings),
                "records": RECORD_VERSION,
                "url": url,
            },
        )

    # -- Redis and stopping -------------------------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], None]) -> None:
        """Redis away: bring the embedded one back, or wait for the other; nothing is lost meanwhile."""
        try:
            step()
        except TakenOver:
            raise
        except redis.RedisError as error:
            if time.monotonic() - self._said_redis_at > SAY_EVERY_S:
                self._said_redis_at = time.monotonic()
                log.warning("Redis does not answer: %s", error)
            self._bring_redis_back()
        except Exception:  # one record that trips the planner must not end the night for all the others
            log.exception("this look failed; the next one follows")
            self._ledger.forget()

    def _bring_redis_back(self) -> None:
        self._ledger.forget()
        if self._settings.redis_url is not None or time.monotonic() - self._tried_redis_at < REDIS_AGAIN_S:
            return
        self._tried_redis_at = time.monotonic()
        if self._server is not None:
            self._server.collect()
            self._server = None
        try:
            self._server = redis_server.start(self._settings)
        except redis_server.RedisUnavailable as problem:
            log.error("%s", problem)

    def _look_at_redis(self) -> None:
        """The death of the embedded server, our child, has woken us: no need to wait until a client has given up."""
        if self._server is not None and not is_alive(self._server.pid):
            log.warning("Redis has ended; it is started again")
            self._bring_redis_back()

    def _follow(self) -> None:
        """In a thread of its own: ring when something happened in the queue."""
        # a place of its own: the ledger's moves only when the loop has read, and until then this would spin
        last: str | None = None
        while True:
            try:
                last = last or self._store.last_event_id()
                if events := self._store.events(last, block_ms=FOLLOW_BLOCK_MS):
                    last = events[-1].id
            except redis.RedisError:
                last = None  # Redis was away: its stream may be a new one
                time.sleep(REDIS_PAUSE_S)
            self._alarm.ring()

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stops_asked += 1

    def _stop_jobs(self) -> None:
        """Ask every job here to save and go back to the queue, and wait for it. A second signal waits no longer."""
        self._guarded(self._ask_all_to_stop)
        deadline = time.monotonic() + self._settings.grace_s + STOP_MARGIN_S
        while self._stops_asked < 2 and time.monotonic() < deadline:
            running: list[str] = []

            def look() -> None:
                self._supervisor.died()
                self._ledger.refresh()
                running.extend(job.id for job in self._ledger.facts(self._now(), self._settings).here)  # noqa: B023

            self._guarded(look)
            if not running:
                return
            self._alarm.wait(LOOK_EVERY_S)

    def _ask_all_to_stop(self) -> None:
        now = self._now()
        for job in self._ledger.facts(now, self._settings).here:
            if job.state is State.RUNNING:
                wish = Wish(
                    kind=WishKind.PREEMPT, reason="Overnight was stopped; it goes on at the next start.", asked_at=now
                )
                self._act_wish(job.id, wish)
            else:
                self._act(Withdraw(job.id, job.fence))

    def _act_wish(self, job_id: str, wish: Wish) -> None:
        try:
            self._store.wish(job_id, wish)
        except InvalidTransition as error:
            log.debug("job %s ended by itself: %s", job_id, error)


def clear_slot(store: Store, settings: Settings, slot: str, *, now: float) -> None:
    """For a slot whose processes are all dead: end the run that it led, and nothing else.

    A gang only stays on its other slots: when the worker of one of those dies, the gang runs on. (Giving it back there ran
    gangs twice under random kills.)
    """
    store.empty_mailbox(settings.rig, slot)
    occupant = store.occupant(settings.rig, slot)
    if occupant is None or occupant.lead != slot:
        return
    after = settle(store, settings, occupant.job, occupant.fence, slot=slot, now=now)
    if after is not None:
        log.info("job %s, left on %s by a dead worker, is %s", after.id, slot, after.state)
