"""`overnight telemetry`: readings of GPUs and jobs, to be taken away."""

from datetime import datetime
from pathlib import Path

import click

from api.cli import output
from api.cli.moments import Duration
from api.cli.session import USAGE, Session, fail, with_rig

FORMATS = ("csv", "parquet")


@click.group("telemetry")
def telemetry() -> None:
    """Readings of GPUs and jobs, to be taken away."""


@telemetry.command("export")
@click.option("--job", metavar="JOB", help="All that the job's slots did, from its first start to its end.")
@click.option("--slot", "slots", multiple=True, metavar="UUID", help="A GPU or CPU slot; all of them when left out.")
@click.option("--since", metavar="WHEN", help="A moment (2026-11-24T22:00), or how long ago (12h). [default: 12h]")
@click.option("--until", metavar="WHEN", help="The same. [default: now]")
@click.option("--format", "format_", type=click.Choice(FORMATS), help="[default: as the file is called, else csv]")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@with_rig
def export(
    session: Session,
    job: str | None,
    slots: tuple[str, ...],
    since: str | None,
    until: str | None,
    format_: str | None,
    target: Path | None,
) -> None:
    """One row for each slot and second, as CSV or Parquet: utilisation, memory, temperature, power, energy, clocks."""
    if job and (slots or since or until):
        fail("--job says which slots and which time; leave --slot, --since and --until out", USAGE)
    chosen = format_ or (target.suffix.removeprefix(".") if target and target.suffix[1:] in FORMATS else "csv")
    job_id = session.job_id(job) if job else ""
    path = target or Path(f"{f'job-{job_id}' if job_id else 'rig'}-telemetry.{chosen}")
    now = datetime.now().timestamp()
    start, end = (moment(text, now) if text else None for text in (since, until))
    session.client.export(path, job=job_id, slots=slots, start=start, end=end, format=chosen)
    if session.as_json:
        output.emit({"file": str(path), "format": chosen, "size_bytes": path.stat().st_size})
    else:
        output.say(f"{path} ({output.size(path.stat().st_size)})", err=False)


def moment(text: str, now: float) -> float:
    """Epoch seconds of `2026-11-24T22:00` (here), or of so long ago: `12h`, `90m`."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return now - Duration().convert(text, None, None)
    except click.UsageError:
        fail(f"{text!r} is no moment like 2026-11-24T22:00 and no time like 12h", USAGE)
