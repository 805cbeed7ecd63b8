"""The planner and its ledger with 10,000 jobs that wait."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar
from zoneinfo import ZoneInfo

from figures import Figures
from rig import short_folder

from daemon import redis_server
from daemon.facts import Ledger
from daemon.plan import Facts, Offer, SlotFacts, plan
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.spec import parse

T = TypeVar("T")
JOBS = 10_000
SLOTS = 8


def planning(*, quick: bool) -> Iterator[Figures]:
    """One plan over all of them, with eight free slots and with one; a ledger that reads all of them; a look with nothing new."""
    figures = Figures("ms")
    with short_folder() as home:
        settings = Settings(home=home, rig="bench", timezone="UTC")
        server = redis_server.start(settings)
        store = Store(connect(str(server.socket)))
        try:
            now = time.time()
            store.submit([parse({"kind": "command", "argv": ["true"]})] * JOBS, now=now)
            for _ in range(2 if quick else 5):
                ledger = Ledger(store)
                _time(figures, "ledger: load", ledger.refresh)
                _time(figures, "ledger: nothing new", ledger.refresh)
                offers = _time(figures, "plan", partial(plan, _facts(store, now)))
                assert sum(isinstance(each, Offer) for each in offers) == SLOTS
                crowded = _crowded(_facts(store, now))
                assert not _time(figures, "plan: a gang waits, nobody fits before it", partial(plan, crowded))
        finally:
            store.redis.close()
            server.stop()
    yield figures


def _facts(store: Store, now: float) -> Facts:
    """Fresh ones: what they have computed once is kept."""
    slots = tuple(SlotFacts(Slot(id=f"GPU-{index}", name="GPU", index=index)) for index in range(SLOTS))
    return Facts(now=now, rig="bench", zone=ZoneInfo("UTC"), slots=slots, jobs=store.unfinished())


def _crowded(facts: Facts) -> Facts:
    """All slots but one are busy, a gang of eight is first, and the others, of as many lengths, would all be in its way."""
    first, *others = facts.waiting
    runs = {
        job.id: replace(job, rank=0).offered(rig="bench", slots=(s.slot.id,), now=facts.now)
        for job, s in zip(others, facts.slots[1:], strict=False)
    }
    busy = tuple(replace(s, job=job) for s, job in zip(facts.slots[1:], runs, strict=True))
    expected_s = {job.id: 600.0 + int(job.id) for job in others} | dict.fromkeys(runs, 300.0)
    jobs = {**facts.jobs, **runs, first.id: replace(first, gpus=SLOTS)}
    return replace(facts, slots=(facts.slots[0], *busy), jobs=jobs, expected_s=expected_s)


def _time(figures: Figures, name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = work()
    figures.add(name, time.perf_counter() - began)
    return result
