"""Take an offer: claim it, prepare the run folder, start the child and keep it. What RQ runs in the work-horse."""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

import redis
from rq import get_current_job

from daemon.fit import settled
from daemon.for_recipes import environment_for, settings_for
from daemon.places import resolve
from daemon.rig import Slot
from daemon.rig_secrets import read_secrets
from daemon.settings import Settings, load
from daemon.store import Store, UnknownJob
from jobs.model import Cause, End, InvalidTransition, Job
from jobs.run import Order
from jobs.rundir import RunDir, run_dir, write_json
from jobs.spec import RECIPES
from workers import child
from workers.arrivals import bring_inputs, missing
from workers.keeper import Keeper
from workers.warm import WarmStart, needs_cold_start

log = logging.getLogger(__name__)

#: The warm start of the process that forked this horse; set by the worker.
warm_start = WarmStart(wanted=False)
#: The worker's settings, handed down like its imports.
settings_of_worker: Settings | None = None

RETRY_PAUSE_S = 0.2
T = TypeVar("T")


def run_attempt(job_id: str, fence: int) -> None:
    """Run the offered attempt to its end. A stale offer is left without touching the GPU."""
    current = get_current_job()
    if current is None:
        raise RuntimeError("run_attempt is started by a worker, with an offer")
    settings = settings_of_worker or load({}, os.environ)
    store = Store(current.connection)
    owner = uuid.uuid4().hex
    try:
        job = until_answered(
            lambda: store.claim(job_id, fence=fence, owner=owner, now=time.time(), lease_s=settings.lease_s)
        )
    except (InvalidTransition, UnknownJob) as error:
        log.info("offer %s of job %s is stale: %s", fence, job_id, error)
        return
    folder = run_dir(settings.runs, job_id)
    try:
        if settings.redis_url is not None and missing(job, settings) and not bring_inputs(job, folder, settings, store):
            return
        order = prepare(folder, job, settings, store)
        environment = _environment(order, job, settings, store)
    except InvalidTransition as error:
        log.info("job %s went to somebody else while its data came: %s", job_id, error)
        return
    except (OSError, ValueError, KeyError) as error:
        leave_bad_start(folder, job, error)
        return
    # a command's driver is light: it is forked even from a worker that has not preloaded
    warm = job.kind not in RECIPES or (warm_start.ready and not needs_cold_start(order.spec))
    try:
        leased_at = renew_lease(job, settings, store) if settings.redis_url is not None else time.monotonic()
    except InvalidTransition as error:
        log.info("job %s went to somebody else before it started: %s", job_id, error)
        return
    process = child.start(folder, environment, warm=warm)
    Keeper(store, settings, job, folder, process, leased_at=leased_at).keep()


def prepare(folder: RunDir, job: Job, settings: Settings, store: Store) -> Order:
    """Make the run folder and leave the orders in it; what an earlier attempt told of itself is taken away."""
    folder.create()
    for stale in (folder.result, folder.exit, folder.progress):
        stale.unlink(missing_ok=True)
    shutil.rmtree(folder.scratch, ignore_errors=True)  # of a preflight that another rig ended, or `overnight reindex`
    spec = job.effective_spec
    paths = resolve(spec, settings, settings.runs, get_job=store.get)
    memory_bytes = min((slot.memory_bytes for slot in _slots(settings, store) if slot.id in job.slots), default=0)
    order = Order(
        job_id=job.id,
        attempt=job.attempt,
        fence=job.fence,
        resume=not all(run.preflight for run in job.attempts[:-1]) and not job.attempts[-1].preflight,
        preflight=job.attempts[-1].preflight,
        spec=settled(spec, job.parallel, paths, memory_bytes),
        paths=paths,
        allow_remote_code=spec.get("model") in settings.allow_remote_code,
        rig=settings_for(spec, settings),
    )
    order.write(folder)
    write_json(folder.state, job.to_json(), durable=False)  # the queue has it; `settle` leaves the last word
    return order


def renew_lease(job: Job, settings: Settings, store: Store) -> float:
    """Renew it; the monotonic moment from which it counts. Raises InvalidTransition when the run is not ours any more."""

    def call() -> float:
        began = time.monotonic()
        store.renew(job.id, fence=job.fence, progress=None, lease_s=settings.lease_s)
        return began

    return until_answered(call)


def leave_bad_start(folder: RunDir, job: Job, error: Exception) -> None:
    """The attempt could not even begin: leave that as its result."""
    folder.create()
    full = getattr(error, "errno", None) == 28  # ENOSPC
    facts = {
        "end": End.FAILED,
        "cause": Cause.DISK_FULL if full else Cause.BAD_INPUT,
        "message": f"It could not be started: {error}",
        "hint": "Something that it names is gone since it was submitted." if not full else "Free some space.",
    }
    write_json(folder.result, {"fence": job.fence, "attempt": job.attempt, **facts})


def until_answered(call: Callable[[], T]) -> T:
    """Repeat a change until Redis has answered: every change recognises its own repeat."""
    while True:
        try:
            return call()
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(RETRY_PAUSE_S)


def _slots(settings: Settings, store: Store) -> list[Slot]:
    return [Slot.from_json(record) for record in store.rigs().get(settings.rig, {}).get("slots", [])]


def _environment(order: Order, job: Job, settings: Settings, store: Store) -> dict[str, str]:
    slots = _slots(settings, store)
    index = next((slot.index for slot in slots if slot.id == job.slots[0]), 0)
    wanted = order.spec.get("secrets") or ()
    known = read_secrets(settings.secrets_file) if wanted else {}
    threads = (os.cpu_count() or 1) * len(job.slots) // max(1, len(slots))
    folder = run_dir(settings.runs, job.id)
    return child.environment_of(
        os.environ,
        job_id=job.id,
        slots=job.slots,
        index=index,
        folder=folder.path,
        threads=max(1, threads),
        secrets={name: known[name] for name in wanted} | environment_for(order.spec, settings),
        visible=_by_index(job, slots) if settings.gpu_env == "index" else None,
    )


def _by_index(job: Job, slots: Sequence[Slot]) -> list[str] | None:
    """The indexes of the job's GPUs, which CUDA counts as the driver does (CUDA_DEVICE_ORDER=PCI_BUS_ID); None when one is not known."""
    known = {slot.id: slot.index for slot in slots if slot.is_gpu}
    return [str(known[slot]) for slot in job.slots] if all(slot in known for slot in job.slots) else None
