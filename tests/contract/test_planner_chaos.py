"""Nothing is offered twice and nothing runs twice: planners of two lives, workers that die and hang, mail that comes twice and
late, on the real store. Gangs, backlog and cancellations among them. Many seeds; each failure prints its own story."""

import random
from pathlib import Path

import pytest

from daemon.facts import Ledger
from daemon.plan import Cancel, DeclareLost, Interrupt, Offer, Withdraw, plan
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import OldEpoch, SlotTaken, Store
from jobs.model import Cause, End, InvalidTransition, Outcome, State, Wish, WishKind
from jobs.spec import parse

SLOTS = tuple(Slot(f"GPU-{n}", "card", n, 24 << 30) for n in range(4))
JOBS = 12
ENDS = (
    Outcome(end=End.SUCCEEDED),
    Outcome(end=End.SUCCEEDED),
    Outcome(end=End.SUCCEEDED),
    Outcome(end=End.INTERRUPTED),
    Outcome(end=End.FAILED, cause=Cause.SIGNAL),
)
LOST = Outcome(end=End.FAILED, cause=Cause.LOST)


class World:
    """What really happens on the machine, beside what the store believes."""

    def __init__(self, store: Store, home: Path, seed: int):
        self.store, self.settings = (
            store,
            Settings(home=home, rig="rig", timezone="UTC", min_run_s=0, offer_timeout_s=5),
        )
        self.luck, self.now = random.Random(seed), 1000.0
        self.ledgers = [Ledger(store), Ledger(store)]
        self.epochs = [store.new_epoch("rig")] * 2
        #: Every piece of mail that was ever sent: it may be delivered at any time, and again.
        self.mail: list[tuple[str, int]] = []
        #: Processes that really run: (job, fence) -> the slots that they use.
        self.running: dict[tuple[str, int], tuple[str, ...]] = {}
        self.dead: list[tuple[str, int]] = []
        self.story: list[str] = []

    def step(self) -> None:
        self.now += self.luck.uniform(0, 3)
        chances = {self.look: 6, self.deliver: 6, self.end: 3, self.kill: 1, self.late_words: 2, self.restart: 1}
        self.luck.choices(list(chances), list(chances.values()))[0]()

    def look(self) -> None:
        """One of the two planners looks and acts; the one of the old life does not know yet that it is."""
        who = self.luck.randrange(2)
        for decision in plan(self.ledgers[who].facts(self.now, self.settings)):
            if self.luck.random() < 0.2:
                continue  # it was killed in between
            try:
                self._act(decision, self.epochs[who])
            except (OldEpoch, SlotTaken, InvalidTransition) as refusal:
                self.story.append(f"{decision} was refused: {type(refusal).__name__}")

    def deliver(self) -> None:
        """A worker gets some mail, perhaps old, perhaps for the second time, and starts when its claim is granted."""
        if not self.mail:
            return
        job, fence = self.luck.choice(self.mail[-8:])
        try:
            claimed = self.store.claim(
                job,
                fence=fence,
                owner=f"horse {self.luck.random()}",
                now=self.now,
                lease_s=self.luck.choice([30, -100]),
            )
        except InvalidTransition:
            return
        busy = {slot: run for run, slots in self.running.items() for slot in slots}
        assert not any(name == job for name, _ in self.running), f"job {job} runs twice"
        assert not set(claimed.slots) & set(busy), f"{claimed.slots} are used already"
        self.running[job, fence] = claimed.slots
        self.story.append(f"job {job} runs on {claimed.slots} (fence {fence})")

    def end(self) -> None:
        """An attempt ends by itself: its processes are gone first, then it is told."""
        if self.running:
            run = self._bury(self.luck.choice(list(self.running)))
            self._tell(run, self.luck.choice(ENDS))

    def kill(self) -> None:
        """A worker dies; the daemon sweeps, and tells for it."""
        if self.running:
            self._tell(self._bury(self.luck.choice(list(self.running))), LOST)

    def late_words(self) -> None:
        """Somebody who is long dead still says something, or an owner wants a job gone."""
        if self.dead:
            job, fence = self.luck.choice(self.dead)
            self._tell((job, fence), ENDS[0])
        if self.luck.random() < 0.1:
            job = str(self.luck.randint(1, JOBS))
            if not self.store.get(job).state.final:
                self.store.wish(job, Wish(kind=WishKind.CANCEL, reason="", asked_at=self.now))

    def restart(self) -> None:
        """A new daemon: its epoch counts, and one planner of the old life goes on for a while."""
        if self.luck.random() < 0.3:
            newer = self.luck.randrange(2)
            self.epochs[newer] = self.store.new_epoch("rig")
            self.ledgers[newer].forget()

    def _act(self, decision: object, epoch: int) -> None:
        match decision:
            case Offer(job, slots):
                self.mail.append((job, self.store.offer(job, rig="rig", slots=slots, epoch=epoch, now=self.now).fence))
            case Withdraw(job, fence):
                self.store.change(job, lambda record: record.withdrawn(fence=fence))
            case DeclareLost(job, fence):
                if (job, fence) in self.running:
                    self._bury((job, fence))
                self._tell((job, fence), LOST)
            case Interrupt(job, reason):
                self.store.wish(job, Wish(kind=WishKind.PREEMPT, reason=reason, asked_at=self.now))
            case Cancel(job, reason):
                self.store.wish(job, Wish(kind=WishKind.CANCEL, reason=reason, asked_at=self.now))
        self.story.append(str(decision))

    def _bury(self, run: tuple[str, int]) -> tuple[str, int]:
        del self.running[run]
        self.dead.append(run)
        return run

    def _tell(self, run: tuple[str, int], outcome: Outcome) -> None:
        try:
            after = self.store.finish(run[0], fence=run[1], outcome=outcome, now=self.now)
        except InvalidTransition:
            return
        self.story.append(f"job {run[0]} (fence {run[1]}) ended {outcome.end}: {after.state}")

    def check(self) -> None:
        """Whoever really runs is whom the store believes to run, on the slots that it believes."""
        used = [slot for slots in self.running.values() for slot in slots]
        assert len(used) == len(set(used)), f"two jobs on one slot: {self.running}"
        for (job, fence), slots in self.running.items():
            record = self.store.get(job)
            assert (record.state, record.fence, record.slots) == (State.RUNNING, fence, slots)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 40))])
def test_nothing_is_offered_twice_and_nothing_runs_twice(store: Store, tmp_path: Path, seed: int) -> None:
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in SLOTS]})
    luck = random.Random(seed)
    specs = [
        parse(
            {
                "kind": "command",
                "argv": ["true"],
                "gpus": luck.choice([1, 1, 1, 2, 3]),
                "priority": luck.choice(["high", "normal", "normal", "backlog"]),
                "max_attempts": 50,
            }
        )
        for _ in range(JOBS)
    ]
    store.submit(specs, now=1.0)
    world = World(store, tmp_path, seed)
    try:
        for steps in range(4_000):
            world.step()
            world.check()
            if steps % 25 == 0 and store.counts()["queued"] + store.counts()["running"] == 0:
                break
        assert all(job.state.final for job in store.get_many([str(n) for n in range(1, JOBS + 1)]).values())
        assert all(store.occupant("rig", slot.id) is None for slot in SLOTS)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *world.story[-40:]])) from error
