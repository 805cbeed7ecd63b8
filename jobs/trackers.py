"""Trackers elsewhere: wandb, trackio, MLflow, through the trainers' own callbacks, when the rig's owner has set them up.

They are guests: one that cannot be reached, or breaks, is told in the log and dropped, and the training goes on. metrics.jsonl
stays the truth. An attempt that resumes goes on with the same run.
"""

import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

from jobs.log import say
from jobs.run import Run
from jobs.rundir import read_json, write_json

Tracker = Literal["wandb", "trackio", "mlflow"]
#: What the names of each one's environment variables begin with.
PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "wandb": ("WANDB_",), "trackio": ("TRACKIO_",), "mlflow": ("MLFLOW_", "HF_MLFLOW_"),
})  # fmt: skip
PROJECT = "overnight"
#: Variables that hold a key, and not a setting.
SECRETIVE = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
#: Who somebody is, in an address.
WHO = re.compile(r"(?<=://)[^\s/@]+@")


def join(trainer: Any, run: Run) -> None:
    """Let a trainer tell the trackers that its orders name. Nobody is told when there are none."""
    names = run.order.rig.get("trackers") or ()
    if not names or not run.ranks.is_first:
        return
    _name_the_run(trainer, run)
    for name in names:
        if importlib.util.find_spec(name) is None:
            say(f"Tracker {name} is not told: its package is not installed on the rig (pip install {name}).")
            continue
        try:
            callback = _CALLBACKS[name](run)
        except Exception as error:  # a package that does not load, or is too old
            say(f"Tracker {name} is not told: {_words(error)}")
            continue
        trainer.add_callback(_guest(name, callback, run))
        say(f"Tracker {name} is told.")


def _name_the_run(trainer: Any, run: Run) -> None:
    job = run.order
    trainer.args.run_name = f"{job.spec['name'] or str(job.spec['model']).rpartition('/')[2]} (job {job.job_id})"
    trainer.args.project = os.environ.get("TRACKIO_PROJECT") or PROJECT
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", PROJECT)


def _wandb(run: Run) -> Any:
    from transformers.integrations import WandbCallback

    os.environ.setdefault("WANDB_DIR", str(run.folder.output))
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"] = _run_id(run, "wandb"), "allow"
    return WandbCallback()


def _trackio(run: Run) -> Any:
    from transformers.integrations import TrackioCallback

    os.environ.setdefault("TRACKIO_DIR", str(run.folder.output / "trackio"))
    return TrackioCallback()  # it goes on with the run of this project and name


def _mlflow(run: Run) -> Any:
    from transformers.integrations import MLflowCallback

    if known := (read_json(run.folder.trackers) or {}).get("mlflow"):
        os.environ["MLFLOW_RUN_ID"] = known
    return MLflowCallback()


_CALLBACKS: Mapping[str, Callable[[Run], Any]] = {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}


def _run_id(run: Run, tracker: str) -> str:
    """The same in every attempt; job numbers alone come again on another rig."""
    known = (read_json(run.folder.trackers) or {}).get(tracker)
    return str(known) if known else _remember(run, tracker, f"job-{run.order.job_id}-{uuid.uuid4().hex[:8]}")


def _remember(run: Run, tracker: str, run_id: str) -> str:
    write_json(run.folder.trackers, {**(read_json(run.folder.trackers) or {}), tracker: run_id})
    return run_id


def _guest(name: str, callback: Any, run: Run) -> Any:
    """The callback behind a door: what breaks in it ends it, and not the training."""
    from transformers import TrainerCallback

    class Guest(TrainerCallback):  # type: ignore[misc]
        gone = False

    def pass_on(event: str) -> Callable[..., None]:
        def told(self: Any, args: Any, state: Any, control: Any, **facts: Any) -> None:
            if self.gone:
                return
            run.beat()
            try:
                getattr(callback, event)(args, state, control, **facts)
                if name == "mlflow" and event == "on_train_begin":
                    _remember(run, name, callback._ml_flow.active_run().info.run_id)
            except Exception as error:  # a network that is down, a key that is wrong, a disk that is full
                self.gone = True
                say(f"Tracker {name} is told no more: {_words(error)}")

        return told

    for event in ("on_train_begin", "on_log", "on_train_end"):
        setattr(Guest, event, pass_on(event))
    return Guest()


def _words(error: Exception) -> str:
    """Its first line, without the keys that the tracker was given: everybody who may see the job sees its log."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for name, value in os.environ.items():
        if value and SECRETIVE.search(name) and name.startswith(tuple(chain.from_iterable(PREFIXES.values()))):
            line = line.replace(value, "…")
    return WHO.sub("…@", line)[:200]
