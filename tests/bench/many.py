"""Many jobs: how fast two slots drain them, and how fast 10,000 are accepted. Beside plain RQ."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

from figures import Figures
from plain import Plain, plain_rq
from rig import Rig, rig, until
from rq import Queue
from starts import PROGRAM, both_rigs

TRUE = {"kind": "command", "argv": ["true"]}
DRAIN_S = 300.0
#: Seldom: every look is work for the server that is being measured.
LOOK_S = 0.05


def drain(*, quick: bool) -> Iterator[Figures]:
    """`true` over two slots, from the submission of all to the end of the last."""
    jobs = 40 if quick else 120
    figures = Figures("jobs/s")
    with ExitStack() as stack:
        rigs = both_rigs(stack, "cpu:2")
        plain = stack.enter_context(plain_rq(2))
        for _ in range(1 if quick else 4):
            for name, each in rigs.items():
                figures.add(name, jobs / _drain_rig(each, jobs))
            figures.add("plain RQ: function + subprocess", jobs / _drain_plain(plain, jobs))
    yield figures


def _drain_rig(rig: Rig, jobs: int) -> float:
    before, began = rig.store.counts()["succeeded"], time.monotonic()
    rig.post("/api/v1/jobs/batch", {"jobs": [TRUE] * jobs})
    done = lambda: rig.store.counts()["succeeded"] - before >= jobs  # noqa: E731
    until(done, within_s=DRAIN_S, what="all jobs have ended", poll_s=LOOK_S)
    return time.monotonic() - began


def _drain_plain(plain: Plain, jobs: int) -> float:
    before, began = plain.finished(), time.monotonic()
    plain.queue.enqueue_many([Queue.prepare_data(PROGRAM, [["true"]]) for _ in range(jobs)])
    until(lambda: plain.finished() - before >= jobs, within_s=DRAIN_S, what="RQ's jobs have ended", poll_s=LOOK_S)
    return time.monotonic() - began


def batch(*, quick: bool) -> Iterator[Figures]:
    """10,000 jobs accepted in one request, while the rig is paused; RQ's come in one MULTI."""
    jobs = 10_000
    figures = Figures("s")
    with rig() as ours, plain_rq(0) as plain:
        ours.store.pause(ours.settings.rig)
        for _ in range(1 if quick else 4):
            began = time.monotonic()
            answer = ours.post("/api/v1/jobs/batch", {"jobs": [TRUE] * jobs})
            figures.add("POST /api/v1/jobs/batch", time.monotonic() - began)
            assert len(answer["jobs"]) == jobs
            began = time.monotonic()
            plain.queue.enqueue_many([Queue.prepare_data(PROGRAM, [["true"]]) for _ in range(jobs)])
            figures.add("plain RQ: enqueue_many", time.monotonic() - began)
    yield figures
