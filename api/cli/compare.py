"""`overnight compare`: 2 to 5 runs beside each other, the first one as the baseline."""

from collections.abc import Mapping
from typing import Any

import click

from api.cli import output
from api.cli.session import Session, with_rig

ARROWS = {True: "↓", False: "↑"}


@click.command("compare")
@click.argument("jobs", nargs=-1, required=True)
@click.option("--baseline", metavar="JOB", help="Compare with this one; the first one when left out.")
@click.option("--all", "whole", is_flag=True, help="Fields that are the same in all, too.")
@with_rig
def compare(session: Session, jobs: tuple[str, ...], baseline: str | None, whole: bool) -> None:
    """What differs between runs: fields of their documents, metrics with their differences, what they cost."""
    ids = [session.job_id(job) for job in jobs]
    made = session.client.compare(ids, baseline=session.job_id(baseline) if baseline else "")
    if session.as_json:
        output.emit(made)
        return
    head = ("", *(f"#{run['id']}" for run in made["runs"]))
    rows = [("name", *(run["name"] for run in made["runs"])), ("state", *(_state(run) for run in made["runs"]))]
    rows += [
        (field["name"], *(_text(value) for value in field["values"]))
        for field in made["fields"]
        if whole or field["differs"]
    ]
    rows += [_row(metric) for metric in (*made["metrics"], *made["costs"])]
    output.show(output.table(head, rows))
    same = sum(not field["differs"] for field in made["fields"])
    if same and not whole:
        output.say(f"{same} fields are the same in all: --all shows them.", err=False)
    output.say(f"{session.access.url.text}/compare?ids={','.join(run['id'] for run in made['runs'])}", err=False)


def _row(metric: Mapping[str, Any]) -> tuple[str, ...]:
    return (metric["name"], *(_cell(cell, metric["unit"]) for cell in metric["values"]))


def _cell(cell: Mapping[str, Any], unit: str) -> str:
    value, delta = cell["value"], cell["delta"]
    if value is None:
        return "-"
    told = {"s": output.duration, "bytes": output.size, "j": _energy}.get(unit, _number)(value)
    return f"{told} ({ARROWS[delta < 0]} {cell['words']})" if delta else told


def _state(run: Mapping[str, Any]) -> str:
    return f"{run['state']}{'' if run['is_final'] else ', so far'}"


def _energy(joules: float) -> str:
    return f"{joules / 3.6e6:.3g} kWh"


def _number(value: float) -> str:
    return f"{value:.5g}"


def _text(value: Any) -> str:
    if value in (None, "", [], {}):
        return "-"
    return (
        f"{value:g}"
        if isinstance(value, float)
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
