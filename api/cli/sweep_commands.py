"""`overnight sweep`: the sweeps there are, and the result of one."""

from collections.abc import Mapping
from typing import Any

import click

from api.cli import output
from api.cli.session import USAGE, Session, fail, with_rig

Json = dict[str, Any]

LISTED = 50


@click.command("sweep")
@click.argument("sweep", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="The whole table as CSV.")
@click.option("--cancel", is_flag=True, help="Stop all of its jobs that wait or run.")
@click.option("-n", "limit", type=click.IntRange(1), default=LISTED, show_default=True, help="How many rows at most.")
@with_rig
def sweep(session: Session, sweep: str | None, as_csv: bool, cancel: bool, limit: int) -> None:
    """A sweep's jobs with their parameters and metrics, the best first; without a number, the sweeps there are."""
    if sweep is None:
        if as_csv or cancel:
            fail("Which sweep? `overnight sweep` lists them.", USAGE)
        _list(session, limit)
        return
    sweep_id = session.job_id(sweep)
    if cancel:
        answer = session.client.cancel_sweep(sweep_id)
        if session.as_json:
            output.emit(answer)
        else:
            output.say(f"Sweep {sweep_id}: {_jobs(answer['asked'])} asked to stop.", err=False)
    elif as_csv:
        click.echo(session.client.sweep_csv(sweep_id), nl=False, color=False)
    elif session.as_json:
        output.emit(session.client.sweep(sweep_id))
    else:
        _show(session, session.client.sweep(sweep_id), limit)


COMMANDS = (sweep,)


def _list(session: Session, limit: int) -> None:
    page = session.client.sweeps(limit=min(limit, 200))
    if session.as_json:
        output.emit(page)
        return
    head = ("ID", "JOBS", "HOW", "OVER", "CREATED", "NAME")
    rows = [
        (s["id"], s["jobs"], s["method"], " ".join(s["axes"]), output.clock(s["created_at"]), s["name"])
        for s in page["sweeps"]
    ]
    output.show(output.table(head, rows, give_way="OVER") if rows else "No sweeps.")


def _show(session: Session, found: Mapping[str, Any], limit: int) -> None:
    goal = found["goal"].get("minimize") or found["goal"].get("maximize")
    others = [name for name in found["metrics"] if name != goal]
    rows = found["rows"][:limit]
    head = ("JOB", "STATE", goal.upper(), *found["axes"], *others)
    output.show(output.table(head, (_row(row, found["axes"], others) for row in rows)))
    if len(found["rows"]) > limit:
        output.say(f"… and {len(found['rows']) - limit} more: `-n {len(found['rows'])}`, or --csv.", err=False)
    counts = dict(found["counts"])
    early = counts.pop("stopped_early")
    counts["cancelled"] -= early
    parts = [f"{amount} {state}" for state, amount in {**counts, "stopped early": early}.items() if amount]
    output.say(f"Sweep {found['id']}, {_rows(found)}: {', '.join(parts)}.", err=False)
    if best := found["best"]:
        [row] = [row for row in found["rows"] if row["job"] == best["job"]]
        point = ", ".join(f"{name} = {_text(value)}" for name, value in row["point"].items())
        output.say(output.clean_line(f"Best: job {best['job']}, {goal} {_number(best['value'])}, {point}"), err=False)
    else:
        output.say(f"No job that succeeded tells {output.clean_line(goal)} yet.", err=False)
    output.say(session.page_of_sweep(found["id"]), err=False)


def _row(row: Mapping[str, Any], axes: list[str], others: list[str]) -> list[str]:
    state = "stopped early" if row["stopped_early"] else row["state"]
    point = [_text(row["point"][axis]) if axis in row["point"] else "" for axis in axes]
    return [row["job"], state, _number(row["value"]), *point, *(_number(row["metrics"].get(name)) for name in others)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _text(value: Any) -> str:
    return output.clean_line(value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else value)


def _rows(found: Mapping[str, Any]) -> str:
    """What the rows are: jobs, or points of several."""
    count = len(found["rows"])
    return f"{count} point{'' if count == 1 else 's'}" if any(row["stages"] for row in found["rows"]) else _jobs(count)


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"
