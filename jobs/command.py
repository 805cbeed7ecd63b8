"""Any program of the owner's: start it, pass a stop on to it, and judge how it ended. Imports nothing heavy.

Its output goes where the attempt's own goes: into log.txt. Does not end what the program leaves behind; the keeper does.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jobs import environment, interpreter, snapshot, tensorboard
from jobs.causes import killed
from jobs.metrics import last_values
from jobs.model import Cause
from jobs.process import die_with_parent, for_other_programs, oom_kills
from jobs.run import EXIT_INTERRUPTED, Interrupted, JobError, Run

#: Lets every script `import overnight`, whatever Python it runs in.
HELPER = Path(__file__).parent / "helper"
#: How much of the log's end is searched for the program's last words.
LAST_WORDS_BYTES = 4096
LAST_WORDS_LETTERS = 200


def run(run: Run) -> dict[str, Any]:
    """Run the program to its end. Raises Interrupted when it stopped because it was asked to, JobError when it failed."""
    run.phase("unpacking")
    folder = working_folder(run)
    environment.record(run, folder)
    run.phase("running")
    kills_before = oom_kills()
    with _forwarded_sigterm(run) as forward:
        process = start(run, folder)
        forward.to(process)
        code = process.wait()  # a signal's handler runs in between, so there is nothing to poll
    tensorboard.render(run.folder, run.order.attempt)
    if forward.sent or code == EXIT_INTERRUPTED:
        raise Interrupted
    if code == 0:
        return {**last_values(run.folder.metrics), "exit_code": 0}
    name = _shown(run)
    if code < 0:
        raise killed(f"`{name}`", -code, oom=oom_kills() > kills_before)
    words = last_words(run.folder.log)
    ending = f": {words}" if words else "."
    raise JobError(Cause.USER_ERROR, f"`{name}` exited with status {code}{ending}", "Its output is in the log.")


def working_folder(run: Run) -> Path:
    """Where the program runs; a folder that came along is unpacked first. Raises JobError(bad_input)."""
    packed = run.order.paths.get("workdir")
    if packed:
        try:
            snapshot.unpack(Path(packed), run.folder.code, name=run.order.spec["workdir"])
        except snapshot.BadSnapshot as error:
            raise JobError(Cause.BAD_INPUT, f"The working folder {error}.", "Submit it again.") from None
        folder = run.folder.code / (run.order.spec["cwd"] or "")
    else:
        folder = Path(run.order.paths.get("cwd") or run.folder.output)
    if not folder.is_dir():
        raise JobError(Cause.BAD_INPUT, f"The folder {folder} is not there.", "Check cwd.")
    return folder


def start(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """Start the program. Raises JobError(bad_input) when that cannot be done."""
    argv = interpreter.chosen(run.order.spec["argv"], run.order.spec.get("python", "auto"), folder)
    try:
        # the same process group, so that a stop of the group reaches it; and it must not outlive us, whatever ends us
        return subprocess.Popen(
            argv,
            cwd=folder,
            env=_environment(run),
            stdin=subprocess.DEVNULL,
            preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
        )
    except FileNotFoundError:
        hint = "Give an absolute path, or install it on the rig."
        raise JobError(Cause.BAD_INPUT, f"There is no command {argv[0]!r} on the rig.", hint) from None
    except PermissionError:
        hint = f"Run `chmod +x` on it, or call its interpreter: {shlex.join(['python3', argv[0]])}."
        raise JobError(Cause.BAD_INPUT, f"{argv[0]!r} is not executable.", hint) from None
    except OSError as error:
        hint = "A script needs its interpreter in the first line (#!/usr/bin/env python3)."
        raise JobError(Cause.BAD_INPUT, f"{argv[0]!r} cannot be run: {error.strerror}.", hint) from None


def _environment(run: Run) -> dict[str, str]:
    own = os.environ.get("PYTHONPATH")
    return {
        "PYTHONUNBUFFERED": "1",  # a log that comes at once
        **for_other_programs(os.environ),
        "PYTHONPATH": f"{HELPER}{os.pathsep}{own}" if own else str(HELPER),
        **run.order.spec["env"],
        "OVERNIGHT_JOB_ID": run.order.job_id,
        "OVERNIGHT_ATTEMPT": str(run.order.attempt),
        "OVERNIGHT_RESUME": "1" if run.order.resume else "0",
        "OVERNIGHT_CHECKPOINT_DIR": str(run.folder.checkpoints),
        "OVERNIGHT_OUTPUT_DIR": str(run.folder.output),
        "OVERNIGHT_METRICS_FILE": str(run.folder.metrics),
        "OVERNIGHT_PROGRESS_FILE": str(run.folder.progress),
        "OVERNIGHT_FENCE": str(run.order.fence),
    }


class Forward:
    """Passes the attempt's stop on to the program, once, also when it came before the program was there."""

    def __init__(self, run: Run):
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        self.sent = False

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """From now on to this process."""
        self._process = process
        self.send()

    def send(self) -> None:
        """Pass it on, if a stop was asked for and there is somebody to tell."""
        if self._run.stop_requested and self._process is not None and not self.sent:
            self.sent = True
            self._process.send_signal(signal.SIGTERM)


@contextmanager
def _forwarded_sigterm(run: Run) -> Iterator[Forward]:
    forward = Forward(run)
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)  # sets stop_requested
        forward.send()

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield forward
    finally:
        signal.signal(signal.SIGTERM, before)


def last_words(log: Path) -> str:
    """The program's last line, when this process writes into that log."""
    try:
        with log.open("rb") as file:
            if not os.path.samestat(os.fstat(file.fileno()), os.fstat(sys.__stdout__.fileno())):  # type: ignore[union-attr]
                return ""
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except (OSError, ValueError, AttributeError):  # no log, or no stdout to compare it with
        return ""
    words = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "".join(c for c in words if c.isprintable())[:LAST_WORDS_LETTERS]


def _shown(run: Run) -> str:
    """The command as people know it, short and on one line."""
    text = " ".join(shlex.join(run.order.spec["argv"]).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
