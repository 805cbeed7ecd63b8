"""What an attempt ran on and with: the content of environment.json. Never a secret's value."""

import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jobs.run import Run
from jobs.rundir import write_json

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
)
#: Variables that change what a job computes. Nothing else of the environment is written down.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "OMP_NUM_THREADS",
    "OVERNIGHT_CPU_THREADS",
    "OVERNIGHT_GPU_UUID",
    "WORLD_SIZE",
    "HF_HUB_OFFLINE",
    "PYTORCH_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "NCCL_P2P_DISABLE",
)
#: Fields whose content decides what a job computes.
CONTENT = ("model", "adapter", "data", "eval_data", "chat_template", "workdir", "task_path")
INPUT_NAME = re.compile(r"sha256:([0-9a-f]{64})")
GIT_TIMEOUT_S = 5.0
#: Of a folder of tasks: more is not read whole.
MOST_FILES, LARGE_BYTES = 2_000, 32 << 20
MAX_DIFF_BYTES = 2**20


def set_defaults() -> None:
    """What the libraries must find before they are imported, where the worker has not set it: no network, no reports home."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says in every job's log which kernels it would fetch


def record(run: Run, code: Path | None = None) -> None:
    """Leave environment.json in the run folder. Call it when what the job needs is imported. `code`: where a command runs."""
    write_json(run.folder.environment, describe(run, code), durable=False)


def look_around() -> None:
    """Find out what never changes on this machine, before attempts are forked: it takes longer than to start one."""
    platform.platform()
    cpu_model()


def describe(run: Run, code: Path | None = None) -> dict[str, Any]:
    """Versions, machine, and for a command the state of the code that it runs in."""
    facts: dict[str, Any] = {
        "attempt": run.order.attempt,
        **comparable(run.order.spec, run.order.paths),
        "executable": sys.executable,
        "machine": platform.node(),
        "cpu": {"model": cpu_model(), "threads": os.cpu_count()},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if run.order.spec["kind"] != "command":
        facts["gpu"] = _gpu()
    if code is not None and "cwd" in run.order.paths:
        facts["git"] = git(code)
    return facts


def comparable(spec: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """What a later run can be held against without loading torch (jobs.repeat)."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "inputs": contents(spec, paths),
    }
    # a command brings its own packages, whatever the process that it was forked from has loaded
    if spec["kind"] != "command":
        facts["packages"] = {name: found for name in PACKAGES if (found := _version(name))}
    return facts


def contents(spec: Mapping[str, Any], paths: Mapping[str, str], fields: Collection[str] = CONTENT) -> dict[str, str]:
    """What tells one content of these fields from another, for those that can be read."""
    return {name: found for name in fields if name in paths and (found := _content(spec, name, paths[name]))}


def _content(spec: Mapping[str, Any], field: str, path: str) -> str | None:
    """SHA-256 of a file, of an adapter, or of a model's configuration with the sizes of its weights; None when it cannot be read."""
    if named := INPUT_NAME.fullmatch(str(spec.get(field) or "")):
        return named[1]
    place = Path(path)
    try:
        if place.is_file():
            with place.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if field == "task_path":
            return _all_within(place)
        digest = hashlib.sha256()
        for file_path in sorted(place.iterdir()):
            if file_path.suffix == ".json":
                digest.update(file_path.name.encode() + b"\0" + file_path.read_bytes())
            elif file_path.suffix == ".safetensors":
                digest.update(f"{file_path.name}\0{file_path.stat().st_size}".encode())
                if field == "adapter":  # small, and made anew under the same name by a job that is retried
                    digest.update(file_path.read_bytes())
        return digest.hexdigest()
    except OSError:
        return None


def _all_within(folder: Path) -> str:
    """SHA-256 of a folder of tasks: definitions, code and data. Of what is large only size and time of change; so of all that is
    beyond MOST_FILES."""
    digest = hashlib.sha256()
    for number, path in enumerate(
        file for file in sorted(folder.rglob("*")) if "__pycache__" not in file.parts and file.is_file()
    ):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{facts.st_size}\0".encode(errors="surrogateescape"))
        if number < MOST_FILES and facts.st_size <= LARGE_BYTES:
            digest.update(path.read_bytes())
        else:
            digest.update(str(facts.st_mtime_ns).encode())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    from importlib.metadata import (
        PackageNotFoundError,
        version,
    )  # a third of a command's start, which has no use for it

    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> dict[str, Any]:
    """What torch sees."""
    import torch

    facts: dict[str, Any] = {"torch_cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["driver"] = driver()
        facts["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        facts["memory_bytes"] = [
            torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())
        ]
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def driver() -> str | None:
    """The version of NVIDIA's kernel module that is loaded; None when none is."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def git(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and local changes; None when the folder is not in a git work tree."""
    commit = _git_says(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git_says(folder, "diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    whole = diff.encode()
    return {
        "commit": commit,
        "branch": _git_says(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "diff": whole[:MAX_DIFF_BYTES].decode(errors="ignore"),
        "diff_cut": len(whole) > MAX_DIFF_BYTES,
    }


def _git_says(folder: Path, *words: str) -> str | None:
    argv = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.pager=cat", *words]
    try:
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
