"""RQ's worker, made to own its slot: one mailbox, one allowed function, its whole process tree, no thread beside it.

What is overridden and why is measured in rq 3.0; the package is pinned below 3.1 because these are its inner methods.
"""

import logging
import os
import random
import signal
import time
from typing import Any, Self

import redis
from rq import Queue
from rq.exceptions import DeserializationError
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer
from rq.worker import Worker
from rq.worker.base import WorkerStatus

from daemon.process_tree import kill_tree, reap
from daemon.settings import Settings
from daemon.settle import settle
from daemon.store import ENTRYPOINT, Store, UnknownJob, mailbox
from jobs.process import die_with_parent
from jobs.spec import RECIPES
from workers.execute import until_answered
from workers.warm import WarmStart

log = logging.getLogger(__name__)

WORKER_TTL_S = 420
#: An idle worker preloads after this.
IDLE_BEFORE_PRELOAD_S = 1
SWEEP_DEADLINE_S = 30.0
RECONNECT_S = 1.0


class NotAllowed(Exception):
    """A mailbox held something else than an offer."""


class OfferJob(RQJob):
    """Even a JSON payload can name any importable function: only one is performed (S24)."""

    def perform(self) -> Any:
        """Run the offered attempt."""
        if self.func_name != ENTRYPOINT:
            raise NotAllowed(f"{self.func_name!r} is not what a mailbox may hold")
        return super().perform()


class SlotWorker(Worker):
    """The worker of one slot."""

    settings: Settings
    slot: str
    warm: WarmStart
    #: RQ would wait up to a minute before it looks again for a Redis that was away.
    max_connection_wait_time = RECONNECT_S

    @classmethod
    def of(cls, settings: Settings, slot: str, connection: "redis.Redis", warm: WarmStart) -> Self:
        """The worker that listens to this slot's mailbox, and to nothing else."""
        name = mailbox(settings.rig, slot)
        worker = cls(
            [Queue(name, connection=connection, serializer=JSONSerializer, job_class=OfferJob)],
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            job_class=OfferJob,
            worker_ttl=WORKER_TTL_S,
            log_job_description=False,
        )
        worker.settings, worker.slot, worker.warm = settings, slot, warm
        return worker

    def subscribe(self) -> None:
        """No commands by pub/sub: its thread would be forked into every horse, and wishes stand in the record."""

    def run_maintenance_tasks(self) -> None:
        """RQ's registries are not read for truth; the planner mends what is lost."""

    def check_for_suspension(self, burst: bool) -> None:
        """`rq suspend` is not how a slot is paused."""

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Nobody reads RQ's worker key; stock RQ writes it seven times per job, each time with an fsync."""

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Only for RQ's own eyes: whether a SIGTERM ends the worker now or after the job."""
        self._state = state

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """Wait for an offer; the first time that none comes, use the pause to preload."""
        if self.warm.wanted:
            if found := super().dequeue_job_and_maintain_ttl(timeout, IDLE_BEFORE_PRELOAD_S):
                return found
            self.warm.preload()
        return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """RQ's without its registries: fork, wait, sweep, and end the run."""
        if self.warm.wanted and self._is_recipe(job):
            self.warm.preload()  # it came before the first pause: its own imports would take as long
        self.set_state(WorkerStatus.BUSY)
        self.fork_work_horse(job, queue)
        try:
            self.wait_for_horse()
        finally:  # a second SIGTERM raises here, when it has killed the horse
            self._horse_pid = 0
            self._end(job)
        self.set_state(WorkerStatus.IDLE)

    def fork_work_horse(self, job: RQJob, queue: Queue) -> None:
        """Like RQ's, but the horse leads a session of its own and dies with its worker."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._horse_pid = pid
            return
        os.setsid()
        die_with_parent(signal.SIGKILL, parent)
        random.seed()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._is_horse = True
        code = 1
        try:
            job.perform()
            code = 0
        except Exception:  # whatever it was, this process ends here: the worker judges what it left
            log.exception("offer %s could not be taken", job.id)
        finally:
            os._exit(code)

    def wait_for_horse(self) -> Any:
        """Wait, then sweep before the next offer is taken."""
        ended = super().wait_for_horse()
        swept = kill_tree(deadline_s=SWEEP_DEADLINE_S)
        reap()
        if swept.signals:
            log.info("swept %d process(es) that the job had left", swept.signals)
        if swept.left:
            log.error("processes %s do not die: the slot is held", swept.left)
            self._hold_until_gone(swept.left)
        return ended

    def _end(self, job: RQJob) -> None:
        """End the run. What was no offer, or a stale one, is forgotten: a claim has taken its own entry out already."""
        ended = None
        try:
            if job.func_name != ENTRYPOINT:
                raise NotAllowed(job.func_name)
            job_id, fence = job.args
            store = Store(self.connection)
            ended = until_answered(lambda: settle(store, self.settings, job_id, fence, slot=self.slot, now=time.time()))
        except (NotAllowed, DeserializationError, ValueError) as error:
            log.error("the mailbox held something else than an offer: %s", error)
        if ended is None:
            until_answered(lambda: Store(self.connection).forget_offer(self.name, job.id))

    def _is_recipe(self, job: RQJob) -> bool:
        try:
            return Store(self.connection).get(job.args[0]).kind in RECIPES
        except (UnknownJob, redis.RedisError, IndexError):
            return False

    def _hold_until_gone(self, pids: tuple[int, ...]) -> None:
        """A process that outlives SIGKILL sits in the kernel (a wedged driver): nothing may start beside it."""
        while kill_tree(deadline_s=SWEEP_DEADLINE_S).left:
            reap()
