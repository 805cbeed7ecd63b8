"""Hand jobs to Slurm. The interface is Overnight's own: a run folder and a process, `python -m jobs RUN_FOLDER`.

    overnight-sbatch new ft.toml runs/7       a run folder from a job document
    overnight-sbatch submit runs/7 [-- ...]   sbatch it; what follows -- goes to sbatch (--partition=night, say)
    overnight-sbatch state runs/7             how it stands, as JSON
    overnight-sbatch wait runs/7              return when it has ended: 0 succeeded, 1 failed, 3 cancelled, 69 gone
    overnight-sbatch cancel runs/7            save and stop for good
    overnight-sbatch run runs/7               one attempt, here and now: what the batch script does; 75: run it again

The folder must be on storage that the node sees. Slurm decides when and where; Overnight's rules decide what follows an
attempt: one that saved and stopped (status 75) is requeued and resumes, one that ran out of memory is tried again with half
the micro-batch, and so on, exactly as on a rig (jobs.model). The record is state.json, as on a rig.
"""

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jobs.model import InvalidTransition, Job, State, Wish, WishKind  # noqa: E402
from jobs.outcome import Exit, StoppedFor, judge  # noqa: E402
from jobs.run import JobError, Order  # noqa: E402
from jobs.rundir import RunDir, read_json, write_json  # noqa: E402
from jobs.spec import InvalidSpec, dump, parse  # noqa: E402

FILE_FIELDS = ("model", "adapter", "data", "eval_data", "cwd")
#: Slurm says TERM so long before it ends an allocation, to the batch script alone (B:), which is `run` below.
WARNING_S = 60
#: A SIGTERM is answered with a saved checkpoint within this, or with SIGKILL.
GRACE_S = 50.0
POLL_S = 2.0
STARTING_S = 10.0
EX_USAGE, EX_GONE = 2, 69
EXITS = {State.SUCCEEDED: 0, State.FAILED: 1, State.CANCELLED: 3}


class Refused(Exception):
    """What cannot be done, and what to do about it."""


# -- the run folder -------------------------------------------------------------------------------------------------------------


def new(document: Path, folder: RunDir) -> None:
    """Make the run folder of a job document (TOML or JSON). Paths in it are relative to the document."""
    if folder.spec.exists():
        raise Refused(f"{folder.path} holds a job already. Choose another folder.")
    text = document.read_text()
    given = json.loads(text) if document.suffix == ".json" else tomllib.loads(text)
    paths = dict(_paths(given, document.resolve().parent))
    spec = dump(parse({**given, **paths}))
    folder.create()
    Order(job_id=_job_id(folder), attempt=1, fence=1, resume=False, spec=spec, paths=paths).write(folder)


def _paths(document: Mapping[str, Any], base: Path) -> Iterator[tuple[str, str]]:
    for name in FILE_FIELDS:
        text = str(document.get(name) or "")
        if text.startswith(("job:", "sha256:")):
            raise Refused(f"{name}: {text!r} is known to a rig only. Give the path of the file or folder.")
        if text and (text.startswith("/") or (base / text).exists()):
            yield name, str((base / text).resolve())
        elif text and name != "model":
            raise Refused(f"{name}: {base / text} is not there.")


def _job_id(folder: RunDir) -> str:
    return folder.path.name if folder.path.name.isdigit() else "1"


def job_of(folder: RunDir) -> Job:
    """The job's record: from state.json, or a new one from spec.json. Raises Refused."""
    if record := read_json(folder.state):
        return Job.from_json(record)
    try:
        order = Order.read(folder)
    except JobError as error:
        raise Refused(f"{error.message}. Make one with `overnight-sbatch new DOCUMENT {folder.path}`.") from None
    spec = order.spec
    facts = {name: spec[name] for name in ("gpus", "max_runtime_s", "max_attempts") if spec.get(name) is not None}
    name = spec.get("name") or f"{spec['kind']} {folder.path.name}"
    return Job(id=_job_id(folder), kind=spec["kind"], name=name, spec=spec, created_at=time.time(), rank=0.0, **facts)


# -- on the login node ------------------------------------------------------------------------------------------------------------


def submit(folder: RunDir, extra: Sequence[str]) -> str:
    """Hand it to sbatch; Slurm's job id. An ended job that failed or was cancelled goes on from its last checkpoint."""
    if (told := slurm_state(folder)) in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED"):
        raise Refused(f"Slurm has it already: job {slurm_id(folder)} is {told}.")
    job = job_of(folder)
    if job.state is State.SUCCEEDED:
        raise Refused("It has succeeded. Make another run folder to run it again.")
    if job.state.final:
        job = job.retried(rank=0.0)
    folder.create()
    write_json(folder.state, job.to_json())
    command = [*sbatch_flags(job, folder), *extra, "--wrap", f"exec {_shell(_myself(), 'run', str(folder.path))}"]
    slurm_job = _slurm(command).strip().partition(";")[0]
    write_json(_note(folder), {"job": slurm_job, "submitted_at": time.time(), "command": command})
    return slurm_job


def sbatch_flags(job: Job, folder: RunDir) -> list[str]:
    """How the job's own fields look to Slurm."""
    flags = [
        "sbatch",
        "--parsable",
        f"--job-name={job.name[:64]}",
        "--nodes=1",
        "--ntasks=1",
        f"--gres=gpu:{job.gpus}",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{WARNING_S}",
        f"--output={folder.path / 'slurm.txt'}",
        f"--chdir={folder.path}",
    ]
    if job.max_runtime_s is not None:
        # ours comes first; this one frees the node when nothing of ours is left to do it
        minutes = math.ceil((job.max_runtime_s + WARNING_S + GRACE_S) / 60)
        flags.append(f"--time={minutes}")
    return flags


def state(folder: RunDir) -> dict[str, Any]:
    """How it stands: the job's own record, and Slurm's word on it."""
    job, told = job_of(folder), slurm_state(folder)
    outcome = job.outcome
    gone = not job.state.final and told in (None, "CANCELLED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
    return {
        "state": job.state,
        "attempt": job.attempt,
        "attempts": len(job.attempts),
        "outcome": {"cause": outcome.cause, "message": outcome.message, "hint": outcome.hint} if outcome else None,
        "progress": read_json(folder.progress),
        "slurm": {"job": slurm_id(folder), "state": told},
        "gone": gone,
    }


def wait(folder: RunDir) -> int:
    """Return when the job has ended, with its exit status."""
    gone_since: float | None = None
    while True:
        now = state(folder)
        if (end := State(now["state"])).final:
            return EXITS[end]
        gone_since = (gone_since or time.monotonic()) if now["gone"] else None
        if gone_since is not None and time.monotonic() - gone_since > STARTING_S:
            print(
                f"Slurm ended job {now['slurm']['job']} ({now['slurm']['state']}) without us. Submit it again: it resumes."
            )
            return EX_GONE
        time.sleep(POLL_S)


def cancel(folder: RunDir) -> None:
    """End it for good: a waiting one at once, a running one when it has saved."""
    job = job_of(folder)
    if job.state.final:
        return
    wish = Wish(kind=WishKind.CANCEL, reason="Cancelled by overnight-sbatch.", asked_at=time.time())
    write_json(folder.path / "wish.json", asdict(wish))
    if job.state is State.QUEUED:
        write_json(folder.state, job.asked(wish).to_json())
    if slurm_job := slurm_id(folder):
        _slurm(["scancel", slurm_job])


# -- inside the allocation --------------------------------------------------------------------------------------------------------


def run(folder: RunDir) -> int:
    """The batch script: one attempt, its judgement, and a requeue when another attempt follows."""
    job = begin(folder)
    if job.state.final:
        return EXITS[job.state]
    told = keep(folder, job)
    write_json(folder.exit, asdict(told))
    job = end(folder, job)
    if job.state.final:
        return EXITS[job.state]
    _requeue(folder)
    return 75


def begin(folder: RunDir) -> Job:
    """The next attempt's orders. An attempt that ended with its node is judged first."""
    job = job_of(folder)
    if job.state is State.RUNNING:
        job = end(folder, job)
    if job.state.final:
        return job
    slots = tuple(f"gpu:{n}" for n in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))
    now = time.time()
    job = job.offered(rig=os.environ.get("SLURM_CLUSTER_NAME", "slurm"), slots=slots, now=now)
    job = job.claimed(fence=job.fence, owner=socket.gethostname(), now=now)
    for stale in (folder.result, folder.exit, folder.progress):
        stale.unlink(missing_ok=True)
    order = Order.read(folder)
    resume = len(job.attempts) > 1
    replace(order, attempt=job.attempt, fence=job.fence, resume=resume, spec=job.effective_spec).write(folder)
    write_json(folder.state, job.to_json())
    return job


def keep(folder: RunDir, job: Job) -> Exit:
    """Run the attempt to its end. SIGTERM (the end of the allocation, scancel) is handed on: it saves and stops."""
    limit_s = job.max_runtime_s or math.inf
    stopped: StoppedFor | None = None
    with folder.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "jobs", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(job, folder),
            cwd=folder.path,
        )
    began, kill_at = time.monotonic(), math.inf
    with _sigterm() as asked:
        while child.poll() is None:
            now = time.monotonic()
            late = now - began > limit_s
            if stopped is None and (asked or late):
                stopped = StoppedFor.TIMEOUT if late and not asked else StoppedFor.PREEMPT
                kill_at = now + GRACE_S
                child.terminate()
            if now > kill_at:
                child.kill()
            try:
                child.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    if (folder.path / "wish.json").exists():
        stopped = StoppedFor.CANCEL
    reasons = {
        StoppedFor.TIMEOUT: f"It ran longer than max_runtime_s = {limit_s:g}.",
        StoppedFor.PREEMPT: "Slurm asked it to stop; it goes on when Slurm starts it again.",
        StoppedFor.CANCEL: "Cancelled.",
    }
    code = child.returncode
    return Exit(
        fence=job.fence,
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        stopped_for=stopped,
        reason=reasons[stopped] if stopped else "",
    )


def end(folder: RunDir, job: Job) -> Job:
    """Judge the attempt: final, or another one follows."""
    told = read_json(folder.exit)
    outcome = judge(fence=job.fence, result=read_json(folder.result), exit=Exit.from_json(told) if told else None)
    if wish := read_json(folder.path / "wish.json"):
        (folder.path / "wish.json").unlink()
        job = job.asked(Wish(**{**wish, "kind": WishKind(wish["kind"])}))
    job = job.ended(fence=job.fence, outcome=outcome, now=time.time())
    write_json(folder.state, job.to_json())
    return job


def _environment(job: Job, folder: RunDir) -> dict[str, str]:
    threads = os.environ.get("SLURM_CPUS_PER_TASK") or str(len(os.sched_getaffinity(0)))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OVERNIGHT_JOB_ID": job.id,
        "OVERNIGHT_RUN_DIR": str(folder.path),
        "OVERNIGHT_CPU_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM has come."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


def _requeue(folder: RunDir) -> None:
    """Back to the queue, unless Slurm has decided already (scancel, a preemption that requeues by itself).

    Slurm starts a requeued job after two minutes at the earliest: the node must have ended everything of it.
    """
    slurm_job = os.environ.get("SLURM_JOB_ID")  # another engine reads the exit status
    if slurm_job and slurm_state(folder, slurm_job) == "RUNNING":
        _slurm(["scontrol", "requeue", slurm_job])


# -- Slurm ----------------------------------------------------------------------------------------------------------------------


def slurm_id(folder: RunDir) -> str | None:
    """The id that sbatch gave it."""
    note = read_json(_note(folder))
    return str(note["job"]) if note else None


def slurm_state(folder: RunDir, slurm_job: str | None = None) -> str | None:
    """Slurm's word (PENDING, RUNNING...); None when it does not know the job, or no more."""
    slurm_job = slurm_job or slurm_id(folder)
    if slurm_job is None:
        return None
    found = subprocess.run(["scontrol", "show", "job", "-o", slurm_job], capture_output=True, text=True)
    words = dict(word.partition("=")[::2] for word in found.stdout.split())
    return words.get("JobState")


def _note(folder: RunDir) -> Path:
    return folder.path / "slurm.json"


def _slurm(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise Refused(f"{command[0]} is not here: run this on a machine with Slurm's commands.") from None
    if done.returncode:
        raise Refused(f"{command[0]} refused: {done.stderr.strip()}")
    return done.stdout


def _myself() -> list[str]:
    return [sys.executable, str(Path(__file__).resolve())]


def _shell(program: Sequence[str], *arguments: str) -> str:
    return " ".join("'" + part.replace("'", "'\\''") + "'" for part in (*program, *arguments))


def main(arguments: Sequence[str]) -> int:
    """The command."""
    own, _, extra = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="overnight-sbatch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("new", help="a run folder from a job document")
    making.add_argument("document", type=Path)
    for verb in (making, *(verbs.add_parser(name) for name in ("submit", "state", "wait", "cancel", "run"))):
        verb.add_argument("folder", type=Path)
    given = parser.parse_args(own)
    folder = RunDir(given.folder.resolve())
    try:
        match given.verb:
            case "new":
                new(given.document, folder)
            case "submit":
                print(submit(folder, extra))
            case "state":
                print(json.dumps(state(folder), indent=2))
            case "cancel":
                cancel(folder)
            case "wait":
                return wait(folder)
            case "run":
                return run(folder)
    except (Refused, InvalidSpec, InvalidTransition, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return EX_USAGE
    return 0


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), "--", list(arguments[at + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
