"""`overnight report`: what happened in a night."""

from datetime import date, datetime
from pathlib import Path

import click

from api.cli import output
from api.cli.session import USAGE, Session, fail, with_rig
from api.cli.telemetry import moment

FORMATS = ("md", "html", "json", "text")
SUFFIXES = {".md": "md", ".html": "html", ".htm": "html", ".json": "json", ".txt": "text"}


@click.command("report")
@click.option("--night", metavar="DATE", help="The date of its evening, as in 2026-11-21. [default: the last night]")
@click.option("--since", metavar="WHEN", help="Instead of a night: from 2026-11-24T22:00 on, or so long ago (12h).")
@click.option("--format", "format_", type=click.Choice(FORMATS), help="[default: as the file is called, else md]")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@with_rig
def report(session: Session, night: str | None, since: str | None, format_: str | None, target: Path | None) -> None:
    """What ran, what failed and why, the best result, what it used and cost, and what waits.

    Formats: Markdown, one HTML file that needs nothing else, JSON, or a message of at most 400 bytes.
    """
    if night and since:
        fail("name a night or --since, not both", USAGE)
    chosen = format_ or ("json" if session.as_json else SUFFIXES.get(target.suffix, "md") if target else "md")
    body = session.client.report(night=_date(night), since=_since(since), format=chosen)
    if target is not None:
        target.write_bytes(body)
        session.say(f"{target} ({output.size(len(body))})")
        if session.as_json:
            output.emit({"file": str(target), "format": chosen, "size_bytes": len(body)})
        return
    click.echo(output.clean(body.decode(errors="replace")).rstrip("\n"), color=False)


def _date(text: str | None) -> str:
    if text is None:
        return ""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        fail(f"--night takes the date of an evening such as 2026-11-21, not {text!r}", USAGE)


def _since(text: str | None) -> str:
    if text is None:
        return ""
    now = datetime.now().astimezone()
    return datetime.fromtimestamp(moment(text, now.timestamp()), now.tzinfo).isoformat()
