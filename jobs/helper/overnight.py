"""For your own script: tell the rig how it goes, save so that a kill costs nothing, stop when asked.

    import overnight
    overnight.log(step, total, loss=loss)              # progress and metrics on the page

    step = overnight.load(model_and_optimizer.load)    # after an interruption: from the newest whole checkpoint
    overnight.save(step, model_and_optimizer.save)     # written aside, synced, renamed; the last two are kept
    if overnight.stop_requested():                     # at the end of a step, after saving
        overnight.interrupted()                        # "saved, run me again": not a failure, not an attempt

    Trainer(..., callbacks=[overnight.TrainerCallback()])   # all of it, for transformers and TRL

Every command that a rig runs finds it by `import`; it needs Python 3.8 and nothing else. Outside of a job it keeps
checkpoints and metrics below ./overnight-run, so that the same script runs anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

#: "Saved, run me again" (EX_TEMPFAIL of sysexits.h).
EXIT_INTERRUPTED = 75
KEPT_CHECKPOINTS = 2
#: Leaves a folder of a transformers checkpoint that was written to its end.
WHOLE = ".overnight-whole"

#: Whether a rig runs this script.
in_job: bool = "OVERNIGHT_JOB_ID" in os.environ
#: Whether an earlier attempt of this job has run, so that there may be something to go on from.
resume: bool = os.environ.get("OVERNIGHT_RESUME") == "1"

_HERE = Path("overnight-run")
_began: dict[str, float] = {}
_stop = _listening = False


def _path(variable: str, otherwise: str) -> Path:
    return Path(os.environ.get(variable) or _HERE / otherwise)


def checkpoint_dir() -> Path:
    """Where checkpoints go; it outlives the attempt."""
    return _made(_path("OVERNIGHT_CHECKPOINT_DIR", "checkpoints"))


def output_dir() -> Path:
    """Where results go: `overnight pull` brings them."""
    return _made(_path("OVERNIGHT_OUTPUT_DIR", "output"))


def log(step: int, total: int | None = None, **metrics: float) -> None:
    """One line of metrics and how far it is. Numbers only; what is not finite is left out of the line."""
    now = time.time()
    values = {name: float(value) for name, value in metrics.items()}
    finite = {name: value for name, value in values.items() if value - value == 0}
    if values:
        target = _path("OVERNIGHT_METRICS_FILE", "metrics.jsonl")
        _made(target.parent)
        with target.open("ab", buffering=0) as file:
            file.write((json.dumps({"step": step, **finite, "time": now}) + "\n").encode())
    _tell(step, total, finite, now)


def progress(step: int, total: int | None = None) -> None:
    """How far it is, without metrics."""
    _tell(step, total, {}, time.time())


def save(step: int, write: Callable[[Path], Any]) -> Path:
    """Call `write(folder)` and keep what it wrote as the checkpoint of this step, whole or not at all."""
    root = checkpoint_dir()
    draft, final = root / f".step-{step:06d}.tmp", root / f"step-{step:06d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    write(draft)
    _sync(draft)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync_entry(root)
    for old in _saved(root)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest() -> Path | None:
    """The newest checkpoint that `save` has kept; None when there is none."""
    found = _saved(checkpoint_dir())
    return found[-1] if found else None


def load(read: Callable[[Path], Any]) -> int:
    """Call `read(folder)` with the newest checkpoint. Returns its step; 0 when there is none."""
    found = latest()
    if found is None:
        return 0
    read(found)
    return int(found.name[len("step-") :])


def stop_requested() -> bool:
    """Whether the rig wants its GPU back: save, then call `interrupted()`. There is a minute or so for it.

    Asked once, SIGTERM ends the script no more: it must go on asking.
    """
    global _listening
    if in_job and not _listening and threading.current_thread() is threading.main_thread():
        _listening = True
        signal.signal(signal.SIGTERM, _on_sigterm)
    return _stop


def interrupted() -> NoReturn:
    """End now with the word that everything is saved and the job can go on later."""
    sys.exit(EXIT_INTERRUPTED)


def last_trainer_checkpoint(folder: str | Path | None = None) -> str | None:
    """The newest checkpoint of transformers' Trainer that was written to its end; for `resume_from_checkpoint=`.

    Trainer's own search takes the highest number, also one that a kill left half written.
    """
    found = [path for path in Path(folder or checkpoint_dir()).glob("checkpoint-*") if (path / WHOLE).is_file()]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def __getattr__(name: str) -> Any:
    if name == "TrainerCallback":  # made when it is asked for: it loads transformers
        globals()[name] = _trainer_callback()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _trainer_callback() -> Any:
    from transformers import TrainerCallback as Base

    class TrainerCallback(Base):  # type: ignore[misc]
        """Progress, metrics, whole checkpoints, and a stop at the end of a step."""

        def __init__(self) -> None:
            stop_requested()  # from now on SIGTERM waits for the end of a step

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero and logs:
                numbers = {k: v for k, v in logs.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
                log(state.global_step, state.max_steps, **numbers)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                progress(state.global_step, state.max_steps)
            if stop_requested():
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if state.is_world_process_zero and folder.is_dir():
                _sync(folder)
                (folder / WHOLE).touch()
                _sync_entry(folder)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if stop_requested() and state.global_step < state.max_steps:
                interrupted()

    return TrainerCallback


def _tell(step: int, total: int | None, metrics: dict[str, float], now: float) -> None:
    target = os.environ.get("OVERNIGHT_PROGRESS_FILE")
    if not target:
        return
    began, first = _began.setdefault("at", now), _began.setdefault("step", float(step))
    eta_s = (now - began) / (step - first) * (total - step) if total and step > first else None
    told = {"fence": int(os.environ.get("OVERNIGHT_FENCE", "0")), "phase": "running", "step": step, "total": total or 0}
    draft = Path(f"{target}.{os.getpid()}.tmp")
    draft.write_text(json.dumps({**told, "eta_s": eta_s, "metrics": metrics, "at": now}))
    draft.replace(target)


def _saved(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sync(folder: Path) -> None:
    """Everything below the folder is on disk when this returns."""
    for path in [*folder.rglob("*"), folder]:
        _sync_entry(path)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _on_sigterm(number: int, frame: Any) -> None:
    global _stop
    _stop = True
