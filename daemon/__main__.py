"""Run the rig: `python -m daemon`, which `overnight up` starts. In the foreground; systemd, tmux or a person keeps it."""

import argparse
import fcntl
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from daemon import __file__ as package_file
from daemon import inputs, peers, power, redis_server
from daemon.gpus import discover
from daemon.loop import Loop, TakenOver, clear_slot
from daemon.newcomers import add_worker
from daemon.process_tree import become_subreaper, kill_marked
from daemon.redis_server import RedisMisconfigured, RedisUnavailable, Server
from daemon.reindex import reindex
from daemon.rig import NoSuchSlot, Slot, choose_slots, with_absent
from daemon.settings import Settings, main_settings
from daemon.store import Store, connect
from daemon.supervisor import MARK, WORKER, Supervisor, mark
from jobs.model import State

log = logging.getLogger("daemon")

#: The loop has its own way to bring Redis back: redis-py's ten tries would only keep it waiting for 4 s.
PATIENCE = Retry(ExponentialBackoff(cap=0.1, base=0.01), 3)
#: A server of the owner's that is not there is a mistake, told soon; ours may have to be found hanging, killed and started.
OPEN_OTHERS_S, OPEN_OURS_S, OPEN_PAUSE_S = 10.0, 120.0, 0.5
#: Until workers have imported what they need to take an offer; the API takes twice that.
WORKERS_FIRST_S = 0.6
EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL = 2, 69, 75


def main() -> int:
    """Start everything, plan until told to stop, stop everything. Returns the exit status."""
    settings = main_settings(_flags())
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    if foreign := foreign_packages():
        print(foreign, file=sys.stderr)
        return EX_USAGE
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        lock = take_lock(settings.home)
    except BlockingIOError:
        print(
            f"Overnight runs already on {settings.home}. Stop that one first, or set OVERNIGHT_HOME.", file=sys.stderr
        )
        return EX_TEMPFAIL
    with lock:
        return run(settings)


def run(settings: Settings) -> int:
    """With the lock held: one life of the daemon."""
    become_subreaper()
    # until the loop has its own handlers: asked to stop while it starts, it leaves in order, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server, store, slots, epoch = open_rig(settings)
    except SystemExit:
        if settings.redis_url is None:
            redis_server.start(settings).stop()
        raise
    except (RedisUnavailable, NoSuchSlot, peers.CannotJoin) as error:
        print(error, file=sys.stderr)
        return EX_UNAVAILABLE
    except redis.RedisError as error:
        print(f"Redis at {_without_password(settings)} does not answer: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    for sentence in power.set_limits(power.wanted(settings.gpu_power_limit_w, slots)):
        log.info("%s", sentence)
    supervisor = staff(settings, slots, in_a_hurry=bool(store.counts()[State.QUEUED]))
    log.info("%d slot(s): %s", len(slots), ", ".join(f"{slot.name} ({slot.id})" for slot in slots))
    try:
        Loop(settings, store, supervisor, slots, epoch, server=server).run()
    except TakenOver as error:
        print(error, file=sys.stderr)
        return EX_TEMPFAIL
    finally:
        close(settings, supervisor, server, store)
    return 0


def open_rig(settings: Settings) -> tuple[Server | None, Store, tuple[Slot, ...], int]:
    """The queue, the slots, and the number of this life. A Redis that dies meanwhile is given another chance."""
    deadline = time.monotonic() + (OPEN_OTHERS_S if settings.redis_url else OPEN_OURS_S)
    while True:
        try:
            server = None if settings.redis_url else redis_server.start(settings)
            store = Store(connect(redis_server.address(settings)))
            store.redis.set_retry(PATIENCE)
            store.ping()
            if server is not None and redis_server.was_repaired(settings):
                log.warning("%d job(s) were put back from their run folders", reindex(store, settings, now=time.time()))
            slots, problem = find_slots(settings, known_slots(settings, store), now=time.time())
            peers.join(store, settings)
            epoch = reconcile(settings, store, slots)
            publish(settings, store, slots, problem)
            return server, store, slots, epoch
        except RedisMisconfigured:
            raise
        except (RedisUnavailable, redis.RedisError) as error:
            if time.monotonic() > deadline:
                raise
            log.warning("Redis is not there yet: %s", error)
            time.sleep(OPEN_PAUSE_S)


def known_slots(settings: Settings, store: Store) -> list[Slot]:
    """The slots of this rig's last life."""
    return [Slot.from_json(record) for record in store.rigs().get(settings.rig, {}).get("slots", [])]


def find_slots(settings: Settings, known: Sequence[Slot], *, now: float) -> tuple[tuple[Slot, ...], str | None]:
    """The rig's slots, and what is wrong with its GPUs. One in MIG mode is left out; one that was there and is not now
    stays, and gets no job until the sampler sees it well."""
    inventory = discover()
    gpus = [Slot(g.uuid, g.name, g.index, g.memory_bytes) for g in inventory.gpus if not g.mig]
    split = {g.uuid for g in inventory.gpus if g.mig}
    slots = choose_slots(settings.slots, with_absent(gpus, [slot for slot in known if slot.id not in split], now=now))
    for slot in slots:
        if slot.absent_since is not None:
            log.error("GPU %d (%s, %s) was there before and is not now", slot.index, slot.name, slot.id)
    return slots, inventory.problem


def reconcile(settings: Settings, store: Store, slots: tuple[Slot, ...]) -> int:
    """End what an earlier life left. With the lock held and its processes killed, each of its runs is provably dead.

    Returns the number of this life.
    """
    began = time.monotonic()
    swept = kill_marked(MARK, mark(settings))
    epoch = store.new_epoch(settings.rig)
    for slot in dict.fromkeys(slot.id for slot in [*slots, *known_slots(settings, store)]):
        clear_slot(store, settings, slot, now=time.time())
    log.info("reconciled in %.0f ms, %d process(es) killed", (time.monotonic() - began) * 1e3, swept.signals)
    return epoch


def publish(settings: Settings, store: Store, slots: tuple[Slot, ...], problem: str | None) -> None:
    """Tell the API what this rig is."""
    shown = settings.model_dump(mode="json", exclude={"redis_url"})  # channels' addresses are masked in it
    facts: dict[str, Any] = {"slots": [slot.to_json() for slot in slots], "problem": problem, "settings": shown}
    facts["origins"] = dict(settings.origins)  # the API gets them all through its environment
    store.describe_rig(settings.rig, {**facts, "started_at": time.time()})
    if settings.redis_url is not None:
        store.add_inputs(settings.rig, inputs.uploaded(settings.inputs), anew=True)


def staff(settings: Settings, slots: tuple[Slot, ...], *, in_a_hurry: bool) -> Supervisor:
    """The processes beside the loop. `in_a_hurry`: work waits, so the API lets the workers load first."""
    supervisor = Supervisor(settings)
    for slot in slots:
        add_worker(supervisor, settings, slot)
    supervisor.add("api", ["api"], after_s=WORKERS_FIRST_S if in_a_hurry else 0.0)
    cpu_slots = sum(not slot.is_gpu for slot in slots)
    extra = ["--cpu-slots", str(cpu_slots)] if cpu_slots else []
    extra += ["--upgrade-check-s", str(settings.upgrade_check_s)]
    extra += ["--kernel-log", str(settings.kernel_log)] if settings.kernel_log else []
    supervisor.add("sampler", ["daemon.sampler", "--home", str(settings.home), *extra])
    if settings.notify:
        supervisor.add("messages", ["daemon.notify"])
    return supervisor


def close(settings: Settings, supervisor: Supervisor, server: Server | None, store: Store) -> None:
    """Stop everything, the queue last."""
    names = list(supervisor.processes)
    supervisor.stop([name for name in names if name.startswith(WORKER)])
    supervisor.stop(["api", "sampler", "messages"])
    kill_marked(MARK, mark(settings))
    if settings.redis_url is not None:
        try:
            peers.leave(store, settings, now=time.time())
        except redis.RedisError as error:
            log.warning("the other rigs could not be told that this one stops: %s", error)
    if server is not None:
        redis_server.start(settings).stop()  # `start` adopts whichever server runs now: it may have been replaced
    log.info("stopped")


def take_lock(home: Path) -> IO[str]:
    """One daemon per data folder: the kernel lets go of the lock when we die, however we die. Raises BlockingIOError."""
    lock = (home / "daemon.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def foreign_packages() -> str | None:
    """Our top-level names are generic: say so when another distribution's files would be run instead of ours."""
    root = Path(package_file).parent.parent
    for name in ("api", "daemon", "jobs", "workers"):
        if not (root / name / "__init__.py").is_file():
            return f"{root / name} is missing: another package (python-daemon?) shares this environment. Use one of its own."
    return None


def _without_password(settings: Settings) -> str:
    scheme, mark, rest = redis_server.address(settings).rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _flags() -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="overnight up", description=__doc__)
    parser.add_argument("--home", type=Path, help="data folder (default: $OVERNIGHT_HOME or the platform's)")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 2200)")
    parser.add_argument("--slots", help="auto, cpu:N, or GPU UUIDs with commas")
    parser.add_argument("--redis", dest="redis_url", help="URL of a Redis or Valkey server of your own")
    return vars(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
