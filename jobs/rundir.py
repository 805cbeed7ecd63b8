"""The run folder: everything that one job read and wrote. The only place that knows a file's path in it.

spec.json          what to do: document, resolved paths, attempt, fence       (worker)
state.json         the job's record as last known                             (worker)
log.txt            what the job printed                                       (child)
progress.json      phase, step, total, time                                   (child)
metrics.jsonl      one line per logging step                                  (child)
environment.json   versions, GPU, driver, git commit                          (child)
checkpoints/       step-000200/, sealed                                       (child)
code/              the working folder that came along, for a command          (child)
output/            results                                                    (child)
result.json        how the attempt ended, in the child's words                (child)
exit.json          how the child's process ended, in its keeper's words       (worker)
preview.json       first rows as the model sees them, lengths, what is cut    (child)
stacks.txt         stack of every thread, when it hung; stacks-1.txt and on   (child)
                   are those of the other processes, where it has several
gpu.json           what its slots did at that moment                          (worker)
preflight.json     what the preflight measured, and an answer of the model    (child)
exports.json       what each export was made of                               (child)
trackers.json      the run's names in trackers elsewhere                      (child)
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunDir:
    """Paths of one job's run folder."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks.txt"

    def rank_stacks(self, rank: int) -> Path:
        return self.path / f"stacks-{rank}.txt" if rank else self.stacks

    @property
    def rank_results(self) -> Path:
        """How each process of an attempt on several GPUs ended; only while it runs."""
        return self.path / ".ranks"

    def rank_result(self, rank: int) -> Path:
        return self.rank_results / f"{rank}.json"

    @property
    def preview(self) -> Path:
        return self.path / "preview.json"

    @property
    def gpu(self) -> Path:
        return self.path / "gpu.json"

    @property
    def adapter(self) -> Path:
        """Where a fine-tune leaves its adapter."""
        return self.output / "adapter"

    @property
    def model(self) -> Path:
        """Where a full fine-tune leaves its model."""
        return self.output / "model"

    @property
    def merged(self) -> Path:
        """Where an export leaves a model with its adapter in it."""
        return self.output / "merged"

    @property
    def gguf(self) -> Path:
        """Where an export leaves a model as one file."""
        return self.output / "model-Q8_0.gguf"

    @property
    def exports(self) -> Path:
        return self.path / "exports.json"

    @property
    def tensorboard(self) -> Path:
        """Where the metrics are as TensorBoard reads them."""
        return self.output / "tensorboard"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers.json"

    @property
    def generations(self) -> Path:
        """Where a generation leaves its rows."""
        return self.output / "generations.jsonl"

    @property
    def rows(self) -> Path:
        """Where an evaluation leaves what it measured, row by row."""
        return self.output / "rows.jsonl"

    @property
    def results(self) -> Path:
        """Where an evaluation leaves its metrics, its worst rows and the tasks' report."""
        return self.output / "results.json"

    @property
    def cells(self) -> Path:
        """Where a benchmark leaves the row of each cell."""
        return self.output / "cells.jsonl"

    @property
    def table(self) -> Path:
        """The same rows as a page for people."""
        return self.output / "table.md"

    @property
    def preflight(self) -> Path:
        return self.path / "preflight.json"

    @property
    def scratch(self) -> Path:
        """Where a preflight writes what the job itself would leave; it goes when that run has ended."""
        return self.path / ".preflight"

    @property
    def aside(self) -> "RunDir":
        """The same folder as a preflight sees it."""
        return PreflightDir(self.path)

    def create(self) -> None:
        """Make the folder and those inside it; harmless when they are there."""
        for folder in (self.path, self.checkpoints, self.output):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class PreflightDir(RunDir):
    """A run folder of which checkpoints, curves and results go aside, so that the job itself begins from nothing."""

    @property
    def metrics(self) -> Path:
        return self.scratch / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.scratch / "checkpoints"

    @property
    def output(self) -> Path:
        return self.scratch / "output"


def run_dir(runs: Path, job_id: str) -> RunDir:
    """The run folder of a job below the folder of all runs."""
    if not job_id.isdigit():
        raise ValueError(f"{job_id!r} is not a job id")
    return RunDir(runs / job_id)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Readers see the old file or the new one, never half of one. `durable`: it survives a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w") as file:
        json.dump(value, file, indent=2, allow_nan=False, default=str)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """The same with a text; it survives no power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(text)
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object; None when it is not there or not whole."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def append_json_line(path: Path, value: object) -> None:
    """Add one line in one write."""
    line = json.dumps(value, allow_nan=False, default=str) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line's object; a torn last line is left out."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file with only the lines that `keep` wants; a torn last line goes, too."""
    if not path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w") as file:
        for value in read_json_lines(path):
            if keep(value):
                file.write(json.dumps(value, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_files(*paths: Path) -> None:
    """Make those of these files that are there survive a power cut."""
    for path in paths:
        if path.exists():
            sync_folder(path)  # fsync(2) takes a file's descriptor as well


def sync_folder(path: Path) -> None:
    """Make renames in this folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
