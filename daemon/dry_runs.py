"""The memory of a fine-tune by a dry run on fake tensors: a short process with limits (jobs.dry_run), one at a time."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from daemon.fit import model_folder
from jobs.data import DataReport
from jobs.estimate import Part, longest_batch, of_step
from jobs.known_models import config_of
from jobs.model_facts import CONFIG, NoFacts, read_config
from jobs.spec import FinetuneSpec, dump

#: It loads torch and PEFT, and steps through every layer: ten seconds on an idle machine.
WALL_S = 180.0
#: Fields of the document that the step depends on.
TELLING = ("method", "pure_bf16", "dtype", "gradient_checkpointing", "gradient_accumulation_steps", "lora", "per_device_train_batch_size", "max_length")  # fmt: skip
ENVIRONMENT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")

_turn = threading.Lock()


class NoDryRun(ValueError):
    """Why there is no dry run of this document, in words."""


def dry_parts(spec: FinetuneSpec, paths: Mapping[str, str], data: DataReport | None) -> dict[Part, int]:
    """What the job needs on a GPU, by part. Raises NoDryRun."""
    document = dump(spec)
    document |= longest_batch(document, data)
    if spec.gpus > 1:
        raise NoDryRun("a dry run steps through what one GPU does alone; ask with gpus = 1, or without a dry run")
    if spec.objective != "sft":
        raise NoDryRun(f"a dry run steps through objective sft only, and this is {spec.objective}")
    step = _step(json.dumps({"config": _config(spec.model, paths), "spec": {name: document[name] for name in TELLING}}))
    return of_step(document, step)


def _config(name: str, paths: Mapping[str, str]) -> Mapping[str, Any]:
    folder = model_folder(name, paths)
    if folder is None:
        known = config_of(paths.get("model") or name)
        if known is None:
            raise NoDryRun("its model is still on the hub")
        return known
    try:
        return read_config(Path(folder))
    except NoFacts as error:
        raise NoDryRun(str(error)) from None


@lru_cache(maxsize=64)
def _step(request: str) -> Mapping[str, int]:
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    # the file system of the rig and its GPUs are nobody's business here
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "jobs.dry_run"]
    try:
        with _turn:
            done = subprocess.run(argv, input=request.encode(), capture_output=True, env=environment, timeout=WALL_S, check=True)  # fmt: skip
        answer: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise NoDryRun(f"it took longer than {WALL_S:.0f} s") from None
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        raise NoDryRun(f"it did not succeed: {said[-1][:200] if said else 'it was ended'}") from None
    if "problem" in answer:
        raise NoDryRun(f"its {CONFIG} cannot be stepped through: {answer['problem']}")
    return answer
