"""The faults of a drill that come from the disk, the GPUs and the owner."""

import json
import os
import signal
import time

from faults import kill, kind, restarted
from rig import Handle, until
from scene import Hit, Impossible, Scene, Skip
from user import NoAnswer, Refused

HELD_S = (1.0, 4.0)
#: A job of several GPUs may not be able to start again before the owner lets the card back.
JUDGED_WITHIN_S = 15.0


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
        if told and not any("disk has" in reason or "paused" in reason for reason in told):
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
    """It falls off the bus with XID 79, and takes the program along. Later it is well again, and its owner lets it back."""
    if scene.nvml is None:
        raise Impossible("this rig has no GPUs")
    victim = scene.victim()
    nvml, rig = scene.nvml, scene.rig
    index = next(i for i in range(8) if nvml.uuid(i) == victim.slot)
    hit_at = time.time()
    nvml.lose(index, xid=79)

    def known() -> bool:
        now = json.loads((rig.settings.home / "gpu-now.json").read_text())
        return now["slots"].get(victim.slot, {}).get("state") == "lost"

    def repair() -> None:
        nvml.recover(index)
        if pid := rig.helper("daemon.sampler"):  # it would look for the card again in 30 s
            os.kill(pid, signal.SIGKILL)
        scene.after(1.0, release)

    def release() -> None:
        # it is taken out of service when its job has been judged: on a busy machine that may come after the repair
        judged = scene.ledgers.starts(victim.job, after=hit_at) or scene.has_ended(victim.job)
        if not judged and time.time() < hit_at + JUDGED_WITHIN_S:
            return scene.after(0.5, release)
        try:
            rig.user.post(f"/gpus/{victim.slot}/release")
        except NoAnswer:
            scene.after(0.5, release)
        except Refused as error:  # a daemon that started while the card was away must know it, too
            scene.violation(f"{victim.slot} cannot be released: {error}")

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
    scene.workload.expected[name].states.add("cancelled")  # before: the call may be carried out and not answered
    _ask(scene, f"/jobs/{job_id}/cancel")
    return Hit(f"{name} while it was {state}")


@kind("cancelled and queued again")
def retried(scene: Scene) -> Hit:
    job_id, name, state = _some_job(scene)
    expected = scene.workload.expected[name]
    expected.states.add("cancelled")
    expected.retried = True
    _ask(scene, f"/jobs/{job_id}/cancel")

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
    at = scene.workload.expected[victim.job].asked_at = time.time()
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
