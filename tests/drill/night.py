"""One drill: a rig, many jobs, a seeded schedule of faults, and the judgement at its end."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import queue_faults  # registers its kinds of faults, as trouble does
import trouble
from checker import Checker
from disk import make_disk
from fake_nvml.fakenvml import FakeNvml, build
from faults import KINDS
from ledger import Ledgers
from rig import Rig, Trouble
from scene import Hit, Impossible, Scene, Skip
from timeline import CALM_S, NIGHT, Struck, page
from user import Json, NoAnswer
from workload import Workload

assert queue_faults.__name__ and trouble.__name__  # imported for what they register

#: Settings of the drill's rigs: short, so that a drill of minutes meets every limit. The lease must outlast a stall of a busy machine.
SETTINGS = {
    "warm_start": False,
    "lease_s": 5.0,
    "renew_s": 0.5,
    "grace_s": 2.0,
    "offer_timeout_s": 8.0,
    "disk_floor_bytes": 200_000_000,
}
SLOTS = 3
UNFINISHED = 7
NIGHT_UNFINISHED, NIGHT_LIMIT_S = 4, 400.0
PAUSE_S = (0.1, 0.7)
#: Share of faults that strike while the one before is not over.
DOUBLE = 0.2
#: Share of faults that strike while a submission is under way.
SUBMITTED_INTO_A_FAULT = 0.25
#: A job that was lost while the disk was full waits a minute, and a hung Redis is found after 25 s.
RECOVERY_LIMIT_S = 100.0
#: With others beside it.
SHARED_RECOVERY_LIMIT_S = 150.0
UNHURT_FOR_S = 1.2
END_LIMIT_S = 240.0
#: sysexits.h; the daemon's word for a Redis that it cannot start.
EX_UNAVAILABLE = 69
REDIS_HURT_S = 5.0
WATCH_EVERY_S, COUNT_EVERY_S = 3.0, 0.5


@dataclass
class Result:
    """What a drill found."""

    seed: int
    gpus: bool
    disk: str
    faults: Counter[str] = field(default_factory=Counter)
    resumed_s: dict[str, list[float]] = field(default_factory=dict)
    impossible: dict[str, str] = field(default_factory=dict)
    jobs: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    repeats: int = 0
    wall_s: float = 0.0
    violations: list[str] = field(default_factory=list)


class Night:
    """One drill."""

    def __init__(
        self,
        scene: Scene,
        result: Result,
        *,
        unfinished: int = UNFINISHED,
        kinds: Sequence[str] = tuple(KINDS),
        calm: bool = False,
    ):
        self._scene, self._result, self._calm = scene, result, calm
        self._checker = Checker(scene)
        self._began = time.time()
        self._struck: list[Struck] = []
        self._gpus: list[Json] = []
        self._kinds = list(kinds)
        self._deck: list[str] = []
        self._open: list[tuple[str, Hit, float]] = []
        self._unfinished, self._keep_unfinished = 0, unfinished
        self._next_watch = self._next_count = 0.0

    def strike(self, faults: int, limit_s: float) -> None:
        """Hurt the rig so many times, or for so long."""
        rng, deadline = self._scene.rng, time.monotonic() + limit_s
        while sum(self._result.faults.values()) < faults and time.monotonic() < deadline and not self._scene.violations:
            self._tend_for(rng.uniform(*(CALM_S if self._calm else PAUSE_S)))
            at = time.time()
            struck = self._strike_once()
            if struck is not None and (self._calm or rng.random() >= DOUBLE):
                over_at = self._wait_recovered(*struck)
                self._struck.append(Struck(at, *struck, over_at))
            elif struck is not None:
                self._open.append((*struck, time.monotonic() + SHARED_RECOVERY_LIMIT_S))

    def page(self) -> str:
        """The night as a page, after its end."""
        scene = self._scene
        return page(
            began=self._began,
            seed=self._result.seed,
            struck=self._struck,
            jobs=self._checker.jobs,
            gpus=self._gpus,
            ledgers=scene.ledgers,
            violations=scene.violations,
            disk=self._result.disk,
        )

    def finish(self) -> None:
        """Heal everything, wait for every job's end, and judge."""
        scene, deadline = self._scene, time.monotonic() + END_LIMIT_S
        while not scene.quiet:
            self._tend(submit=False)
            time.sleep(0.02)
        while scene.rig.user.waiting or self._unfinished or self._next_count > time.monotonic():
            self._tend(submit=False)
            time.sleep(0.05)
            if time.monotonic() > deadline:
                scene.violation(f"{self._unfinished} job(s) have not ended {END_LIMIT_S:.0f} s after the last fault")
                scene.say(self._checker.situation())
                break
        self._settle()
        self._checker.judge()
        self._note_jobs()
        self._gpus = scene.rig.user.get("/gpus")["gpus"]
        if (code := scene.rig.stop(tend=scene.do_due)) != 0:
            scene.violation(f"the daemon stopped with status {code}")
        self._checker.after_the_stop()

    # -- faults -------------------------------------------------------------------------------------------------------------

    def _strike_once(self) -> tuple[str, Hit] | None:
        if not self._calm and self._scene.rng.random() < SUBMITTED_INTO_A_FAULT:
            self._submit_blindly()
        for _ in range(len(self._kinds)):
            if not self._deck:
                self._deck = self._scene.rng.sample(self._kinds, len(self._kinds))
            name = self._deck.pop()
            try:
                hit = KINDS[name](self._scene)
            except Impossible as reason:
                self._kinds.remove(name)
                self._result.impossible[name] = str(reason)
                continue
            except (Skip, ProcessLookupError):  # the victim may have ended by itself meanwhile
                self._deck.insert(0, name)
                continue
            self._result.faults[name] += 1
            self._scene.say(f"{sum(self._result.faults.values()):4d} {name}: {hit.what}")
            return name, hit
        return None

    def _wait_recovered(self, name: str, hit: Hit) -> float | None:
        """Wait until the rig is over it. Returns when it was, if that measures anything."""
        alone = not self._open
        deadline = max(time.time(), hit.at) + RECOVERY_LIMIT_S
        while not (over := hit.recovered()):
            self._tend()
            if time.time() > deadline:
                self._scene.violation(f"{name} ({hit.what}): not over after {RECOVERY_LIMIT_S:.0f} s")
                self._scene.say(f"{self._checker.situation()}\n{self._scene.rig.log_tail(120)}")
                return None
            time.sleep(0.01)
        if over is not True and alone:
            self._result.resumed_s.setdefault(name, []).append(max(0.0, over - hit.at))
            self._scene.say(f"       over after {max(0.0, over - hit.at):.2f} s")
        if alone and hit.unhurt:
            self._check_unhurt(name, hit)
        return None if over is True else max(hit.at, over)

    def _check_unhurt(self, name: str, hit: Hit) -> None:
        until = max(time.time(), hit.at) + UNHURT_FOR_S
        while time.time() < until:
            self._tend()
            time.sleep(0.02)
        expected = self._scene.workload.expected
        for job in hit.unhurt:
            if expected[job].sort in ("pauses", "backlog") or expected[job].retried:
                continue  # these start again by themselves, or give way to others
            starts = self._scene.ledgers.starts(job, after=hit.at)
            if starts and expected[job].was_asked(self._scene.ledgers, before=starts[0].at):
                continue  # an earlier call of the owner's, answered or not
            if starts:
                self._scene.violation(f"{name} ({hit.what}) made {job} start again")
                self._scene.say(self._checker.evidence_of(job))

    # -- between the faults -------------------------------------------------------------------------------------------------

    def _tend_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._tend()
            time.sleep(0.02)

    def _tend(self, *, submit: bool = True) -> None:
        """What goes on all the time: jobs come in, somebody looks at the list, systemd keeps the daemon."""
        scene, now = self._scene, time.monotonic()
        scene.do_due()
        self._keep_daemon()
        self._note_open(now)
        if now >= self._next_count:
            self._count(now)
        if submit and self._unfinished + len(scene.rig.user.waiting) < self._keep_unfinished:
            self._submit_more()
        if scene.rig.user.waiting:
            scene.rig.user.send()
        if now >= self._next_watch:
            self._next_watch = now + WATCH_EVERY_S
            self._checker.watch()

    def _count(self, now: float) -> None:
        try:
            counts = self._scene.rig.user.get("/rig")["jobs"]
        except NoAnswer:
            return
        self._unfinished = counts["queued"] + counts["running"]
        self._next_count = now + COUNT_EVERY_S if self._unfinished else now

    def _submit_more(self) -> None:
        scene = self._scene
        if scene.rng.random() < 0.25:
            scene.rig.user.submit_batch([scene.workload.document() for _ in range(3)])
            self._unfinished += 3
        else:
            scene.rig.user.submit(scene.workload.document())
            self._unfinished += 1

    def _submit_blindly(self) -> None:
        """A call whose answer is lost in a fault: later it is sent again with the same key, and must make no second job."""
        scene = self._scene
        scene.rig.user.submit(scene.workload.document())
        scene.rig.user.send_and_forget(scene.rig.user.waiting[-1])
        self._unfinished += 1
        time.sleep(scene.rng.uniform(0.0, 0.03))

    def _keep_daemon(self) -> None:
        """As systemd's Restart=always. A daemon may give up when Redis was taken from it at its start, and never else."""
        rig = self._scene.rig
        if (code := rig.exit_status) is None:
            return
        taken = time.monotonic() - self._scene.redis_hurt_at < REDIS_HURT_S
        if not (taken and code == EX_UNAVAILABLE):
            self._scene.violation(f"the daemon ended by itself with status {code}\n{rig.log_tail()}")
        rig.start()

    def _note_open(self, now: float) -> None:
        for item in list(self._open):
            name, hit, deadline = item
            if hit.recovered():
                self._open.remove(item)
            elif now > deadline:
                self._open.remove(item)
                self._scene.violation(
                    f"{name} ({hit.what}): not over after {SHARED_RECOVERY_LIMIT_S:.0f} s, with others beside it"
                )
                self._scene.say(self._checker.situation())

    # -- the end ------------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Processes that a fault left behind are swept within moments of the last job's end."""
        deadline = time.monotonic() + 5.0
        while (self._scene.rig.of_jobs() or not self._all_idle()) and time.monotonic() < deadline:
            self._tend(submit=False)
            time.sleep(0.05)

    def _all_idle(self) -> bool:
        try:
            return all(gpu["state"] == "idle" for gpu in self._scene.rig.user.get("/gpus")["gpus"])
        except NoAnswer:
            return False

    def _note_jobs(self) -> None:
        result = self._result
        result.jobs = len(self._checker.jobs)
        result.ended = Counter(job["state"] for job in self._checker.jobs)
        result.starts = self._scene.ledgers.all_starts()
        result.repeats = self._scene.rig.user.repeats


def drill(
    *,
    faults: int,
    seed: int,
    limit_s: float,
    gpus: bool,
    say: Callable[[str], None],
    unfinished: int = UNFINISHED,
    only: list[str] | None = None,
) -> Result:
    """One whole drill; `only`: words, one of which is in the name of every kind of fault."""
    kinds = [name for name in KINDS if not only or any(word in name for word in only)]
    began = time.monotonic()
    with scene_of(seed=seed, gpus=gpus, say=say) as scene:
        result = Result(seed, gpus, scene.disk.kind, violations=scene.violations)
        night = Night(scene, result, unfinished=unfinished, kinds=kinds)
        try:
            night.strike(faults, limit_s)
            night.finish()
        except Trouble as error:
            scene.violation(f"the drill could not go on: {error}")
        result.wall_s = time.monotonic() - began
    return result


def night_with_ten_faults(*, seed: int, say: Callable[[str], None]) -> tuple[Result, str]:
    """Ten faults of ten kinds, one after the other, and the page that tells of them."""
    with scene_of(seed=seed, gpus=True, say=say) as scene:
        result = Result(seed, True, scene.disk.kind, violations=scene.violations)
        night = Night(scene, result, unfinished=NIGHT_UNFINISHED, kinds=NIGHT, calm=True)
        night.strike(len(NIGHT), NIGHT_LIMIT_S)
        night.finish()
        return result, night.page()


@contextmanager
def scene_of(*, seed: int, gpus: bool, say: Callable[[str], None], **settings: object) -> Iterator[Scene]:
    """A rig that runs, with its disk and its ledgers; all of it is gone afterwards."""
    rng = random.Random(seed)
    with TemporaryDirectory(prefix="on-") as name:
        beside = Path(name)
        (beside / "ledgers").mkdir()
        nvml = FakeNvml.create(beside, build(beside), ["3090"] * SLOTS) if gpus else None
        disk = make_disk(beside)
        ledgers = Ledgers(beside / "ledgers")
        slots = {"slots": "auto" if gpus else f"cpu:{SLOTS}"}
        rig = Rig(disk.home, beside, environment=nvml.env() if nvml else None, **{**SETTINGS, **slots, **settings})
        try:
            rig.start()
            rig.wait_ready()
            yield Scene(rig, disk, ledgers, Workload(rng, ledgers), rng, say, nvml)
        finally:
            rig.end()
            disk.close()
