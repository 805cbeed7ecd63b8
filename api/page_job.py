"""A job's page.

/jobs/{id}              ?q= searches its log
/jobs/{id}/data         what a fine-tune learns from: as its run found it, or as it stands now
/fragments/job/{id}     everything on it that changes
"""

from collections.abc import Sequence
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api import (
    acts,
    answers_panel,
    benchmark_panel,
    evaluation_panel,
    job_panel,
    job_story,
    page,
    panels,
    preview_panel,
)
from api.context import Context, Rig
from api.curves import TAIL_LINES, Curves, files, log_end
from api.glance import glance
from api.log_search import Search, search
from api.previewing import glimpse, left_by, read_preview
from api.views import usage_of
from daemon.preflights import told
from daemon.store import UnknownJob, UnknownSweep, Wanted
from daemon.unused import unused_gpu
from jobs.model import Job
from jobs.rundir import read_json, run_dir
from jobs.spec import KINDS, FinetuneSpec, InvalidSpec, parse
from jobs.sweep import Sweep

#: Jobs of its kind among which others of the same model and data are looked for.
LOOKED_THROUGH = 200

router = APIRouter(include_in_schema=False)
curves = Curves()


@router.get("/jobs/{job_id}")
def job_page(rig: Rig, job_id: str, q: Annotated[str, Query(max_length=200)] = "") -> Response:
    """One job."""
    return _job_page("job.html", rig, job_id, q)


@router.get("/fragments/job/{job_id}")
def job_fragment(rig: Rig, job_id: str) -> Response:
    """Everything on a job's page that changes."""
    return _job_page("job_live.html", rig, job_id, "")


@router.get("/jobs/{job_id}/data")
def data_page(rig: Rig, job_id: str) -> Response:
    """What a fine-tune learns from."""
    frame = page.frame(rig)
    try:
        job = _record(rig, job_id)
        found, why = preview_of(job, rig)
    except UnknownJob:
        return page.render("missing.html", rig, 404, job_id=job_id, **frame)
    except redis.RedisError:
        return page.render("missing.html", rig, 503, job_id=job_id, **frame)
    left = bool(job.attempts)
    return page.render("job_data.html", rig, job_id=job.id, job=job, left=left, preview=found, why=why, **frame)


def preview_of(job: Job, rig: Context) -> tuple[preview_panel.Panel | None, str]:
    """What a job left, else what its document finds now; or why there is nothing. Raises redis.RedisError."""
    if not learns(job):
        return None, "Only a fine-tune learns from data."
    if (holder := rig.elsewhere.holder(job)) is not None:
        answer = rig.elsewhere.ask(holder, f"/api/v1/jobs/{job.id}/preview")
        found = read_preview(answer.content) if answer is not None and answer.status_code == 200 else None
        nothing = f"Rig {holder}, which has the run folder, has none to show."
    elif (found := left_by(run_dir(rig.settings.runs, job.id))) is None:
        try:
            found = glimpse(parse(dict(job.effective_spec)), rig)
        except InvalidSpec:
            found = None
        nothing = "It left none, and its data cannot be read now."
    return (preview_panel.panel(found), "") if found is not None else (None, nothing)


def learns(job: Job) -> bool:
    """Whether it learns from rows of data."""
    return issubclass(KINDS.get(job.kind, object), FinetuneSpec)


def _job_page(template: str, rig: Context, job_id: str, q: str) -> Response:
    now = rig.now()
    snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    common: dict[str, Any] = {
        "now": now,
        "snap": snap,
        "heart": panels.heart(snap),
        "facts": snap.facts,
        "job_id": job_id,
        "here": "jobs",
    }
    try:
        job = _record(rig, job_id)
    except UnknownJob:
        return page.render("missing.html", rig, 404, banners=panels.banners(snap), **common)
    except redis.RedisError:
        return page.render("missing.html", rig, 503, banners=panels.banners(snap), **common)
    doubts = [banner for banner in panels.banners(snap) if banner.level == "warn"]
    return page.render(template, rig, 200, **common, banners=doubts, **_job(rig, job, snap, q))


def _record(rig: Context, job_id: str) -> Job:
    """From the queue; from its run folder while the queue does not answer. Raises UnknownJob, RedisError."""
    if not (job_id.isascii() and job_id.isdigit() and len(job_id) <= 18):
        raise UnknownJob(job_id)
    try:
        return rig.store.get(job_id)
    except redis.RedisError:
        record = read_json(run_dir(rig.settings.runs, job_id).state)
        if record is None:
            raise
        return Job.from_json(record)


def _job(rig: Context, job: Job, snap: panels.Snapshot, q: str) -> dict[str, Any]:
    settings, now, facts = rig.settings, snap.now, snap.facts
    folder = run_dir(settings.runs, job.id)
    theirs = glance(rig, job)
    found = theirs.curves if theirs else curves.read(folder)
    times = theirs.times if theirs else curves.times(folder)
    listed, more = (theirs.files, theirs.more_files) if theirs else files(folder)
    known: Search | None = search(folder, q) if q.strip() and not theirs else None
    sweep = _sweep(rig, job)
    near = _near(rig, job, sweep)
    return {
        "job": job,
        "verdict": job_panel.verdict(job, facts, settings, now),
        "summary": job_panel.summary(job),
        "acts": acts.of_job(job) if facts is not None else [],
        "took_s": job_panel.took_s(job, now),
        "benchmark": benchmark_panel.benchmark(job, rig),
        "preflight": told(job),
        # of an evaluation one point would be left, and its card has that number
        "loss": job_story.loss_panel(found, times, job) if job.kind != "evaluate" else None,
        "others": job_panel.other_panels(found),
        "telemetry": job_panel.telemetry_panels(job, facts, settings, now),
        "warning": unused_gpu(job),
        "resources": job_story.resources(job, facts, settings),
        "runs": job_story.runs(job),
        "parameters": job_story.parameters(job, sweep),
        "command": job_panel.command(job),
        "metrics": job_panel.metrics(job),
        "answers": None if theirs else answers_panel.answers(folder, job),
        "log": theirs.log if theirs else log_end(folder),
        "search": known,
        "q": q,
        "held_by": theirs,
        "tail_lines": TAIL_LINES,
        "files": listed,
        "more_files": more,
        "comparable": _comparable(rig, job, sweep, near),
        "evaluation": _evaluation(rig, job, near),
        "learns": learns(job),
        "preview": preview_panel.panel(left) if not theirs and (left := left_by(folder)) else None,
        "price_per_kwh": settings.price_per_kwh,
        "usage": {"throttled_s": None, "contended_s": None, "contended_by": None, **usage_of(job)},
    }


def _sweep(rig: Context, job: Job) -> Sweep | None:
    try:
        return rig.store.sweep(job.sweep) if job.sweep else None
    except (UnknownSweep, redis.RedisError):
        return None


def _near(rig: Context, job: Job, sweep: Sweep | None) -> list[Job]:
    """Jobs of its kind among which something is found to hold it against: the newest, and what its sweep has once."""
    if not job.spec.get("model"):
        return []
    try:
        newest = rig.store.page(Wanted(kind=job.kind), limit=LOOKED_THROUGH).jobs
        once = rig.store.get_many([str(int(sweep.id) + at) for at in range(min(sweep.once, LOOKED_THROUGH))]) if sweep else {}  # fmt: skip
    except redis.RedisError:
        return []
    return [*newest, *(other for name, other in once.items() if name not in {each.id for each in newest})]


def _evaluation(rig: Context, job: Job, near: Sequence[Job]) -> evaluation_panel.Evaluation | None:
    """An evaluation's result against the model before."""
    if job.kind != "evaluate" or job.outcome is None:
        return None
    baseline = evaluation_panel.baseline_of(job, near)
    folder = run_dir(rig.settings.runs, job.id)
    base_rows = evaluation_panel.rows_of(run_dir(rig.settings.runs, baseline.id)) if baseline else []
    rows = evaluation_panel.rows_of(folder) if base_rows else []
    return evaluation_panel.panel(job, baseline, rows, base_rows, evaluation_panel.worst_of(folder))


def _comparable(rig: Context, job: Job, sweep: Sweep | None, near: Sequence[Job]) -> list[job_story.Comparable]:
    """Runs that tell something about this one. Looks at a bounded number of records."""
    try:
        table = rig.tables.of(sweep) if sweep else None
        parents = rig.store.get_many([parent for parent, _ in job.parents])
    except redis.RedisError:
        return []
    return job_story.comparable(job, table, [parents[i] for i, _ in job.parents if i in parents], near)
