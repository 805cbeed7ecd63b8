"""Whether this rig can take a job: everything about a document that can be known before it is accepted.

`jobs.spec` has checked the document by itself; here it meets the rig: GPUs, models, files, programs, secrets, other jobs.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from daemon import known_files
from daemon.fit import Learned, gather, judge, refusal
from daemon.for_recipes import check_export
from daemon.places import Places, Refused
from daemon.rig_secrets import read_secrets
from daemon.settings import Settings
from jobs import interpreter
from jobs.data import DataReport, InvalidData, Reading
from jobs.estimate import UNKNOWN, Outlook
from jobs.light_tokenizer import read_template
from jobs.model import Job, State, dependency
from jobs.spec import (  # fmt: skip
    HUB_ID,
    JOB_REFERENCE,
    RECIPES,
    CommandSpec,
    EvaluateSpec,
    ExportSpec,
    FieldError,
    FinetuneSpec,
    GenerateSpec,
    InvalidSpec,
    Spec,
    WithModel,
    dump,
    parse,
)


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A document that the rig can take, and what was learned of it on the way."""

    spec: Spec
    outlook: Outlook = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Where a document's names lead, what its data holds, and everything that is wrong with it."""

    paths: Mapping[str, str]
    reports: Mapping[str, DataReport]
    errors: Sequence[FieldError]


def admit(
    spec: Spec,
    settings: Settings,
    *,
    slots: int,
    known_jobs: Callable[[Sequence[str]], Mapping[str, Job]],
    uploaded_elsewhere: Callable[[str], bool] = lambda digest: False,
    memories: Sequence[Sequence[int]] = (),
    learned: Learned = lambda spec: None,
) -> Admitted:
    """The document with what is known of it, when the rig can take the job. Raises InvalidSpec with every wrong field.

    `slots`: how many GPUs (or CPU slots) the largest rig has; 0 before any has said so. `memories`: bytes of each rig's
    slots. `learned`: what earlier runs of the same shape needed; it counts more than an estimate, less than a declaration.
    """
    seen = examine(spec, settings, slots=slots, known_jobs=known_jobs, uploaded_elsewhere=uploaded_elsewhere)
    if seen.errors:
        raise InvalidSpec(list(seen.errors))
    facts, unknown = gather(spec, seen.paths, seen.reports)
    fit = judge(spec, facts, unknown, memories=memories, learned=learned)
    if wrong := refusal(spec, fit) or disk_refusal(fit.estimate.disk_bytes, settings):
        raise InvalidSpec([wrong])
    return Admitted(spec=spec, outlook=fit.outlook)


def glance(
    spec: Spec,
    settings: Settings,
    *,
    known_jobs: Callable[[Sequence[str]], Mapping[str, Job]],
    uploaded_elsewhere: Callable[[str], bool] = lambda digest: False,
    learned: Learned = lambda spec: None,
) -> Admitted:
    """The document with what can be known of it, whether or not a rig can take it."""
    seen = examine(spec, settings, slots=0, known_jobs=known_jobs, uploaded_elsewhere=uploaded_elsewhere)
    facts, unknown = gather(spec, seen.paths, seen.reports)
    return Admitted(spec=spec, outlook=judge(spec, facts, unknown, learned=learned).outlook)


def examine(
    spec: Spec,
    settings: Settings,
    *,
    slots: int,
    known_jobs: Callable[[Sequence[str]], Mapping[str, Job]],
    uploaded_elsewhere: Callable[[str], bool] = lambda digest: False,
) -> Examined:
    """Everything about a document but whether it fits."""
    parents = [dependency(text) for text in spec.dependencies]
    known = dict(known_jobs([job_id for job_id, _ in parents])) if parents else {}

    def find(job_id: str) -> Job | None:
        # a parent's own parents are looked up one by one: chains are short
        return known.get(job_id) or known_jobs([job_id]).get(job_id)

    places = Places(settings, settings.runs, find, uploaded_elsewhere)
    paths, errors = places.locate(dump(spec))
    reports: dict[str, DataReport] = {}
    checks: list[tuple[str, Callable[[], None]]] = [
        ("gpus", partial(_gpus, spec, slots)),
        ("after", partial(_after, spec.after, known)),
        ("preflight", partial(_preflight, spec)),
    ]
    if isinstance(spec, CommandSpec):
        checks += [
            ("argv", partial(_program, spec, paths)),
            ("secrets", partial(_secrets, spec.secrets, settings.secrets_file)),
        ]
    else:
        checks += [
            ("trust_remote_code", partial(_remote_code, spec, settings, places)),
            ("chat_template", partial(_template, paths)),
            ("to" if isinstance(spec, ExportSpec) else "export", partial(check_export, spec, paths, settings)),
        ]
        if isinstance(spec, FinetuneSpec) and (asks := spec.needs_bitsandbytes):
            checks.append((asks, partial(_bitsandbytes, spec)))
        if isinstance(spec, EvaluateSpec) and spec.tasks:
            checks.append(("tasks", _lm_eval))
        for name in ("data", "eval_data"):
            if name in paths:
                errors += _row_errors(spec, name, paths, reports)
    for name, check in checks:
        try:
            check()
        except Refused as refused:
            errors.append(FieldError(name, str(refused)))
    return Examined(paths=paths, reports=reports, errors=errors)


def missing_here(
    spec: Mapping[str, Any],
    settings: Settings,
    *,
    find_job: Callable[[str], Job | None],
    uploaded_elsewhere: Callable[[str], bool],
) -> str | None:
    """What an accepted document names that this rig lacks: another rig has accepted it. Reads no file's content."""
    paths, errors = Places(settings, settings.runs, find_job, uploaded_elsewhere).locate(spec)
    if errors:
        return f"{errors[0].field}: {errors[0].message}"
    if spec["kind"] != "command":
        return None
    try:
        command = parse(spec)
        if isinstance(command, CommandSpec):
            _program(command, paths)
            _secrets(command.secrets, settings.secrets_file)
    except Refused as refusal:
        return str(refusal)
    except InvalidSpec:
        return None  # of an older version: the attempt itself will tell
    return None


def _gpus(spec: Spec, there: int) -> None:
    if there and spec.gpus > there:
        raise Refused(f"this rig has {there} GPU{'s' if there > 1 else ''}, the job asks for {spec.gpus}")
    if spec.gpus > 1 and isinstance(spec, GenerateSpec):
        if spec.engine != "vllm":
            raise Refused('a generation uses one GPU; with engine = "vllm" it spreads a model over several')
    elif spec.gpus > 1 and spec.kind in RECIPES and not isinstance(spec, FinetuneSpec):
        raise Refused(f"a {spec.kind} job uses one GPU; several are for fine-tunes and commands")


def _preflight(spec: Spec) -> None:
    if spec.gpus > 1 and getattr(spec, "preflight", False) is True:
        raise Refused("a job on several GPUs has none yet: leave it out")


def _after(dependencies: Sequence[str], known: Mapping[str, Job]) -> None:
    parents = [dependency(text) for text in dependencies]
    if missing := [job_id for job_id, _ in parents if job_id not in known]:
        raise Refused(f"there is no job {' and no job '.join(missing)}")
    for job_id, condition in parents:
        job = known[job_id]
        if job.state.final and not condition.met_by(job.state):
            first = "retry it first" if job.state is not State.SUCCEEDED else "it waits for its failure"
            raise Refused(f"job {job.id} is {job.state}, so this one could never start: {first}")


def _bitsandbytes(spec: FinetuneSpec) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        what = "method qlora" if spec.needs_bitsandbytes == "method" else f"optim {spec.optim}"
        raise Refused(f"{what} needs the package bitsandbytes on the rig: pip install 'overnight[qlora]'")


def _lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise Refused("tasks need the package lm-eval on the rig: pip install 'overnight[eval]'")


def _remote_code(spec: WithModel, settings: Settings, places: Places) -> None:
    if not spec.trust_remote_code:
        return
    try:
        name = places.base_model(spec.model)
    except Refused:
        return  # told at `model`
    if HUB_ID.fullmatch(name) and "@" not in name:
        raise Refused(f"needs a pinned revision: {name}@<commit>, listed in the rig's allow_remote_code")
    if name not in settings.allow_remote_code:
        raise Refused(f"{name} is not listed in the rig's allow_remote_code, so its own code may not run")


def _template(paths: Mapping[str, str]) -> None:
    if (path := paths.get("chat_template")) and Path(path).exists():
        try:
            read_template(Path(path))
        except ValueError as error:
            raise Refused(str(error)) from None


def _row_errors(
    spec: Spec, name: str, paths: Mapping[str, str], reports: dict[str, DataReport]
) -> Iterator[FieldError]:
    """What is wrong with the rows of this field, line by line; their report is kept when nothing is."""
    if spec.kind in ("finetune", "evaluate") and (match := JOB_REFERENCE.fullmatch(str(getattr(spec, name)))):
        who = "a fine-tune learns from" if spec.kind == "finetune" else "an evaluation reads"
        yield FieldError(
            name,
            f"job {match[1]} writes its answers as `text` beside each prompt, and {who} `completion`, "
            "`messages` or `text` alone: make such a file of generations.jsonl (a command can do it) and name that",
        )
        return
    found = known_files.rows(Path(paths[name]), Reading.of(dump(spec)))
    if isinstance(found, InvalidData):
        yield from (FieldError(name, message, line) for line, message in found.told)
    elif found is not None:
        reports[name] = found


def disk_refusal(needs_bytes: int | None, settings: Settings) -> FieldError | None:
    """Checkpoints that have no room. While the queue is held for a full disk, space must be made anyway: only the disk's size counts."""
    try:
        disk = shutil.disk_usage(settings.home)
    except FileNotFoundError:
        return None
    floor = settings.disk_floor_bytes
    room = disk.free - floor if disk.free >= floor else disk.total - floor
    if needs_bytes is None or room <= 0 or needs_bytes <= room:
        return None
    kept = f"{floor / 1e9:.1f} GB are kept free"
    return FieldError(
        "",
        f"its checkpoints and results need up to {needs_bytes / 1e9:.1f} GB, and the rig's disk has room for {room / 1e9:.1f} GB ({kept}): "
        "delete runs that you no longer need, or learn less (a smaller lora.r)",
    )


def _program(spec: CommandSpec, paths: Mapping[str, str]) -> None:
    program, folder = spec.argv[0], paths.get("cwd")
    if spec.workdir:
        if "workdir" in paths:
            _packed_program(spec, Path(paths["workdir"]))
        return
    if spec.cwd and not folder:
        return  # told at `cwd`
    if program in interpreter.PYTHON_NAMES:
        _python(spec, locked=bool(folder) and (Path(folder or "") / interpreter.LOCK).is_file())
        return
    if "/" not in program:
        if shutil.which(program) is None:
            here = f"; did you mean ./{program}?" if folder and (Path(folder) / program).is_file() else ""
            raise Refused(f"{program!r} is not a command on the rig's PATH{here}")
        return
    if not program.startswith("/") and not folder:
        raise Refused(f"{program!r} is relative: set cwd, or give an absolute path")
    path = Path(folder or "/") / program
    try:
        is_file = path.is_file()
    except OSError:  # too long a name, say
        is_file = False
    if not is_file:
        raise Refused(f"{program!r} is not there{' in ' + folder if folder else ''}")
    if not os.access(path, os.X_OK):
        raise Refused(f"{program!r} is not executable: run `chmod +x` on it, or call its interpreter")


def _packed_program(spec: CommandSpec, archive: Path) -> None:
    """The same, in a folder that came along; one that lies on another rig is checked when it runs."""
    if not archive.is_file():
        return
    names = known_files.packed(archive)
    if isinstance(names, str):
        raise Refused(f"the working folder {names}")
    program, here = spec.argv[0], PurePosixPath(spec.cwd or ".")
    if program in interpreter.PYTHON_NAMES:
        _python(spec, locked=str(here / interpreter.LOCK) in names)
    elif "/" not in program:
        if shutil.which(program) is None:
            hint = f"; did you mean ./{program}?" if str(here / program) in names else ""
            raise Refused(f"{program!r} is not a command on the rig's PATH{hint}")
    elif not program.startswith("/") and str(here / program) not in names:
        raise Refused(f"{program!r} is not in the working folder: is it ignored by git?")


def _python(spec: CommandSpec, *, locked: bool) -> None:
    if interpreter.wants_uv(spec.python, locked=locked) and shutil.which("uv") is None:
        why = "the folder has a uv.lock, and" if locked else "python is uv, and"
        raise Refused(f'{why} uv is not on the rig\'s PATH: install it there, or set python = "rig"')
    if spec.python.startswith("/") and not os.access(spec.python, os.X_OK):
        raise Refused(f"{spec.python!r} is not a Python on the rig")


def _secrets(names: Sequence[str], path: Path) -> None:
    if names and (missing := sorted(set(names) - set(read_secrets(path)))):
        raise Refused(f"the rig has no secret {missing[0]}: its owner adds it to {path.name} in the rig's home")
