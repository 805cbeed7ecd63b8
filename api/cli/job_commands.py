"""`overnight ls, show, logs, wait`: looking at jobs. What changes them is in queue_commands."""

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from api.cli import follow, output, screens
from api.cli.session import Session, fate, with_rig
from api.client import ApiProblem
from jobs.evaluation import STDERR

Json = dict[str, Any]

LISTED = 50
REFRESH_S = 2.0
SHOWN_LOG_LINES = 200
#: Results that are a page for people, by kind of job.
TABLES = {"benchmark": "output/table.md"}


@click.command("ls")
@click.option("--state", help="One state; --queued, --running and --failed are short for it.")
@click.option("--queued", "state", flag_value="queued", help="Only what waits.")
@click.option("--running", "state", flag_value="running", help="Only what runs.")
@click.option("--failed", "state", flag_value="failed", help="Only what failed.")
@click.option("--kind", help="One kind.")
@click.option("--tag", help="One tag.")
@click.option("--cause", help="What failed by one cause, as in --cause oom_gpu.")
@click.option("--sweep", help="One sweep by its number; none: jobs of no sweep.")
@click.option("--since", metavar="WHEN", help="What ended since: 12h, 7d, 2026-11-24T22:00.")
@click.option("-n", "limit", type=click.IntRange(1, 200), default=LISTED, show_default=True, help="How many at most.")
@click.option("-w", "--watch", is_flag=True, help="Refresh until Ctrl-C.")
@with_rig
def ls(session: Session, /, watch: bool, **filters: Any) -> None:
    """The newest jobs first; with --queued what waits, in the order in which it starts."""
    in_order = filters["state"] == "queued"
    if in_order:
        filters |= {"state": None, "order": "queue"}
    if watch and output.is_terminal() and not session.as_json:
        _watch_list(session, filters)
    page = session.client.jobs(**filters)
    if session.as_json:
        output.emit(page)
        return
    rows = output.queue_rows if in_order else output.job_rows
    output.show(rows(page["jobs"]) if page["jobs"] else "No jobs.")
    if page.get("next"):
        output.say(f"There are more: `overnight ls -n {2 * filters['limit']}`, or --tag, --kind, --state.")


@click.command("show")
@click.argument("job")
@with_rig
def show(session: Session, job: str) -> None:
    """One job: what it is, how it stands, what it cost."""
    record = session.client.job(session.job_id(job))
    if session.as_json:
        output.emit(record)
        return
    output.show("\n".join(f"{name:<10} {output.clean_line(text)}" for name, text in _facts(record) if text))
    for attempt in record.get("attempts") or []:
        output.say(f"attempt {attempt['number']}: {_attempt_words(attempt)}", err=False)
    for name, value in sorted((record.get("spec") or {}).items()):
        if value not in (None, "", [], {}):
            output.say(f"  {name} = {output.clean_line(json.dumps(value, ensure_ascii=False))}", err=False)
    if table := _table(session, record):
        output.say(f"\n{table}", err=False)
    output.say(session.page_of(record["id"]), err=False)


@click.command("logs")
@click.argument("job")
@click.option(
    "-f", "--follow", "follow_", is_flag=True, help="Go on until the job has ended; Ctrl-C leaves it running."
)
@click.option(
    "-n", "lines", type=click.IntRange(1, 100_000), default=SHOWN_LOG_LINES, show_default=True, help="Last lines."
)
@click.option("--all", "everything", is_flag=True, help="The whole log.")
@with_rig
def logs(session: Session, job: str, follow_: bool, lines: int, everything: bool) -> None:
    """What a job printed."""
    job_id = session.job_id(job)
    if follow_ and (everything or session.as_json):
        session.client.job(job_id)  # a rig that is away is told now: later we are patient
        follow.follow(session, [job_id])
    elif everything:
        for line in session.client.log_lines(job_id):
            output.say(line, err=False)
    else:
        text, end = session.client.log(job_id, tail=lines)
        if session.as_json:
            output.emit({"id": job_id, "log": text})
        elif text:
            output.say(text.removesuffix("\n"), err=False)
        if follow_:
            follow.follow(session, [job_id], log_from=end)


@click.command("wait")
@click.argument("jobs", nargs=-1, required=True)
@with_rig
def wait(session: Session, jobs: tuple[str, ...]) -> None:
    """Until all have ended; the exit status is their fate (of several, the worst)."""
    ids = [session.job_id(job) for job in jobs]
    for job_id in ids:
        session.client.job(job_id)  # a rig that is away, or an unknown job, is told now: later we are patient
    ended = follow.wait(session, ids)
    if session.as_json:
        output.emit(ended[0] if len(ended) == 1 else {"jobs": ended})
    else:
        for job in ended:
            output.say(output.fate_words(job))
    raise SystemExit(fate(ended))


COMMANDS = (ls, show, logs, wait)


def _table(session: Session, job: Mapping[str, Any]) -> str:
    """What a job of this kind has measured so far; "" before it has measured anything, and for other kinds."""
    if job["kind"] not in TABLES:
        return ""
    try:
        return session.client.text(str(job["id"]), TABLES[job["kind"]])
    except ApiProblem:
        return ""


def _watch_list(session: Session, filters: Mapping[str, Any]) -> None:
    from rich.live import Live

    with Live(console=output.console(), screen=True, refresh_per_second=2) as live:
        while True:
            live.update(screens.board(session.client.jobs(**filters)["jobs"]))
            time.sleep(REFRESH_S)


def _facts(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    usage, outcome = job.get("usage") or {}, job.get("outcome") or {}
    used = [
        f"{output.duration(usage['gpu_s'])} of GPU" if usage.get("gpu_s") else "",
        f"{usage['energy_j'] / 3.6e6:.3g} kWh" if usage.get("energy_j") else "",
        f"peak {output.size(usage['peak_vram_bytes'])} of GPU memory" if usage.get("peak_vram_bytes") else "",
    ]
    busy = [
        f"{usage['utilization_mean']:.0%} busy on average" if usage.get("utilization_mean") is not None else "",
        f"{usage['utilization_p95']:.0%} at the 95th percentile" if usage.get("utilization_p95") is not None else "",
    ]
    slowed = [f"{reason.replace('_', ' ')} {output.duration(s)}" for reason, s in (usage.get("throttled_s") or {}).items() if s >= 0.05]  # fmt: skip
    hot = [
        f"{usage['temperature_max_c']:.0f} °C" if usage.get("temperature_max_c") is not None else "",
        f"at {output.clock(usage['temperature_max_at'])}" if usage.get("temperature_max_at") else "",
        f"on {usage['temperature_max_slot']}" if usage.get("temperature_max_slot") else "",
    ]
    beside = [
        f"for {output.duration(usage['contended_s'])}" if usage.get("contended_s") else "",
        f"by {output.clean_line(usage['contended_by'])}" if usage.get("contended_by") else "",
    ]
    cost = [
        f"{usage['cost']:.2f}" if usage.get("cost") is not None else "",
        f"{usage['co2_g'] / 1000:.3g} kg of CO2" if usage.get("co2_g") is not None else "",
        f"{usage['tokens_per_j']:.3g} tokens per joule" if usage.get("tokens_per_j") is not None else "",
    ]
    return [
        ("job", f"{job['id']} {job['name']}"),
        ("kind", f"{job['kind']}, {job['gpus']} GPU{'s' if job['gpus'] != 1 else ''}, priority {job['priority']}"),
        ("parallel", f"{shared['way']}: {output.clean_line(shared['why'])}" if (shared := job.get("parallel")) else ""),
        ("tags", " ".join(job.get("tags") or ())),
        ("state", job["state"]),
        (
            "place",
            f"{job['position']} in the queue{', held' if job.get('held') else ''}" if job.get("position") else "",
        ),
        ("now", output.what(job) if job["state"] in ("queued", "running") else ""),
        ("preflight", (job.get("preflight") or {}).get("words") or ""),
        ("created", output.clock(job.get("created_at"))),
        ("started", output.clock(job.get("started_at"))),
        ("finished", output.clock(job.get("finished_at"))),
        ("took", output.took(job)),
        ("cause", outcome.get("cause") or ""),
        ("message", outcome.get("message") or ""),
        ("hint", outcome.get("hint") or ""),
        ("warning", " ".join(job.get("warnings") or ())),
        ("used", ", ".join(filter(None, used))),
        ("cost", ", ".join(filter(None, cost))),
        ("load", ", ".join(filter(None, busy))),
        ("slowed by", ", ".join(slowed)),
        ("hottest", " ".join(filter(None, hot))),
        ("shared", " ".join(filter(None, beside))),
        ("metrics", _metrics(job.get("metrics") or {})),
        ("next try", ", ".join(f"{k} = {v}" for k, v in (job.get("next_fields") or {}).items())),
    ]


def _attempt_words(attempt: Mapping[str, Any]) -> str:
    ran = f"{output.clock(attempt.get('started_at'))} to {output.clock(attempt.get('ended_at')) or 'now'}"
    end = attempt.get("cause") or attempt.get("end") or "running"
    if attempt.get("preflight"):
        end = f"preflight {'passed' if end == 'checked' else end}"
    return output.clean_line(f"{ran} on {', '.join(attempt.get('slots') or ())}: {end} {attempt.get('message') or ''}")


def _metrics(told: Mapping[str, Any]) -> str:
    """Numbers with their standard errors; what they were measured on is for --json."""
    errors = {
        name: f" ± {value:.2g}" for name, value in told.items() if name.endswith(STDERR) and isinstance(value, float)
    }
    shown = [
        (name, value) for name, value in told.items() if not name.endswith(STDERR) and not isinstance(value, Mapping)
    ]
    return ", ".join(f"{name} {_number(value)}{errors.get(name + STDERR, '')}" for name, value in shown)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
