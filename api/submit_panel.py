"""What the form says about a document before it is submitted: what is wrong, what it needs and takes, when it would be done."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from api import job_panel, routes_estimate, routes_plan
from api.cli import toml_text
from api.context import Context
from api.documents import batch_of, csv_reader
from api.form_fields import fields_of
from api.plan_views import PlannedJob
from api.routes_estimate import EstimateView
from api.submission import checked, one
from api.wording import clock, count, duration, energy, number, size
from daemon.forecast import Basis
from daemon.tariff import J_PER_KWH
from jobs.model import Job
from jobs.spec import KINDS, FieldError, InvalidSpec, dump, parse

#: A batch of more jobs is checked, but not foreseen while somebody types.
MOST_FORESEEN = 200
#: How admission says it to programs.
NOT_UPLOADED = "is not uploaded"


@dataclass(frozen=True)
class Fit:
    """One GPU, and how full the job would make it; `ratio` is None where nobody knows."""

    name: str
    ratio: float | None
    fits: bool | None
    text: str


@dataclass(frozen=True)
class Suggestion:
    """Fields that would make it fit."""

    text: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Outlook:
    """Everything about a document that is known before it is submitted."""

    #: ok, wrong, missing, unfit: what the first sentence is about.
    mood: str
    headline: str
    errors: Mapping[str, str] = field(default_factory=dict)
    #: What belongs to no field of the form.
    problems: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    fits: Sequence[Fit] = ()
    suggestions: Sequence[Suggestion] = ()
    command: str = ""
    toml: str = ""


def look(document: Any, rig: Context, *, lenient: bool) -> Outlook:
    """Check a document and foresee it. `lenient`: what is still missing is no error yet. Stores nothing."""
    try:
        if isinstance(document, Mapping) and "kind" not in document and {"jobs", "base"} & set(document):
            return _look_at_batch(document, rig)
        return _look_at_one(document, rig)
    except InvalidSpec as error:
        return refused(document, error.errors, lenient=lenient)


def refused(document: Any, errors: Sequence[FieldError], *, lenient: bool) -> Outlook:
    """What is wrong, sorted to the fields of the form."""
    kind = document.get("kind") if isinstance(document, Mapping) else None
    known = {each.path: each for each in fields_of(str(kind))} if kind in KINDS else {}
    missing = [e.field for e in errors if e.field in known and known[e.field].required and e.field not in document]
    if lenient and missing:
        errors = [error for error in errors if error.field not in missing]
    if not errors:
        labels = [known[name].label for name in missing]
        named = " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
        return Outlook("missing", f"Still needed: {named}.")
    by_field: dict[str, str] = {}
    problems = []
    for error in errors:
        home = _home_of(error.field, known)
        if error.message.startswith(NOT_UPLOADED):
            error = FieldError(error.field, "is not on the rig (any more): send the file")
        if home:
            rest = error.field.removeprefix(home).lstrip(".")
            by_field.setdefault(home, f"{rest} {error.message}" if rest and not rest.isdigit() else error.message)
        else:
            problems.append(f"{error.field}: {error.message}" if error.field else error.message)
    amount = len(by_field) + len(problems)
    return Outlook("wrong", f"{count(amount, 'thing')} to put right.", by_field, problems, toml=_toml(document))


def _home_of(path: str, known: Mapping[str, Any]) -> str:
    """The field of the form that an error belongs to: `argv.0` is `argv`'s."""
    while path and path not in known:
        path = path.rpartition(".")[0]
    return path


def _look_at_one(document: Any, rig: Context) -> Outlook:
    found = routes_estimate.estimate_job(rig, document)
    spec = parse(document)
    as_job = Job(id="0", kind=spec.kind, name="", spec=dump(spec), created_at=0.0, rank=0.0)
    command, text = job_panel.command(as_job), _toml(document)
    suggestions = [_suggestion(change.fields, change.vram_bytes, change.changes_meaning) for change in found.would_fit]
    fits = _fits(found, several=len(rig.store.rigs()) > 1)
    if found.fits is False:
        message = f"It {found.message}." if found.message else "It does not fit on any GPU of this queue."
        return Outlook("unfit", message, {}, (), tuple(_needs(found, rig)), tuple(found.warnings), fits, suggestions, command, text)  # fmt: skip
    checked(one(document), rig)  # what the estimate lets pass: a file that is still to come, too many GPUs
    planned = routes_plan.expected(document, rig)
    notes = (*found.warnings, *_unknown(found))
    return Outlook("ok", _ready(planned, rig), {}, (), (*_when(planned, rig), *_needs(found, rig)), notes, fits, suggestions, command, text)  # fmt: skip


def _look_at_batch(document: Mapping[str, Any], rig: Context) -> Outlook:
    batch = batch_of(document, csv_reader(rig.settings.inputs))
    admitted = checked(batch, rig)
    told = "a sweep of " if batch.sweep is not None else ""
    facts = [("jobs", number(len(admitted)))]
    if len(admitted) <= MOST_FORESEEN:
        plan = routes_plan.what_if(rig, document, None, 1)
        ours = set(plan.what_if)
        ends = [job.end_at for job in plan.jobs if job.id in ours]
        if ends and all(ends):
            last = max(end.timestamp() for end in ends if end)
            facts.append(("all done", f"about {clock(last, rig.now(), rig.settings.zone)}"))
    return Outlook("ok", f"Ready: {told}{count(len(admitted), 'job')}, every one valid.", {}, (), facts)


def _ready(planned: PlannedJob, rig: Context) -> str:
    if planned.never:
        return f"Valid, but it would not start: {planned.never}."
    if planned.start_at is None:
        return "Ready. It would start beyond the forecast."
    now = rig.now()
    if planned.start_at.timestamp() <= now + 60:
        return "Ready. It would start at once."
    return f"Ready. It would start about {clock(planned.start_at.timestamp(), now, rig.settings.zone)}."


def _when(planned: PlannedJob, rig: Context) -> Iterator[tuple[str, str]]:
    now, zone = rig.now(), rig.settings.zone
    if planned.end_at is not None and planned.basis is not Basis.UNKNOWN:
        guess = {Basis.GUESS: ", a guess from its kind"}.get(planned.basis, "")
        late = ", after the window closes" if planned.late else ""
        yield "done", f"about {clock(planned.end_at.timestamp(), now, zone)}{late}{guess}"
    if planned.waiting_because and planned.start_at and planned.start_at.timestamp() > now + 60:
        yield "until then", planned.waiting_because


def _needs(found: EstimateView, rig: Context) -> Iterator[tuple[str, str]]:
    if found.time_s is not None:
        yield "takes", duration(found.time_s)
    if found.energy_j is not None:
        price = rig.settings.prices.at(rig.now())
        cost = (
            f", {found.energy_j / J_PER_KWH * price:.2f} {rig.settings.currency}".rstrip() if price is not None else ""
        )
        yield "energy", f"{energy(found.energy_j)}{cost}"
    if found.vram_bytes is not None:
        source = {"declared": "as you said", "learned": "as earlier runs needed"}.get(found.source or "", "estimated")
        yield "memory", f"{size(found.vram_bytes)} on each GPU, {source}"
    if found.parallel is not None:
        yield "GPUs", f"{found.parallel.way}: {found.parallel.why}"
    if found.steps is not None:
        yield "steps", number(found.steps)
    if found.rows is not None:
        yield "rows", number(found.rows)
    if found.tokens is not None:
        yield "tokens", f"about {number(found.tokens)}"
    if found.disk_bytes:
        yield "disk", size(found.disk_bytes)


def _unknown(found: EstimateView) -> Iterator[str]:
    names = {"vram_bytes": "Its memory is not known", "time_s": "How long it takes is not known"}
    for name, words in names.items():
        if why := found.unknown.get(name):
            yield f"{words}: {why}."


def _fits(found: EstimateView, *, several: bool) -> list[Fit]:
    """Each sort of GPU once; none while nobody knows what the job needs."""
    if found.vram_bytes is None:
        return []
    alike = Counter((gpu.rig, gpu.name, gpu.memory_bytes, gpu.fits) for gpu in found.gpus if gpu.memory_bytes)
    return [
        Fit(
            name=(f"{amount} GPUs, {name}" if amount > 1 else name) + (f" of {rig}" if several else ""),
            ratio=min(1.0, found.vram_bytes / memory_bytes),
            fits=fits,
            text=f"{size(found.vram_bytes)} of {size(memory_bytes)}: {'fits' if fits else 'too small'}",
        )
        for (rig, name, memory_bytes, fits), amount in alike.items()
    ]


def _suggestion(fields: Mapping[str, Any], vram_bytes: int, changes_meaning: bool) -> Suggestion:
    flat = dict(_flat(fields))
    told = ", ".join(f"{name} = {_plain(value)}" for name, value in flat.items())
    warning = " (the result will be another one)" if changes_meaning else ""
    return Suggestion(f"{told}: {size(vram_bytes)}{warning}", {name: _plain(value) for name, value in flat.items()})


def _flat(fields: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _plain(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _toml(document: Any) -> str:
    return toml_text.written(document) if isinstance(document, Mapping) else ""


def unavailable(error: redis.RedisError) -> Outlook:
    """The queue does not answer."""
    del error
    return Outlook("wrong", "The queue does not answer. Nothing was stored; try again in a moment.")
