"""The faults of a drill that come from Redis, the disk, the GPUs and the owner."""

import json
import os
import signal
import time
import zlib
from pathlib import Path

from faults import UNTIL_REPLACED_S, freeze, kill, kind, restarted
from rig import Handle, until
from rq import Queue
from rq.serializers import JSONSerializer
from scene import Hit, Impossible, Scene, Skip
from user import NoAnswer, Refused

from daemon.store import ENTRYPOINT, Store, mailbox

#: Shorter and longer than the lease of the drill's rigs.
AWAY_S = (1.0, 9.0)
HELD_S = (1.0, 4.0)
#: The start of a command, and of a transaction, whose rest was never written.
HALF_COMMANDS = (
    b'*3\r\n$3\r\nSET\r\n$15\r\novernight:job:1\r\n$900\r\n{"id": ',
    b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$14\r\novernight:half\r\n$4\r\nlost\r\n",
)
#: What no server can read.
RUBBISH = b"*3\r\n$3\r\nSET\r\n$zz\r\n\0\0\0\0\0\0"


# -- Redis ------------------------------------------------------------------------------------------------------------


@kind("Redis killed")
def redis_killed(scene: Scene) -> Hit:
    return Hit("Redis", kill(_redis(scene)), scene.answers, scene.names())


@kind("Redis killed while it rewrites its file")
def redis_killed_in_a_rewrite(scene: Scene) -> Hit:
    pid = _redis(scene)
    with scene.rig.store() as store:
        store.redis.bgrewriteaof()
    time.sleep(scene.rng.uniform(0.0, 0.03))
    return Hit("Redis in a rewrite", kill(pid), scene.answers, scene.names())


@kind("Redis away for some seconds")
def redis_away(scene: Scene) -> Hit:
    """It does not come back until the drill lets it. Its time counts from then."""
    seconds = scene.rng.uniform(*AWAY_S)
    scene.rig.outage.touch()
    scene.redis_hurt_at = time.monotonic() + seconds
    scene.exactly_after(seconds, lambda: scene.rig.outage.unlink(missing_ok=True))
    kill(_redis(scene))
    back = time.time() + seconds
    return Hit(
        f"Redis for {seconds:.1f} s", back, lambda: scene.answers() if time.time() > back else None, scene.names()
    )


@kind("Redis frozen for a while")
def redis_frozen(scene: Scene) -> Hit:
    seconds = scene.rng.uniform(0.3, 2.5)
    jobs = scene.names()
    thawed = freeze(scene, _redis(scene), seconds)
    return Hit(f"Redis for {seconds:.1f} s", thawed, lambda: scene.answers() if time.time() > thawed else None, jobs)


@kind("Redis frozen until it is replaced")
def redis_hung(scene: Scene) -> Hit:
    """It must be killed before another one is started: two would write into one file."""
    pid = _redis(scene)
    jobs = scene.names()
    at = time.time()
    freeze(scene, pid, UNTIL_REPLACED_S)

    def replaced() -> float | None:
        now = scene.rig.redis_pids()
        if len(now) > 1:
            scene.violation(f"two Redis servers at once: {now}")
        return scene.answers() if now and now != [pid] else None

    return Hit("Redis until the daemon replaces it", at, replaced, jobs)


@kind("rq:* deleted")
def rq_keys_deleted(scene: Scene) -> Hit:
    jobs = scene.names()
    with scene.rig.store() as store:
        keys = list(store.redis.scan_iter("rq:*"))
        if keys:
            store.redis.delete(*keys)
    return Hit(f"{len(keys)} keys of RQ", unhurt=jobs)


@kind("mailbox entry doubled")
def entry_doubled(scene: Scene) -> Hit:
    """The offer of a running job once more: in its own slot's mailbox, or in another one's."""
    victim = scene.victim()
    slot = scene.rng.choice(list(scene.rig.workers()))
    with scene.rig.store() as store:
        job_id = next((i for i, name in scene.rig.user.acknowledged.items() if name == victim.job), None)
        if job_id is None:
            raise Skip("its submission is not acknowledged yet")
        fence = store.get(job_id).fence
        _enqueue(store, scene, slot, ENTRYPOINT, job_id, fence, name=f"{job_id}-{fence}")
    where = "its own mailbox" if slot == victim.slot else f"the mailbox of {slot}"
    return Hit(f"offer of {victim.job} once more, in {where}", unhurt=scene.names())


@kind("mailbox entry forged")
def entry_forged(scene: Scene) -> Hit:
    """An offer that was never made, of an old fence, for nobody, or of another function."""
    slot = scene.rng.choice(list(scene.rig.workers()) or [""])
    if not slot:
        raise Skip("no worker runs now")
    some = scene.rng.choice(list(scene.rig.user.acknowledged) or ["1"])
    forged = scene.rng.choice(["never made", "old fence", "no such job", "other function", "no arguments"])
    entries: dict[str, tuple[str, tuple[object, ...]]] = {
        "never made": (ENTRYPOINT, (some, 10_000)),
        "old fence": (ENTRYPOINT, (some, 0)),
        "no such job": (ENTRYPOINT, ("999999", 1)),
        "other function": ("os.system", (f"touch {scene.rig.mark}/forged",)),
        "no arguments": (ENTRYPOINT, ()),
    }
    function, arguments = entries[forged]
    with scene.rig.store() as store:
        _enqueue(store, scene, slot, function, *arguments, name=f"forged-{time.time_ns()}")
    lead = {one.slot: one.job for one in scene.running()}
    return Hit(f"{forged}, in the mailbox of {slot}", unhurt=tuple(job for s, job in lead.items() if s != slot))


def _enqueue(store: Store, scene: Scene, slot: str, function: str, *arguments: object, name: str) -> None:
    queue = Queue(mailbox(scene.rig.settings.rig, slot), connection=store.redis, serializer=JSONSerializer)
    queue.enqueue(ENTRYPOINT, job_id=name, job_timeout=-1)
    payload = json.dumps([function, None, list(arguments), {}]).encode()
    store.redis.hset(f"rq:job:{name}", "data", zlib.compress(payload))


@kind("torn end of Redis's file")
def torn_file(scene: Scene) -> Hit:
    """What a power cut leaves of a write that was under way, or worse. Nothing acknowledged is in it."""
    jobs = scene.names()
    scene.rig.kill_everything(scene.rng)
    # a kill in a rewrite leaves two: the higher number is written to
    files = (scene.rig.settings.redis_folder / "appendonlydir").glob("*.incr.aof")
    file = max(files, key=lambda path: int(path.name.split(".")[-3]))
    what, tail = scene.rng.choice(
        [("half a command", HALF_COMMANDS[0]), ("half a transaction", HALF_COMMANDS[1]), ("rubbish", RUBBISH)]
    )
    with file.open("ab") as torn:
        torn.write(tail)
    return restarted(scene, f"{what} at its end, after a kill of everything", jobs)


def _redis(scene: Scene) -> int:
    pids = scene.rig.redis_pids()
    if not pids:
        raise Skip("Redis does not run now")
    scene.redis_hurt_at = max(scene.redis_hurt_at, time.monotonic())
    return pids[0]


# -- the disk and the plug ------------------------------------------------------------------------------------------------


@kind("power cut")
def power_cut(scene: Scene) -> Hit:
    jobs = scene.names()
    frozen = [Handle(pid) for pid in scene.rig.everything()]
    for process in frozen:
        process.send(signal.SIGSTOP)
    try:
        scene.disk.copy()
    finally:
        scene.rig.kill_everything(scene.rng)
        for process in frozen:
            process.close()
    scene.disk.cut()
    return restarted(scene, "the plug was pulled", jobs)


@kind("disk too full to start jobs")
def disk_full(scene: Scene) -> Hit:
    """Below the floor nothing starts; what runs goes on; with space again the queue goes on by itself."""
    if not scene.disk.can_fill:
        raise Impossible("needs a disk of its own (root)")
    if not scene.rig.user.waiting and not _waiting_ids(scene):
        raise Skip("no job waits")
    jobs = scene.names()
    scene.disk.fill(leave_bytes=scene.rig.settings.disk_floor_bytes // 2)
    seconds = scene.rng.uniform(3.0, 5.0)
    held_from, freed = time.time() + 2.0, time.time() + seconds
    told: list[str] = []

    def look() -> None:
        told.extend(_waiting_reasons(scene))

    def free() -> None:
        scene.disk.empty()
        late = [
            job
            for job in scene.workload.expected
            for line in scene.ledgers.starts(job, after=held_from)
            if line.at < freed
        ]
        if late:
            scene.violation(f"on a full disk {', '.join(late)} started")
        if told and not any("disk has" in reason for reason in told):
            scene.violation(f"on a full disk jobs wait because: {told[0]}")

    scene.after(seconds - 1.0, look)
    scene.after(seconds, free)
    return Hit(f"for {seconds:.1f} s", freed, lambda: _first_start(scene, freed), jobs)


def _waiting_ids(scene: Scene) -> list[str]:
    try:
        return [job["id"] for job in scene.rig.user.jobs(state="queued")]
    except (NoAnswer, Refused):
        return []


def _waiting_reasons(scene: Scene) -> list[str]:
    try:
        return [job["waiting_because"] or "" for job in scene.rig.user.jobs(state="queued")]
    except (NoAnswer, Refused):
        return []


def _first_start(scene: Scene, after: float) -> float | None:
    starts = [line.at for job in scene.workload.expected for line in scene.ledgers.starts(job, after=after)]
    return min(starts, default=None)


# -- GPUs -------------------------------------------------------------------------------------------------------------


@kind("GPU lost under a job")
def gpu_lost(scene: Scene) -> Hit:
    """It falls off the bus with XID 79, and takes the program along. Later it is well again, and its owner resumes it."""
    if scene.nvml is None:
        raise Impossible("this rig has no GPUs")
    victim = scene.victim()
    nvml, rig = scene.nvml, scene.rig
    index = next(i for i in range(8) if nvml.uuid(i) == victim.slot)
    nvml.lose(index, xid=79)

    def known() -> bool:
        now = json.loads((rig.settings.home / "gpu-now.json").read_text())
        return now["slots"].get(victim.slot, {}).get("state") == "lost"

    def repair() -> None:
        nvml.recover(index)
        if pid := rig.helper("daemon.sampler"):  # it would look for the card again in 30 s
            os.kill(pid, signal.SIGKILL)
        scene.after(1.0, resume)

    def resume() -> None:
        try:
            rig.user.post(f"/gpus/{victim.slot}/resume")
        except NoAnswer:
            scene.after(0.5, resume)

    try:
        until(known, within_s=6.0, what="the sampler sees that the GPU is lost")
        at = kill(victim.program)
    finally:
        scene.after(3.0, repair)
    return Hit(f"{victim.slot} under {victim.job}", at, scene.starts_again(victim.job, after=at))


# -- the owner ----------------------------------------------------------------------------------------------------------


@kind("cancelled")
def cancelled(scene: Scene) -> Hit:
    job_id, name, state = _some_job(scene)
    _ask(scene, f"/jobs/{job_id}/cancel")
    scene.workload.expected[name].states.add("cancelled")
    return Hit(f"{name} while it was {state}")


@kind("cancelled and queued again")
def retried(scene: Scene) -> Hit:
    job_id, name, state = _some_job(scene)
    expected = scene.workload.expected[name]
    _ask(scene, f"/jobs/{job_id}/cancel")
    expected.states.add("cancelled")
    expected.retried = True

    def again() -> None:
        try:
            if scene.rig.user.job(job_id)["state"] == "running":
                return scene.after(0.5, again)
            scene.rig.user.post(f"/jobs/{job_id}/retry")
        except NoAnswer:
            scene.after(0.5, again)
        except Refused as error:
            if error.status != 409:  # it had succeeded
                raise

    scene.after(0.5, again)
    return Hit(f"{name} while it was {state}")


@kind("preempted")
def preempted(scene: Scene) -> Hit:
    victim = scene.victim()
    job_id = _id_of(scene, victim.job)
    resumed = scene.starts_again(victim.job, after=time.time())
    at = time.time()
    _ask(scene, f"/jobs/{job_id}/preempt")
    return Hit(f"{victim.job}", at, resumed)


@kind("GPU paused and resumed")
def slot_paused(scene: Scene) -> Hit:
    slot = scene.rng.choice(list(scene.rig.workers()) or [""])
    if not slot:
        raise Skip("no worker runs now")
    return _paused(scene, f"/gpus/{slot}", slot)


@kind("rig paused and resumed")
def rig_paused(scene: Scene) -> Hit:
    return _paused(scene, "/rig", "the rig")


def _paused(scene: Scene, path: str, what: str) -> Hit:
    jobs = scene.names()
    _ask(scene, f"{path}/pause")
    seconds = scene.rng.uniform(*HELD_S)

    def resume() -> None:
        try:
            scene.rig.user.post(f"{path}/resume")
        except NoAnswer:
            scene.after(0.5, resume)

    scene.after(seconds, resume)
    return Hit(f"{what} for {seconds:.1f} s", unhurt=jobs)


def _some_job(scene: Scene) -> tuple[str, str, str]:
    """A job that has not ended, with its state."""
    try:
        jobs = [*scene.rig.user.jobs(state="queued"), *scene.rig.user.jobs(state="running")]
    except NoAnswer:
        raise Skip("the API does not answer now") from None
    if not jobs:
        raise Skip("no job waits or runs")
    job = scene.rng.choice(sorted(jobs, key=lambda job: int(job["id"])))
    return job["id"], job["name"], job["state"]


def _id_of(scene: Scene, name: str) -> str:
    found = next((job_id for job_id, known in scene.rig.user.acknowledged.items() if known == name), None)
    if found is None:
        raise Skip("its submission is not acknowledged yet")
    return found


def _ask(scene: Scene, path: str) -> None:
    try:
        scene.rig.user.post(path)
    except NoAnswer:
        raise Skip("the API does not answer now") from None
    except Refused as error:
        if error.status != 409:
            raise
        raise Skip("it has just ended") from None


def folder_of(scene: Scene, job_id: str) -> Path:
    """The run folder, as its owner finds it."""
    return scene.rig.settings.runs / job_id
