"""Tasks of EleutherAI's lm-evaluation-harness, run on a model that is loaded already. The only module that knows lm-eval.

Each task's result is kept when it is done, and within a task every answer: an attempt goes on where the one before stopped. Tasks in a
folder of the owner's own are found by its YAML files; they may name data beside them, and bring Python code as lm-eval allows.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import environment, snapshot
from jobs.log import say
from jobs.metrics import is_finite
from jobs.model import Cause
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import read_json, write_json

#: What its results depend on beside the tasks themselves.
SETTINGS = ("model", "adapter", "dtype", "seed", "num_fewshot", "limit", "apply_chat_template", "chat_template", "workdir", "task_path")  # fmt: skip
#: Fields whose files they depend on: a folder of the rig may be another one in the next attempt.
OF_FILES = ("model", "adapter", "chat_template", "workdir", "task_path")
INSTALL = "pip install 'overnight[eval]'"


@dataclass(frozen=True)
class Found:
    """What the tasks told: metrics as `task/metric` with standard errors, and lm-eval's own words for results.json."""

    metrics: Mapping[str, Any]
    #: Of what was asked: versions, examples before each question, the questions themselves.
    sha256: str
    report: Mapping[str, Any]


def evaluate(run: Run, model: Any, tokenizer: Any) -> Found:
    """Every task of the job's document. Raises JobError(bad_input) for one that is not there or cannot be loaded."""
    try:
        import lm_eval
    except ImportError as error:
        raise JobError(Cause.BAD_INPUT, f"tasks need the package lm-eval on the rig: {error}.", f"{INSTALL} there.") from error  # fmt: skip
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = _own_tasks(run)
    settings = {name: run.order.spec[name] for name in SETTINGS} | {"lm_eval": lm_eval.__version__}
    settings["content"] = environment.contents(run.order.spec, run.order.paths, OF_FILES)
    key = sha256_of_words(json.dumps(settings, sort_keys=True))[:16]
    done_path = run.folder.checkpoints / f"tasks-{key}.json"
    done: dict[str, Any] = (read_json(done_path) or {}) if run.order.resume else {}
    with _inside(folder):
        manager = TaskManager(include_path=str(folder) if folder else None)
        names = _named(run.order.spec["tasks"], manager)
        say(
            f"lm-eval {lm_eval.__version__}: {len(names)} task(s), {sum(name in done for name in names)} of them done before."
        )
        for at, name in enumerate(names):
            run.phase("evaluating", step=at, total=len(names))
            if name not in done:
                cache = run.folder.checkpoints / f"answers-{key}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
                done[name] = _one(run, name, _watched(run, model, tokenizer), manager, str(cache))
                write_json(done_path, done)
            say(f"{name}: {_words(_metrics(name, done[name]))}")
    metrics = {metric: value for name in names for metric, value in _metrics(name, done[name]).items()}
    basis = {name: done[name]["basis"] for name in names}
    digest = sha256_of_words(json.dumps([lm_eval.__version__, basis], sort_keys=True))
    return Found(metrics, digest, {"lm_eval": lm_eval.__version__, "tasks": done})


def sha256_of_words(text: object) -> str:
    """Of a text, or of what else a template may be."""
    return hashlib.sha256(str(text).encode()).hexdigest()


def _own_tasks(run: Run) -> Path | None:
    """The folder with the owner's tasks, unpacked where it came along."""
    spec, paths = run.order.spec, run.order.paths
    if "workdir" not in paths:
        return Path(paths["task_path"]) if "task_path" in paths else None
    try:
        snapshot.unpack(Path(paths["workdir"]), run.folder.code, name=spec["workdir"])
    except snapshot.BadSnapshot as error:
        raise JobError(Cause.BAD_INPUT, f"workdir: {error}.") from error
    return run.folder.code / (spec["task_path"] or ".")


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """Names of data files in a task count from its folder."""
    before = Path.cwd()
    try:
        os.chdir(folder or before)
        yield
    except FileNotFoundError as error:
        raise JobError(Cause.BAD_INPUT, f"task_path: {error}.") from error
    finally:
        os.chdir(before)


def _named(wanted: tuple[str, ...], manager: Any) -> list[str]:
    """The tasks that these names and patterns mean, each once. Raises JobError for one that means nothing."""
    found: dict[str, None] = {}
    for name in wanted:
        matches = manager.match_tasks([name])
        if not matches:
            hint = "`lm-eval ls tasks` lists its own; those in a folder of yours have `task:` in a YAML file."
            raise JobError(Cause.BAD_INPUT, f"tasks: lm-eval knows no {name!r}.", hint)
        found |= dict.fromkeys(matches)
    return list(found)


def _one(run: Run, name: str, model: Any, manager: Any, cache: str) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    spec = run.order.spec
    try:
        made = simple_evaluate(
            model=model,
            tasks=[name],
            task_manager=manager,
            num_fewshot=spec["num_fewshot"],
            limit=spec["limit"],
            batch_size=spec["batch_size"],
            apply_chat_template=spec["apply_chat_template"],
            use_cache=cache,
            random_seed=spec["seed"],
            numpy_random_seed=spec["seed"],
            torch_random_seed=spec["seed"],
            fewshot_random_seed=spec["seed"],
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError, ImportError) as error:
        hint = "Its data must be on the rig (in the cache of `datasets`, or beside its YAML), or the rig must be allowed to download it."  # fmt: skip
        raise JobError(Cause.BAD_INPUT, f"tasks: {name} cannot be run: {str(error)[:300]}", hint) from error
    if made is None:
        raise JobError(Cause.BAD_INPUT, f"tasks: {name} gave no result.")
    return {
        "results": {**made.get("results", {}), **made.get("groups", {})},
        "basis": {part: made.get(part) for part in ("versions", "n-shot", "n-samples", "task_hashes")},
    }


def _watched(run: Run, model: Any, tokenizer: Any) -> Any:
    """The model as lm-eval wants it, which beats for the watchdog and sees a stop at every batch."""
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):  # type: ignore[misc]
        # no bars drawn for a terminal
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def _model_call(self, *arguments: Any, **named: Any) -> Any:
            _beat(run)
            return super()._model_call(*arguments, **named)

        def _model_generate(self, *arguments: Any, **named: Any) -> Any:
            _beat(run)
            return super()._model_generate(*arguments, **named)

    return Watched(pretrained=model, tokenizer=tokenizer, batch_size=run.order.spec["batch_size"])


def _beat(run: Run) -> None:
    if run.stop_requested:
        raise Interrupted
    run.beat()


def _metrics(name: str, done: Mapping[str, Any]) -> dict[str, Any]:
    """`arc_easy/acc` and `arc_easy/acc_stderr`: of the task or group that was asked for, of its tasks where it has no numbers."""
    results: Mapping[str, Mapping[str, Any]] = done["results"]
    own = _numbers(name, results.get(name, {}))
    return own or {metric: value for task, told in results.items() for metric, value in _numbers(task, told).items()}


def _numbers(task: str, told: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's `acc,none` is `task/acc`; `exact_match,strict-match` is `task/strict-match/exact_match`."""
    found: dict[str, float] = {}
    for label, value in told.items():
        metric, comma, way = label.partition(",")
        if comma and is_finite(value):
            found["/".join((task, metric) if way == "none" else (task, way, metric))] = round(float(value), 6)
    return found


def _words(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in metrics.items()) or "no numbers"
