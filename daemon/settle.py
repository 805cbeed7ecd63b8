"""End a run whose processes are all dead: judge what it left, tell the store, keep the record in the run folder.

Called by the worker after its sweep, and by the daemon for the run of a dead worker. Whoever did the work does not end it.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from daemon import faults, quarantine, telemetry
from daemon.facts import disk_hold
from daemon.history import takes_what_there_is
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import Store, UnknownJob
from daemon.tariff import co2_g
from jobs.estimate import VRAM_RESERVE_BYTES
from jobs.model import Attempt, Cause, End, InvalidTransition, Job, Outcome, State
from jobs.outcome import Exit, judge
from jobs.rundir import RunDir, read_json, run_dir, sync_files, write_json

log = logging.getLogger(__name__)


def settle(store: Store, settings: Settings, job_id: str, fence: int, *, slot: str, now: float) -> Job | None:
    """Finish the run that `slot` leads, or give it back to the queue. None when it is not its any more. May be repeated."""
    try:
        job = store.get(job_id)
    except UnknownJob:
        return None
    # a second entry for the same offer, in another slot's mailbox, must not end the run that goes on here
    if job.fence != fence or job.state.final or job.slots[:1] != (slot,):
        return None
    folder = run_dir(settings.runs, job_id)
    try:
        if job.in_preflight:
            shutil.rmtree(folder.scratch, ignore_errors=True)
        if job.state is State.QUEUED:
            return store.change(job_id, lambda job: job.withdrawn(fence=fence)) if job.offer else None
        outcome = outcome_of(job, folder, settings, now)
        if outcome.end is End.CHECKED:
            outcome = replace(outcome, learned=with_room(outcome.learned, job, store))
        # on disk before it is told: a power cut between the two would leave a folder that knows nothing of a job that has ended
        expected = job.ended(fence=fence, outcome=outcome, now=now)
        keep_record(folder, expected)
        after = store.finish(job_id, fence=fence, outcome=outcome, now=now)
    except InvalidTransition as error:
        log.info("job %s was ended by somebody else: %s", job_id, error)
        return None
    if after != expected:  # a wish had come in between
        keep_record(folder, after)
    if outcome.cause is Cause.GPU_FAULT:
        fault = fault_under(job, settings, now)
        if fault is not None and fault.policy is faults.Policy.QUARANTINE:
            quarantine.impose(store, settings.rig, fault)
    return after


def outcome_of(job: Job, folder: RunDir, settings: Settings, now: float) -> Outcome:
    """The judgement on a running job's last attempt, with what it used."""
    record, result = read_json(folder.exit), read_json(folder.result)
    outcome = judge(fence=job.fence, result=result, exit=Exit.from_json(record) if record else None)
    if result is None and outcome.cause in (Cause.LOST, Cause.USER_ERROR) and (full := disk_hold(settings)):
        # what ended it also kept it from saying so
        outcome = replace(outcome, cause=Cause.DISK_FULL, message="The disk was full.", hint=full)
    outcome = faults.explain(outcome, fault_under(job, settings, now))
    outcome = replace(outcome, usage=usage_of(job.attempts[-1], settings, now))
    return of_preflight(outcome, now - job.attempts[-1].started_at) if job.attempts[-1].preflight else outcome


def of_preflight(outcome: Outcome, took_s: float) -> Outcome:
    """What the driver saw beside what the preflight measured itself: its memory at the peak, and the whole job's energy."""
    if outcome.end is End.FAILED:
        return replace(outcome, message=f"In its preflight: {outcome.message}")
    if outcome.end is not End.CHECKED:
        return outcome
    learned, usage = dict(outcome.learned), outcome.usage
    if "peak_vram_bytes" in learned:
        learned["peak_vram_bytes"] = max(learned["peak_vram_bytes"], float(usage.get("peak_own_vram_bytes") or 0.0))
    if (energy_j := usage.get("energy_j")) and took_s > 0 and "expected_s" in learned:
        learned["expected_j"] = round(energy_j / took_s * learned["expected_s"], 1)
    return replace(outcome, learned=learned)


def with_room(learned: Mapping[str, float], job: Job, store: Store) -> dict[str, float]:
    """What a preflight measured, with no more memory at its peak than lets the job onto the same cards again.

    torch keeps what it once had, so that a peak may be all that the card has. One that takes what there is needs none of it.
    """
    slots = map(Slot.from_json, store.rigs().get(job.rig, {}).get("slots", ()))
    memory_bytes = min((slot.memory_bytes for slot in slots if slot.id in job.slots), default=0)
    found = dict(learned)
    if (peak := found.pop("peak_vram_bytes", None)) and not takes_what_there_is(job):
        found["peak_vram_bytes"] = min(peak, float(memory_bytes - VRAM_RESERVE_BYTES)) if memory_bytes else peak
    return found


def fault_under(job: Job, settings: Settings, now: float) -> faults.Fault | None:
    """What went wrong with a card while the job ran on it."""
    run = job.attempts[-1]
    return faults.fault_of(telemetry.events(settings.home, run.started_at, now, slots=run.slots))


def usage_of(run: Attempt, settings: Settings, now: float) -> dict[str, Any]:
    """What the attempt used, as far as the sampler knows."""
    usage = asdict(telemetry.summarize(settings.home, run.slots, run.started_at, now, tariff=settings.prices))
    peak_bytes = usage.pop("peak_memory_bytes")
    own_peak_bytes = usage.pop("peak_own_memory_bytes")
    if not run.slots[0].startswith("cpu:"):  # on a CPU slot it is the whole machine's memory: not the job's
        usage["peak_vram_bytes"], usage["peak_own_vram_bytes"] = peak_bytes, own_peak_bytes
    if usage["cost"] is not None:
        usage["cost"] *= settings.wall_factor
    if usage["energy_j"] is not None:
        usage["co2_g"] = co2_g(usage["energy_j"] * settings.wall_factor, settings.co2_g_per_kwh)
    return {name: value for name, value in usage.items() if value is not None}


def keep_record(folder: RunDir, job: Job) -> None:
    """The record beside its results: a run folder alone tells the whole story."""
    try:
        folder.create()
        write_json(folder.state, job.to_json())
        sync_files(folder.spec, folder.environment)  # left unsynced at the start, to start sooner
    except OSError as error:  # a full disk must not undo what the queue knows already
        log.warning("%s could not be written: %s", folder.state, error)
