"""What must hold after a drill, read only where a user could look: the API, run folders, the process table, the jobs' ledgers."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from ledger import Line
from scene import FINAL, Scene
from user import Json, NoAnswer, Refused

from daemon.reindex import jobs_on_disk
from jobs.rundir import read_json, run_dir

#: Records are in milliseconds on the wire.
ROUNDING_S = 0.002


class Checker:
    """Watches a drill and judges it at its end."""

    def __init__(self, scene: Scene):
        self._scene = scene
        self._seen_final: dict[str, str] = {}
        self.jobs: list[Json] = []

    # -- while it goes on -------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """An end that was told must stay."""
        try:
            jobs = self._scene.rig.user.get("/jobs", limit=50)["jobs"]
        except NoAnswer:
            return
        for job in jobs:
            self._watch(job)

    def _watch(self, job: Json) -> None:
        before = self._seen_final.get(job["name"])
        expected = self._scene.workload.expected.get(job["name"])
        if before is not None and job["state"] != before and not (expected and expected.retried):
            self._scene.violation(f"job {job['id']} ({job['name']}) was {before} and is {job['state']} now")
        if job["state"] in FINAL:
            if before != job["state"]:
                self._scene.say(
                    f"       job {job['id']} ({job['name']}) {job['state']}, {len(job['attempts'])} attempt(s)"
                )
            self._seen_final[job["name"]] = job["state"]

    # -- at its end ---------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Note every broken promise, with the evidence of the job."""
        self.jobs = sorted(self._scene.rig.user.jobs(), key=lambda job: int(job["id"]))
        for job in self.jobs:
            self._watch(job)
            wrong = list(self._wrong_with(job))
            for text in wrong:
                self._scene.violation(f"job {job['id']} ({job['name']}) {text}")
            if wrong:
                self._scene.say(self.evidence(job))
        for text in [*self._wrong_with_the_list(), *self._wrong_with_slots(), *self._wrong_with_the_rig()]:
            self._scene.violation(text)

    def _wrong_with_the_list(self) -> Iterator[str]:
        names = [job["name"] for job in self.jobs]
        yield from (
            f"{name} is there {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1
        )
        by_id = {job["id"]: job["name"] for job in self.jobs}
        for job_id, name in self._scene.rig.user.acknowledged.items():
            if by_id.get(job_id) != name:
                yield f"acknowledged job {job_id} ({name}) is lost"
        for name in set(self._scene.workload.expected) - set(names):
            yield f"{name} was submitted and is not there"

    def _wrong_with(self, job: Json) -> Iterator[str]:
        expected = self._scene.workload.expected.get(job["name"])
        if expected is None:
            yield "was never submitted"
            return
        if job["state"] not in expected.states:
            yield f"is {job['state']}, not {' or '.join(sorted(expected.states))}: {job['outcome']}"
            return
        yield from _wrong_with_attempts(job)
        lines = self._scene.ledgers.lines(job["name"])
        yield from _wrong_with_lines(job, lines, retried=expected.retried)
        yield from self._wrong_with_folder(job, expected.steps)

    def _wrong_with_folder(self, job: Json, steps: int) -> Iterator[str]:
        if not job["attempts"]:
            return
        folder = run_dir(self._scene.rig.settings.runs, job["id"])
        if job["state"] == "succeeded":
            if (read_json(folder.result) or {}).get("end") != "succeeded":
                yield "succeeded, and its result.json does not say so"
            count = folder.checkpoints / "count"
            if not count.exists() or int(count.read_text()) != steps:
                yield f"succeeded, and its last checkpoint is not that of step {steps}"
        try:
            self._scene.rig.user.call("GET", f"/api/v1/jobs/{job['id']}/log")
        except (NoAnswer, Refused) as error:
            yield f"has no log: {error}"

    def _wrong_with_slots(self) -> Iterator[str]:
        by_slot: dict[str, list[tuple[float, float, str]]] = {}
        for job in self.jobs:
            for run in job["attempts"]:
                for slot in run["slots"]:
                    span = (moment(run["started_at"]), moment(run["ended_at"] or run["started_at"]), job["name"])
                    by_slot.setdefault(slot, []).append(span)
        for slot, spans in by_slot.items():
            for before, after in pairwise(sorted(spans)):
                if after[0] < before[1] - ROUNDING_S:
                    yield f"{slot} ran {before[2]} and {after[2]} at the same time"
        for gpu in self._scene.rig.user.get("/gpus")["gpus"]:
            if gpu["job"] is not None or gpu["state"] != "idle":
                yield f"slot {gpu['id']} is {gpu['state']} with job {gpu['job']} after the last job's end"

    def _wrong_with_the_rig(self) -> Iterator[str]:
        rig = self._scene.rig
        told = rig.user.get("/rig")
        states = [job["state"] for job in self.jobs]
        for state, count in told["jobs"].items():
            if states.count(state) != count:
                yield f"the rig counts {count} {state} jobs, its list has {states.count(state)}"
        if left := rig.of_jobs():
            yield f"{len(left)} process(es) of jobs live on: {left[0]}"
        on_disk = {job.id: job.state for job in jobs_on_disk(rig.settings.runs, now=0.0)}
        for job in self.jobs:
            state = on_disk.get(job["id"])
            if job["state"] in ("succeeded", "failed") and state != job["state"]:
                yield f"job {job['id']} is {job['state']}; from its run folder it would be {state}"
        yield from _wrong_with_telemetry(rig.settings.home / "telemetry.sqlite")

    def after_the_stop(self) -> None:
        """Nothing may be left when the rig was told to stop."""
        if left := self._scene.rig.everything():
            self._scene.violation(f"after the stop {len(left)} process(es) of the rig live on")

    # -- evidence -----------------------------------------------------------------------------------------------------------

    def evidence(self, job: Json) -> str:
        """All that is known of one job, in the order of time."""
        told: list[tuple[float, str]] = []
        for run in job["attempts"]:
            told.append((moment(run["started_at"]), f"attempt {run['number']} on {', '.join(run['slots'])}"))
            if run["ended_at"]:
                told.append((moment(run["ended_at"]), f"  ended {run['end']} {run['cause'] or ''} {run['message']}"))
        told += [
            (line.at, f"    program {line.pid}: {line.word} {line.number}")
            for line in _edges(self._scene.ledgers.lines(job["name"]))
        ]
        told += self._events_of(job["id"])
        rows = "\n".join(f"  {at:.3f} {text}" for at, text in sorted(told))
        words = "\n".join("  " + line for line in self._scene.rig.log_of(job["id"]))
        return f"{rows}\n  the daemon's log:\n{words}"

    def situation(self) -> str:
        """What the rig's user sees now: its slots, and every unfinished job with its reason to wait and its evidence."""
        try:
            gpus = self._scene.rig.user.get("/gpus")["gpus"]
            jobs = [*self._scene.rig.user.jobs(state="running"), *self._scene.rig.user.jobs(state="queued")]
        except (NoAnswer, Refused) as error:
            return f"  ({error})\n{self._scene.rig.log_tail()}"
        rows = [f"  slot {gpu['id']}: {gpu['state']}, job {gpu['job']}, paused {gpu['paused']}" for gpu in gpus]
        for job in jobs:
            rows.append(f"  job {job['id']} ({job['name']}): {job['state']} {job['waiting_because'] or ''}")
        return "\n".join([*rows, *(self.evidence(job) for job in jobs)])

    def evidence_of(self, name: str) -> str:
        """The same for a job by its name, while the drill goes on."""
        try:
            return "".join(self.evidence(job) for job in self._scene.rig.user.jobs(q=name))
        except NoAnswer as error:
            return f"  ({error})"

    def _events_of(self, job_id: str) -> list[tuple[float, str]]:
        with self._scene.rig.store() as store:
            events = [event for event in store.events("0-0", count=100_000) if event.job == job_id]
        return [
            (int(e.id.split("-")[0]) / 1000, f"      event {e.type} {dict(e.data)}")
            for e in events
            if e.type != "progress"
        ]


def moment(text: str) -> float:
    """An ISO time as epoch seconds."""
    return datetime.fromisoformat(text).timestamp()


def _wrong_with_attempts(job: Json) -> Iterator[str]:
    runs: list[Json] = job["attempts"]
    ends = [run["end"] for run in runs]
    if None in ends:
        yield "has an attempt without an end"
        return
    if ends.count("succeeded") > 1:
        yield f"succeeded {ends.count('succeeded')} times"
    if job["state"] == "succeeded" and ends[-1:] != ["succeeded"]:
        yield f"succeeded, and its last attempt {ends[-1:]}"
    for before, after in pairwise(runs):
        if moment(after["started_at"]) < moment(before["ended_at"]) - ROUNDING_S:
            yield f"has two attempts at the same time, from {after['started_at']}"
    if job["finished_at"] is None:
        yield "has ended at no time"


def _wrong_with_lines(job: Json, lines: list[Line], *, retried: bool) -> Iterator[str]:
    if any(line.word == "OVERLAP" for line in lines):
        yield "ran twice at the same time"
    saved = 0
    for line in lines:
        if line.word == "start" and line.number < saved:
            yield f"started from step {line.number} although step {saved} had been saved"
        saved = max(saved, line.number if line.word == "saved" else 0)
    spans = [(moment(run["started_at"]), moment(run["ended_at"])) for run in job["attempts"] if run["ended_at"]]
    for line in lines:
        if not any(start - ROUNDING_S <= line.at <= end + ROUNDING_S for start, end in spans):
            yield f"ran outside of its attempts: {line.word} {line.number} at {line.at:.3f}"
            break
    for start, end in spans:
        if sum(line.word == "start" and start - ROUNDING_S <= line.at <= end + ROUNDING_S for line in lines) > 1:
            yield "started twice in one attempt"
    if job["state"] == "succeeded" and not any(line.word == "end" for line in lines):
        yield "succeeded, and its program never came to its end"


def _edges(lines: list[Line]) -> Iterator[Line]:
    """Starts, ends, and the steps beside them."""
    for number, line in enumerate(lines):
        beside = lines[number + 1 : number + 2]
        if line.word != "saved" or not beside or beside[0].word != "saved":
            yield line


def _wrong_with_telemetry(path: Path) -> Iterator[str]:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            answer: list[Any] = database.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.Error as error:
        yield f"telemetry.sqlite cannot be opened: {error}"
        return
    if answer != [("ok",)]:
        yield f"telemetry.sqlite is damaged: {answer[:3]}"
