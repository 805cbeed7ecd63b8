"""Job documents from files, and their local data sent by content.

Loads pydantic (jobs.spec), so only the command that submits imports this.
"""

import importlib.util
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from api.cli.fields import DocumentError, assignment, change
from api.client import Client, digest_of
from jobs import data, expansion
from jobs.aliases import translate
from jobs.pipeline import linked
from jobs.spec import FILE_FIELDS, INPUT_REFERENCE, FieldError, InvalidSpec, parse
from jobs.stages import check_stages, expand_stages

Json = dict[str, Any]

KINDS_OF_FILE = ".toml, .yaml or .json"


def read(path: Path) -> Json:
    """A job document, `{"jobs": [...]}`, `{"base": {...}, "sweep": {...}}`, or jobs with a sweep, from a file. Raises DocumentError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path} cannot be read: {error}") from None
    value = _plain(_loader(path)(text))
    if not isinstance(value, dict):
        raise DocumentError(f"{path}: a job document is an object with fields, or one with a list `jobs`")
    return value


def is_batch(body: Mapping[str, Any]) -> bool:
    """Whether it goes to /jobs/batch."""
    return "kind" not in body and bool({"jobs", "base", "sweep"} & set(body))


def members(body: Json) -> list[Json]:
    """The documents in a body that can be changed in place: the job, every job, or the base of a sweep."""
    if not is_batch(body):
        return [body]
    found = body["jobs"] if "jobs" in body else [body.get("base")]
    if not isinstance(found, list) or not all(isinstance(job, dict) for job in found):
        raise DocumentError("jobs is a list of job documents, and base is one")
    return found


def in_our_names(body: Json) -> list[str]:
    """Put our names in place of other tools', in each document of the body. What was changed. Raises DocumentError."""
    notes: dict[str, None] = {}
    for number, document in enumerate(members(body)):
        try:
            found, told = translate(document)
        except InvalidSpec as error:
            raise _refused(error, f"jobs.{number}." if "jobs" in body else "") from None
        document.clear()
        document.update(found)
        notes |= dict.fromkeys(told)
    return list(notes)


def assign(document: Json, text: str) -> list[str]:
    """Carry out `FIELD=VALUE`, by whichever tool's name of the field. What was changed. Raises DocumentError."""
    own = {"kind": document["kind"]} if "kind" in document else {}
    try:
        found, notes = translate(own | assignment(text))
    except InvalidSpec as error:
        raise _refused(error, "") from None
    change(document, found)
    return notes


def check(body: Json) -> None:
    """Every error that can be known here. Raises DocumentError; the rest is the rig's to say."""
    if not is_batch(body):
        _check(body, "")
    elif "jobs" in body and "sweep" in body:
        _check_stages(body)
    elif "jobs" in body:
        for number, document in enumerate(_linked(members(body))):
            _check(document, f"jobs.{number}." if len(body["jobs"]) > 1 else "")
    else:
        try:
            expansion.check(body.get("base"), body.get("sweep"))
        except InvalidSpec as error:
            raise _refused(error, "") from None


def count(body: Json, folders: Sequence[Path]) -> int | None:
    """How many jobs a checked body makes; None where only the rig can tell (a sampler that is not installed here)."""
    if not is_batch(body):
        return 1
    if "sweep" not in body:
        return len(members(body))

    def read_csv(name: str) -> str:
        return next(path for folder in folders if (path := folder / name).is_file()).read_text(encoding="utf-8")

    try:
        if "jobs" in body:
            return len(expand_stages(body["jobs"], body["sweep"], read_csv=read_csv).documents)
        return len(expansion.expand(body["base"], body["sweep"], read_csv=read_csv).documents)
    except (InvalidSpec, StopIteration, OSError, UnicodeDecodeError):
        return None


def _check_stages(body: Json) -> None:
    try:
        documents = check_stages(members(body), body["sweep"])
    except InvalidSpec as error:
        raise _refused(error, "") from None
    for place, document in documents.items():
        _check(document, f"jobs.{place}.")


def _linked(documents: Sequence[Json]) -> Sequence[Mapping[str, Any]]:
    """The documents with their names for each other resolved, to be checked; what is sent keeps the names."""
    try:
        return linked(documents)
    except InvalidSpec as error:
        raise _refused(error, "") from None


def with_table(body: Json, table: Path) -> Json:
    """A sweep over the rows of a CSV file: `body` is its base, or a base with the sweep's other words."""
    whole = body if is_batch(body) else {"base": body}
    if "jobs" in whole:
        raise DocumentError("the base of a sweep is one job document, not a list of jobs")
    beside = whole.get("sweep") or {}
    if not isinstance(beside, dict):
        raise DocumentError("sweep is an object with words")
    return {**whole, "sweep": {**beside, "csv": str(table)}}


def check_rows(body: Json, folders: Sequence[Path]) -> dict[str, data.DataReport]:
    """Read the local files as the rig will, so that a broken line is named before anything is sent. Raises DocumentError.

    Returns what they hold, by the content's name (`sha256:...`).
    """
    checked = set()
    reports: dict[str, data.DataReport] = {}
    for document, field, path in local_files(body, folders):
        if field in ("chat_template", "workdir") or (field == "csv" and document is body.get("sweep")):
            continue
        own = document if isinstance(document, dict) and "kind" in document else body.get("base") or {}
        reading = data.Reading.of(own)
        if (reading, path) not in checked and not _needs_pyarrow(path):
            checked.add((reading, path))
            try:
                report = data.check(path, reading)
                reports[f"sha256:{report.sha256}"] = report
            except data.InvalidData as error:
                where = f"{field if isinstance(field, str) else 'data'}: {path.name}"
                raise DocumentError("\n".join(f"{where}, {message}" for _, message in error.told)) from None
    return reports


def _needs_pyarrow(path: Path) -> bool:
    """A file whose reader is not installed: the rig checks it."""
    return importlib.util.find_spec("pyarrow") is None and data.needs_pyarrow(path)


def send_files(
    client: Client, body: Json, folders: Sequence[Path], note: Callable[[Path, int], Callable[[int], object]]
) -> None:
    """Upload the local files that a body names and put their content's names in their place."""
    sent: dict[Path, str] = {}
    for holder, key, path in local_files(body, folders):
        if path not in sent:
            sent[path] = client.upload(path, note(path, path.stat().st_size))
        holder[key] = sent[path]


def name_files(body: Json, folders: Sequence[Path]) -> list[Path]:
    """Put the content's name of each local file in its place, without sending it. The files."""
    found = local_files(body, folders)
    names = {path: f"sha256:{digest_of(path)}" for path in dict.fromkeys(path for _, _, path in found)}
    for holder, key, path in found:
        holder[key] = names[path]
    return list(names)


def local_files(body: Json, folders: Sequence[Path]) -> list[tuple[Any, Any, Path]]:
    """Where a body names files of this machine: holder, key, path. Raises DocumentError for one that is nowhere.

    Relative names count from the document's folder, then from the current one (`folders`).
    """
    found = []
    for holder, key, field in _mentions(body):
        text = holder[key]
        if not isinstance(text, str) or INPUT_REFERENCE.fullmatch(text) or text.startswith("job:"):
            continue
        there = [path for folder in folders if (path := folder / Path(text).expanduser()).is_file()]
        if there:
            found.append((holder, key, there[0].resolve()))
        elif not text.startswith("/"):
            below = " or ".join(str(folder.resolve()) for folder in folders)
            raise DocumentError(
                f"{field}: {text!r} is not a file below {below}. One that is on the rig has an absolute path."
            )
    return found


def _mentions(body: Json) -> Iterator[tuple[Any, Any, str]]:
    for document in members(body):
        yield from ((document, field, field) for field in FILE_FIELDS if document.get(field) is not None)
    sweep = body.get("sweep")
    if is_batch(body) and isinstance(sweep, dict):
        if isinstance(sweep.get("csv"), str):
            yield sweep, "csv", "sweep.csv"
        axes = [sweep, *(part for part in (sweep.get("grid"), sweep.get("space")) if isinstance(part, dict))]
        stages = [f"{job.get('id')}." for job in members(body)] if "jobs" in body else [""]
        fields = [f"{stage}{field}" for stage in stages for field in FILE_FIELDS]
        for field, values in ((field, part.get(field)) for part in axes for field in fields):
            if isinstance(values, list):
                yield from ((values, at, field) for at in range(len(values)))
        points = sweep.get("points")
        for point in points if isinstance(points, list) else ():
            if isinstance(point, dict):
                yield from ((point, field, field) for field in fields if field in point)


def _check(document: Mapping[str, Any], where: str) -> None:
    try:
        parse(document)
    except InvalidSpec as error:
        raise _refused(error, where) from None


def _refused(error: InvalidSpec, where: str) -> DocumentError:
    return DocumentError("\n".join(_words(e, where) for e in error.errors))


def _words(error: FieldError, where: str) -> str:
    return f"{where}{error.field}: {error.message}" if error.field else f"{where.rstrip('.')} {error.message}".strip()


def _loader(path: Path) -> Callable[[str], Any]:
    def load(text: str) -> Any:
        try:
            return loads(text)
        except ValueError as error:
            raise DocumentError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from None

    match path.suffix.lower():
        case ".toml":
            loads: Callable[[str], Any] = tomllib.loads
        case ".json":
            loads = json.loads
        case ".yaml" | ".yml":
            loads = _yaml(path)
        case _:
            raise DocumentError(f"{path}: a job document is a {KINDS_OF_FILE} file")
    return load


def _yaml(path: Path) -> Callable[[str], Any]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise DocumentError(f"{path}: YAML needs PyYAML (`pip install pyyaml`); TOML and JSON need nothing") from None

    def load(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(re.sub(r"\s+", " ", str(error))) from None

    return load


def _plain(value: Any) -> Any:
    """Dates as ISO 8601, so that the document is JSON; a moment without an offset is in this machine's time zone."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()
    return value.isoformat() if isinstance(value, date) else value
