"""The faults of a drill that kill and freeze processes. Each one hurts the scene's rig once, and tells what it did.

Every kind registers itself with `kind`; `queue_faults.py` and `trouble.py` add those of Redis, the disk, the GPUs and the owner.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import replace

from rig import Handle
from scene import Hit, Scene, Skip

from daemon import process_tree

Fault = Callable[[Scene], Hit]
KINDS: dict[str, Fault] = {}

SHORT_S = (0.3, 1.5)
#: Until a daemon that was just started can hear a signal.
IMPORTS_S = 3.0
#: Beyond the lease of the drill's rigs, and of the time that the daemon then waits for one more renewal.
BEYOND_LEASE_S = 30.0
#: Beyond everything: only a replacement helps.
UNTIL_REPLACED_S = 60.0


def kind(name: str) -> Callable[[Fault], Fault]:
    """Register a kind of fault."""

    def register(fault: Fault) -> Fault:
        KINDS[name] = fault
        return fault

    return register


# -- one process ------------------------------------------------------------------------------------------------------


def kill(pid: int) -> float:
    """SIGKILL. Returns when."""
    process = Handle(pid)
    at = time.time()
    process.send(signal.SIGKILL)
    process.close()
    return at


@kind("worker killed")
def worker_killed(scene: Scene) -> Hit:
    victim = scene.victim()
    resumed = scene.starts_again(victim.job, after=time.time())
    return Hit(f"worker of {victim.slot} with {victim.job}", kill(victim.worker), resumed)


@kind("other worker of a gang killed")
def other_worker_killed(scene: Scene) -> Hit:
    victim = scene.victim(gang=True)
    lead = {one.slot for one in scene.running()}
    others = [(slot, pid) for slot, pid in scene.rig.workers().items() if slot not in lead]
    if not others:
        raise Skip("every worker leads a job")
    slot, pid = scene.rng.choice(others)
    at = kill(pid)

    def back() -> float | None:
        return time.time() if scene.rig.workers().get(slot, pid) != pid else None

    return Hit(f"worker of {slot}, which {victim.job} does not lead from", at, back, (victim.job,))


@kind("horse killed")
def horse_killed(scene: Scene) -> Hit:
    victim = scene.victim()
    resumed = scene.starts_again(victim.job, after=time.time())
    return Hit(f"horse of {victim.job}", kill(victim.horse), resumed)


@kind("child killed")
def child_killed(scene: Scene) -> Hit:
    victim = scene.victim()
    resumed = scene.starts_again(victim.job, after=time.time())
    return Hit(f"attempt's process of {victim.job}", kill(victim.child), resumed)


@kind("program killed")
def program_killed(scene: Scene) -> Hit:
    victim = scene.victim()
    resumed = scene.starts_again(victim.job, after=time.time())
    return Hit(f"program of {victim.job}", kill(victim.program), resumed)


@kind("rank killed")
def rank_killed(scene: Scene) -> Hit:
    victim = scene.victim(rank=True)
    assert victim.rank is not None
    resumed = scene.starts_again(victim.job, after=time.time())
    return Hit(f"rank of {victim.job}, in a session of its own", kill(victim.rank), resumed)


@kind("API killed")
def api_killed(scene: Scene) -> Hit:
    return _helper_killed(scene, "api", lambda: time.time() if scene.rig.user.ready() else None)


@kind("sampler killed")
def sampler_killed(scene: Scene) -> Hit:
    before = scene.rig.helper("daemon.sampler")

    def back() -> float | None:
        now = scene.rig.helper("daemon.sampler")
        if now in (None, before):
            return None
        try:
            source = scene.rig.user.get("/rig")["health"]["sampler"]
        except Exception:  # the API may be away as well: look again
            return None
        return time.time() if source["age_s"] is not None and source["age_s"] < 2.0 else None

    return _helper_killed(scene, "daemon.sampler", back)


def _helper_killed(scene: Scene, module: str, back: Callable[[], float | None]) -> Hit:
    pid = scene.rig.helper(module)
    if pid is None:
        raise Skip(f"{module} does not run now")
    return Hit(module, kill(pid), back, scene.names())


# -- several, and the daemon ----------------------------------------------------------------------------------------------


@kind("two processes killed at once")
def two_killed(scene: Scene) -> Hit:
    first, second = scene.victim(), scene.victim()
    pids = [first.worker, first.horse, first.child, first.program]
    pair = scene.rng.sample([*pids, second.horse, second.child, second.program], 2)
    resumed = scene.starts_again(first.job, second.job, after=time.time())
    at = time.time()
    for pid in dict.fromkeys(pair):
        kill(pid)
    return Hit(f"two of {first.job} and {second.job}", at, resumed)


@kind("daemon killed")
def daemon_killed(scene: Scene) -> Hit:
    jobs = scene.names()
    scene.rig.kill_daemon()
    return restarted(scene, "the daemon", jobs)


@kind("everything killed")
def everything_killed(scene: Scene) -> Hit:
    jobs = scene.names()
    scene.rig.kill_everything(scene.rng)
    return restarted(scene, "all processes, Redis too", jobs)


@kind("stopped and started")
def stopped_and_started(scene: Scene) -> Hit:
    if scene.rig.outage.exists():
        raise Skip("nothing can be saved without Redis")
    jobs = scene.names()
    before_it_began = time.monotonic() - scene.rig.started_at < IMPORTS_S
    code = scene.rig.stop(tend=scene.do_due)
    if before_it_began and code == -signal.SIGTERM:
        return _stopped_before_it_began(scene, jobs)
    if code != 0:
        scene.violation(f"the daemon stopped with status {code}")
    if left := scene.rig.everything():
        scene.violation(f"after a stop {len(left)} process(es) of the rig live on")
    return restarted(scene, "SIGTERM, then a start", jobs)


def _stopped_before_it_began(scene: Scene, jobs: tuple[str, ...]) -> Hit:
    """It had no handler yet and ends by the signal. What a life before it left is then the next one's to find and end."""
    left = set(scene.rig.everything()) - set(scene.rig.redis_pids())
    hit = restarted(scene, f"SIGTERM while Python still loaded, with {len(left)} process(es) of the life before", jobs)

    def over() -> float | bool | None:
        return None if any(map(process_tree.is_alive, left)) else hit.recovered()

    return replace(hit, recovered=over)


def restarted(scene: Scene, what: str, jobs: tuple[str, ...]) -> Hit:
    """Start the daemon again, as systemd would. The time counts from here."""
    at = time.time()
    resumed = scene.starts_again(*jobs, after=at) if jobs else scene.answers
    scene.rig.start()
    return Hit(f"{what}; {len(jobs)} job(s) ran", at, resumed)


# -- frozen ---------------------------------------------------------------------------------------------------------------


def freeze(scene: Scene, pid: int, seconds: float) -> float:
    """SIGSTOP now, SIGCONT in so many seconds. Returns when it is thawed (wall clock)."""
    process = Handle(pid)
    process.send(signal.SIGSTOP)

    def thaw() -> None:
        process.send(signal.SIGCONT)
        process.close()

    scene.exactly_after(seconds, thaw)
    return time.time() + seconds


@kind("worker frozen for a while")
def worker_frozen(scene: Scene) -> Hit:
    victim = scene.victim()
    seconds = scene.rng.uniform(*SHORT_S)
    freeze(scene, victim.worker, seconds)
    return Hit(f"worker of {victim.job} for {seconds:.1f} s", recovered=scene.goes_on(victim.job, after=time.time()))


@kind("horse frozen for a while")
def horse_frozen(scene: Scene) -> Hit:
    victim = scene.victim()
    seconds = scene.rng.uniform(*SHORT_S)
    freeze(scene, victim.horse, seconds)
    return Hit(f"horse of {victim.job} for {seconds:.1f} s", unhurt=(victim.job,))


@kind("program frozen for a while")
def program_frozen(scene: Scene) -> Hit:
    victim = scene.victim()
    seconds = scene.rng.uniform(*SHORT_S)
    thawed = freeze(scene, victim.program, seconds)
    goes_on = scene.goes_on(victim.job, after=thawed)
    return Hit(f"program of {victim.job} for {seconds:.1f} s", thawed, goes_on, (victim.job,))


@kind("horse frozen beyond its lease")
def horse_frozen_for_long(scene: Scene) -> Hit:
    """Nobody renews the lease: the daemon must end the worker, and the job starts again."""
    victim = scene.victim()
    at = time.time()
    resumed = scene.starts_again(victim.job, after=at)
    freeze(scene, victim.horse, BEYOND_LEASE_S)
    return Hit(f"horse of {victim.job} until the daemon ends it", at, resumed)


@kind("worker frozen beyond its lease")
def worker_frozen_for_long(scene: Scene) -> Hit:
    """Its horse goes on and renews; then nobody tells the end: the daemon must find it."""
    victim = scene.victim()
    at = time.time()
    freeze(scene, victim.worker, BEYOND_LEASE_S)
    name = victim.job

    def told() -> float | bool | None:
        return True if scene.ledgers.starts(name, after=at) or scene.has_ended(name) else None

    return Hit(f"worker of {name} until the daemon ends it", at, told)


@kind("idle worker frozen")
def idle_worker_frozen(scene: Scene) -> Hit:
    """It takes no offer: its slot must not be lost until somebody wakes up."""
    busy = {slot for one in scene.running() for slot in [one.slot]}
    idle = [(slot, pid) for slot, pid in scene.rig.workers().items() if slot not in busy]
    if not idle:
        raise Skip("every worker leads a job")
    slot, pid = scene.rng.choice(idle)
    at = time.time()
    freeze(scene, pid, UNTIL_REPLACED_S)

    def replaced() -> float | bool | None:
        return time.time() if scene.rig.workers().get(slot) not in (pid, None) else None

    return Hit(f"worker of {slot}, which leads nothing, until the daemon ends it", at, replaced)


@kind("daemon frozen for a while")
def daemon_frozen(scene: Scene) -> Hit:
    assert scene.rig.daemon is not None
    seconds = scene.rng.uniform(0.5, 3.0)
    jobs = scene.names()
    freeze(scene, scene.rig.daemon.pid, seconds)
    return Hit(f"the daemon for {seconds:.1f} s", unhurt=jobs)
