"""Whether this rig can take a job: everything about a document that can be known before it is accepted.

`jobs.spec` has checked the document by itself; here it meets the rig: GPUs, models, files, programs, secrets, other jobs.
"""

import os
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from daemon.places import Places, Refused
from daemon.settings import Settings
from jobs import data
from jobs.model import Job, State, dependency
from jobs.spec import (  # fmt: skip
    HUB_ID,
    RECIPES,
    CommandSpec,
    FieldError,
    FinetuneSpec,
    GenerateSpec,
    InvalidSpec,
    Spec,
    dump,
    parse,
)


def admit(
    spec: Spec,
    settings: Settings,
    *,
    slots: int,
    known_jobs: Callable[[Sequence[str]], Mapping[str, Job]],
    uploaded_elsewhere: Callable[[str], bool] = lambda digest: False,
) -> None:
    """Return when the rig can take the job. Raises InvalidSpec with every wrong field.

    `slots`: how many GPUs (or CPU slots) the largest rig has; 0 before any has said so.
    """
    parents = [dependency(text) for text in spec.dependencies]
    known = dict(known_jobs([job_id for job_id, _ in parents])) if parents else {}

    def find(job_id: str) -> Job | None:
        # a parent's own parents are looked up one by one: chains are short
        return known.get(job_id) or known_jobs([job_id]).get(job_id)

    places = Places(settings, settings.runs, find, uploaded_elsewhere)
    paths, errors = places.locate(dump(spec))
    checks: list[tuple[str, Callable[[], None]]] = [
        ("gpus", partial(_gpus, spec, slots)),
        ("after", partial(_after, spec.after, known)),
    ]
    if isinstance(spec, CommandSpec):
        checks += [
            ("argv", partial(_program, spec, paths)),
            ("secrets", partial(_secrets, spec.secrets, settings.secrets_file)),
        ]
    else:
        checks += [("trust_remote_code", partial(_remote_code, spec, settings, places))]
        checks += [(name, partial(_rows, spec.kind, paths[name])) for name in ("data", "eval_data") if name in paths]
    for name, check in checks:
        try:
            check()
        except Refused as refusal:
            errors.append(FieldError(name, str(refusal)))
    if errors:
        raise InvalidSpec(errors)


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


def read_secrets(path: Path) -> dict[str, str]:
    """The rig's secrets by name. Raises Refused when the file is readable by others or not a table of texts."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise Refused(f"{path.name} on the rig can be read by others: run `chmod 600` on it")
            table = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # without the parser's words: they would quote what stands there
        raise Refused(f'{path.name} on the rig is not valid TOML with lines like NAME = "value"') from None
    if wrong := [name for name, value in table.items() if not isinstance(value, str)]:
        raise Refused(f"{path.name} on the rig: {wrong[0]} is not a text in quotes")
    return table


def _gpus(spec: Spec, there: int) -> None:
    if there and spec.gpus > there:
        raise Refused(f"this rig has {there} GPU{'s' if there > 1 else ''}, the job asks for {spec.gpus}")
    if spec.gpus > 1 and spec.kind in RECIPES:
        raise Refused(f"a {spec.kind} job uses one GPU; several are for commands, torchrun for example")


def _after(dependencies: Sequence[str], known: Mapping[str, Job]) -> None:
    parents = [dependency(text) for text in dependencies]
    if missing := [job_id for job_id, _ in parents if job_id not in known]:
        raise Refused(f"there is no job {' and no job '.join(missing)}")
    for job_id, condition in parents:
        job = known[job_id]
        if job.state.final and not condition.met_by(job.state):
            first = "retry it first" if job.state is not State.SUCCEEDED else "it waits for its failure"
            raise Refused(f"job {job.id} is {job.state}, so this one could never start: {first}")


def _remote_code(spec: FinetuneSpec | GenerateSpec, settings: Settings, places: Places) -> None:
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


def _rows(kind: str, path: str) -> None:
    try:
        facts = Path(path).stat()
    except FileNotFoundError:
        return  # another job's result that is still to come
    wrong = _wrong_rows(kind, path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if wrong:
        raise Refused(wrong)


@lru_cache(maxsize=256)
def _wrong_rows(kind: str, path: str, _inode: int, _size_bytes: int, _changed_ns: int) -> str | None:
    """What is wrong with a file's rows; read once, though a sweep names it a hundred times."""
    check = data.check_training if kind == "finetune" else data.check_prompts
    try:
        check(Path(path))
    except data.InvalidData as error:
        return str(error)
    except OSError as error:
        return f"cannot be read by the rig ({error.strerror})"
    return None


def _program(spec: CommandSpec, paths: Mapping[str, str]) -> None:
    program, folder = spec.argv[0], paths.get("cwd")
    if spec.cwd and not folder:
        return  # told at `cwd`
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


def _secrets(names: Sequence[str], path: Path) -> None:
    if names and (missing := sorted(set(names) - set(read_secrets(path)))):
        raise Refused(f"the rig has no secret {missing[0]}: its owner adds it to {path.name} in the rig's home")
