"""Causes told from what really happened: the kernel's own kill for memory, a disk that is really full, a hub that is not there."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import ENVIRONMENT, at_step, ended, log, run_folder, start
from until import until

from jobs.rundir import RunDir, read_json

EATS_MEMORY = "keep = []\nwhile True: keep.append(bytearray(b'x' * (8 << 20)))"


def told(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group with little memory; what enters it is killed by the kernel when it wants more."""
    groups = Path("/proc/self/cgroup").read_text()
    if ":memory:" in groups:
        parent = Path("/sys/fs/cgroup/memory") / groups.partition(":memory:")[2].partition("\n")[0].strip("/")
        limit = "memory.limit_in_bytes"
    else:
        parent = Path("/sys/fs/cgroup") / groups.partition("0::")[2].partition("\n")[0].strip("/")
        limit = "memory.max"
    group = parent / f"overnight-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(160 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group of our own can be made here ({error.strerror})")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_the_kernels_kill_for_memory_is_told_from_its_own_record(tmp_path: Path, small_memory: Path) -> None:
    folder = run_folder(tmp_path / "run", {"kind": "command", "argv": [sys.executable, "-c", EATS_MEMORY]}, {})
    enter = lambda: (small_memory / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
    argv = [sys.executable, "-m", "jobs", str(folder.path)]
    done = subprocess.run(argv, preexec_fn=enter, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert told(folder)["cause"] == "oom_host" and "memory ran out" in told(folder)["message"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here (root)")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_under_a_training_is_told_and_the_training_goes_on_with_space(
    small_disk: Path, tiny_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows"
    data.write_text("".join(json.dumps({"prompt": f"Bolt {n}:", "completion": " shelf"}) + "\n" for n in range(16)))
    document = {"kind": "finetune", "model": "tiny", "data": "rows", "max_steps": 30, "max_length": 32, "save_steps": 3}
    places = {"model": tiny_model, "data": data}
    folder = run_folder(small_disk / "run", {**document, "lora": {"r": 4}}, places)
    process = start(folder)
    at_step(folder, process, 4)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65_536)
    assert ended(process) == 1, log(folder)
    # without space for its words the run's keeper tells the same from the disk (daemon.settle)
    assert told(folder).get("cause", "disk_full") == "disk_full", log(folder)
    ballast.unlink()
    again = run_folder(small_disk / "run", {**document, "lora": {"r": 4}}, places, resume=True, attempt=2)
    assert ended(start(again)) == 0, log(again)
    assert told(again)["metrics"]["resumed_from_step"] >= 3


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_tried_again_later(tmp_path: Path) -> None:
    data = tmp_path / "rows"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    document = {"kind": "finetune", "model": "someone/something", "data": "rows"}
    folder = run_folder(tmp_path / "run", document, {"data": data})
    away = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hub")}
    # its library waits longer before each of its own tries; nobody is there to wait for
    hasty = "import sys, time; from pathlib import Path; time.sleep = lambda _: None; from jobs.__main__ import main; "
    argv = [sys.executable, "-c", f"{hasty}sys.exit(main(Path({str(folder.path)!r})))"]
    done = subprocess.run(argv, env={**os.environ, **ENVIRONMENT, **away}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert told(folder)["cause"] == "fetch", done.stderr[-3000:]
