"""`overnight diff`: what is not the same in two jobs, with the exit status of diff."""

from collections.abc import Iterator, Mapping
from typing import Any

import click

from api.cli import output
from api.cli.session import Session, with_rig

Json = Mapping[str, Any]

#: As of diff(1): 0 nothing differs, 1 something does; what goes wrong has the statuses of every command, which are above.
DIFFERS = 1
#: A longer value is cut: checksums, and paths.
LONGEST = 60
TITLES = (("document", "document"), ("environment", "what it ran on"), ("inputs", "content of its data and model"))


@click.command("diff")
@click.argument("first")
@click.argument("second")
@with_rig
def diff(session: Session, first: str, second: str) -> None:
    """What differs between two jobs: documents, versions and machine, data, the code that came along, results.

    The exit status is 0 when nothing differs and 1 when something does. Names, priorities, windows and how long it took
    are not compared.
    """
    made = session.client.diff(session.job_id(first), session.job_id(second))
    if session.as_json:
        output.emit(made)
    else:
        for line in _lines(made):
            output.say(line, err=False)
    raise SystemExit(0 if made["same"] else DIFFERS)


def _lines(made: Json) -> Iterator[str]:
    yield from (
        f"{sign} job {job['id']}: {job['name']} ({job['state']})" for sign, job in zip("-+", made["jobs"], strict=True)
    )
    for key, title in TITLES:
        if made[key]:
            yield f"{title}:"
            yield from (
                f"  {field['name']}: {_value(field['values'][0])} → {_value(field['values'][1])}" for field in made[key]
            )
    if made["code"]:
        yield "code that came along:"
        for change in made["code"]:
            yield f"  {change['how']} {change['name']}"
            yield from (f"    {line}" for line in change["diff"])
            if change["cut"]:
                yield "    … and more"
    if made["results"]:
        yield "results:"
        yield from (f"  {metric['name']}: {_result(metric)}" for metric in made["results"])
    yield from (f"Not known: {words}." for words in made["unknown"])
    if made["same"]:
        yield "Nothing differs." if not made["unknown"] else "Nothing that is known differs."


def _result(metric: Json) -> str:
    one, other = metric["values"]
    words = f" ({other['words']})" if other["words"] else ""
    return f"{_value(one['value'])} → {_value(other['value'])}{words}"


def _value(value: Any) -> str:
    if value in (None, "", [], {}):
        return "none"
    text = (
        f"{value:.6g}"
        if isinstance(value, float)
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
    text = output.clean_line(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
