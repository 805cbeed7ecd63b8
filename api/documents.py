"""What a request's body says: strict JSON, and the jobs that a batch or a sweep means.

Python's own reader takes NaN, repeats of a name, and lone surrogates; each of those would be somebody else's trouble later.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request

from api.problems import ApiError
from jobs.aliases import translate
from jobs.expansion import Expansion, expand
from jobs.pipeline import linked
from jobs.spec import INPUT_REFERENCE, FieldError, InvalidSpec
from jobs.stages import expand_stages

MAX_DEPTH = 32
#: Larger ones break the programs that read them again.
MAX_INTEGER = 2**63
MAX_BATCH = 10_000
WRONG_TOLD = 20
MAX_CSV_BYTES = 16 << 20
JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"


class NotJson(ValueError):
    """The text is not JSON, or not of the kind that everybody reads alike."""


async def json_body(request: Request) -> Any:
    """The body of a request. Raises ApiError 415 or 400."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise ApiError(415, f"Send the body with `Content-Type: {JSON_TYPE}`.")
    try:
        return parse_json(await request.body())
    except NotJson as error:
        raise ApiError(400, f"The body is not usable JSON: {error}.", type="not-json") from None


async def optional_json_body(request: Request) -> Any:
    """The same where a body may be left out."""
    if not await request.body():
        return {}
    return await json_body(request)


async def form_body(request: Request) -> dict[str, str]:
    """The fields of a plain form; none when there is no body. Raises ApiError 415 or 400."""
    raw = await request.body()
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and content_type != FORM_TYPE:
        raise ApiError(415, f"Send the form with `Content-Type: {FORM_TYPE}`.")
    return parse_form(raw)


def parse_form(raw: bytes, *, most: int = 10) -> dict[str, str]:
    """A form's fields, at most so many; of one that stands there twice the first counts. Raises ApiError 400."""
    try:
        fields = parse_qs(raw.decode("ascii"), max_num_fields=most)
    except ValueError:
        raise ApiError(400, "The form cannot be read.") from None
    return {name: values[0] for name, values in fields.items()}


def parse_json(raw: bytes) -> Any:
    """A document that every JSON reader understands alike. Raises NotJson."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        _check(value, MAX_DEPTH)
    except UnicodeDecodeError:
        raise NotJson("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise NotJson(f"it is nested deeper than {MAX_DEPTH} levels") from None
    return value


def hash_of(value: object) -> str:
    """The same for documents that say the same."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class BatchRead:
    """The documents of a batch, and the sweep that made them."""

    documents: Sequence[Mapping[str, Any]]
    sweep: Expansion | None = None
    #: Names of other tools that were read as ours.
    notes: Sequence[str] = ()

    def field_of(self, number: int, field: str) -> str:
        """Where the body says what a wrong field of this document says."""
        if self.sweep is not None:
            return self.sweep.field_of(number, field)
        return f"jobs.{number}.{field}" if field else f"jobs.{number}"


def batch_of(body: object, read_csv: Callable[[str], str]) -> BatchRead:
    """The documents of `{"jobs": [...]}`, of `{"base": {...}, "sweep": {...}}`, or of jobs with a sweep. Raises InvalidSpec.

    Local names of jobs become provisional numbers (jobs.pipeline). `read_csv`: the text of an uploaded CSV file.
    """
    if not isinstance(body, Mapping):
        raise _wrong("", 'a batch is {"jobs": [...]} or {"base": {...}, "sweep": {...}}')
    if set(body) == {"jobs"}:
        found, notes = in_our_names(_listed(body["jobs"]), "jobs.{}.")
        return BatchRead(linked(found), notes=notes)
    if set(body) == {"jobs", "sweep"}:
        found, notes = in_our_names(_listed(body["jobs"]), "jobs.{}.")
        staged = expand_stages(found, body["sweep"], read_csv=read_csv)
        return BatchRead(staged.documents, staged, notes)
    if set(body) == {"base", "sweep"}:
        [base], notes = in_our_names([body["base"]], "base.")
        sweep = expand(base, body["sweep"], read_csv=read_csv)
        return BatchRead(sweep.documents, sweep, notes)
    raise _wrong(
        "",
        f'a batch has "jobs", or "base" and "sweep", or "jobs" and "sweep"; this one has {", ".join(sorted(body)) or "nothing"}',
    )


def in_our_names(documents: Sequence[Any], where: str = "") -> tuple[list[Any], list[str]]:
    """The documents with other tools' names read as ours, and what was changed. Raises InvalidSpec.

    `where`: what stands before a field's name in an error, with the document's number in place of {}.
    """
    found: list[Any] = []
    notes: dict[str, None] = {}
    errors: list[FieldError] = []
    for number, document in enumerate(documents):
        try:
            ours, told = translate(document) if isinstance(document, Mapping) else (document, [])
        except InvalidSpec as error:
            errors += [FieldError(where.format(number) + each.field, each.message) for each in error.errors]
            continue
        found.append(ours)
        notes |= dict.fromkeys(told)  # what a hundred jobs have in common is told once
    if errors:
        raise InvalidSpec(errors[:WRONG_TOLD])
    return found, list(notes)


def csv_reader(inputs: Path) -> Callable[[str], str]:
    """Reads an uploaded CSV file by its content's name. What it returns raises InvalidSpec."""

    def read(name: str) -> str:
        match = INPUT_REFERENCE.fullmatch(name)
        if match is None:
            raise _wrong("sweep.csv", f"{name[:100]!r} is not an uploaded file (`submit` uploads by itself)")
        try:
            with (inputs / match[1]).open("rb") as file:
                raw = file.read(MAX_CSV_BYTES + 1)
            if len(raw) > MAX_CSV_BYTES:
                raise _wrong("sweep.csv", f"is larger than {MAX_CSV_BYTES // 2**20} MiB")
            return raw.decode("utf-8")
        except FileNotFoundError:
            raise _wrong("sweep.csv", "is not uploaded: PUT the file to /api/v1/inputs/{sha256} first") from None
        except UnicodeDecodeError:
            raise _wrong("sweep.csv", "is not UTF-8 text") from None

    return read


def _listed(documents: object) -> list[Mapping[str, Any]]:
    if not isinstance(documents, list) or not documents:
        raise _wrong("jobs", "is a list of at least one job document")
    if len(documents) > MAX_BATCH:
        raise _wrong("jobs", f"has {len(documents)} jobs; one batch takes {MAX_BATCH}")
    return documents


def _wrong(field: str, message: str) -> InvalidSpec:
    return InvalidSpec([FieldError(field, message)])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise NotJson(f"the name {ascii(name)[:60]} stands there twice")
        value[name] = item
    return value


def _refuse_constant(text: str) -> float:
    raise NotJson(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"{text[:20]} is too large a number")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= MAX_INTEGER:
        raise NotJson("a whole number is too large")
    return value


def _check(value: object, levels: int) -> None:
    """Depth, and texts that can be written as UTF-8 again."""
    if levels == 0:
        raise NotJson(f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotJson("a text holds half a character (a lone surrogate)") from None
    elif isinstance(value, list):
        for item in value:
            _check(item, levels - 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(name, levels - 1)
            _check(item, levels - 1)
