"""The faults of a drill that come from Redis and from what lies in the mailboxes."""

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from faults import UNTIL_REPLACED_S, freeze, kill, kind, restarted
from rq import Queue
from rq.serializers import JSONSerializer
from scene import Hit, Scene, Skip

from daemon.store import ENTRYPOINT, Store, mailbox

#: Shorter and longer than the lease of the drill's rigs.
AWAY_S = (1.0, 9.0)
#: The start of a command, and of a transaction, whose rest was never written.
HALF_COMMANDS = (
    b'*3\r\n$3\r\nSET\r\n$15\r\novernight:job:1\r\n$900\r\n{"id": ',
    b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$14\r\novernight:half\r\n$4\r\nlost\r\n",
)
#: What no server can read.
RUBBISH = b"*3\r\n$3\r\nSET\r\n$zz\r\n\0\0\0\0\0\0"


@kind("Redis killed")
def redis_killed(scene: Scene) -> Hit:
    return Hit("Redis", kill(_redis(scene)), scene.answers, scene.names())


@kind("Redis killed while it rewrites its file")
def redis_killed_in_a_rewrite(scene: Scene) -> Hit:
    pid = _redis(scene)
    with _queue_of(scene) as store:
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
    with _queue_of(scene) as store:
        keys = list(store.redis.scan_iter("rq:*"))
        if keys:
            store.redis.delete(*keys)
    return Hit(f"{len(keys)} keys of RQ", unhurt=jobs)


@kind("mailbox entry doubled")
def entry_doubled(scene: Scene) -> Hit:
    """The offer of a running job once more: in its own slot's mailbox, or in another one's."""
    victim = scene.victim()
    slot = scene.rng.choice(list(scene.rig.workers()))
    with _queue_of(scene) as store:
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
    with _queue_of(scene) as store:
        _enqueue(store, scene, slot, function, *arguments, name=f"forged-{time.time_ns()}")
    lead = {one.slot: one.job for one in scene.running()}
    return Hit(f"{forged}, in the mailbox of {slot}", unhurt=tuple(job for s, job in lead.items() if s != slot))


@contextmanager
def _queue_of(scene: Scene) -> Iterator[Store]:
    """The queue itself; a fault before this one may have taken it away."""
    try:
        with scene.rig.store() as store:
            yield store
    except redis.ConnectionError:
        raise Skip("Redis does not answer now") from None


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
