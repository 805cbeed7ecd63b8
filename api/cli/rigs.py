"""`overnight rigs`: the machines that share this queue."""

from collections.abc import Mapping
from typing import Any

import click

from api.cli import output
from api.cli.session import USAGE, Session, fail, with_rig


@click.command("rigs")
@click.argument("action", type=click.Choice(("list", "forget")), default="list")
@click.argument("name", required=False)
@with_rig
def rigs(session: Session, action: str, name: str | None) -> None:
    """The machines that share this queue. `rigs forget NAME`: one will not come back; what began there starts anew."""
    if action == "forget":
        if not name:
            fail("Which rig? `overnight rigs` lists them.", USAGE)
        session.client.forget_rig(name)
        _told(session, {"forgotten": name}, f"Rig {name} is forgotten. When it starts again, it takes part again.")
        return
    found = session.client.rigs()
    if session.as_json:
        output.emit({"rigs": found})
        return
    head = ("RIG", "STATE", "SLOTS", "JOBS", "LAST WORD", "ADDRESS")
    output.show(output.table(head, (_row(one) for one in found), give_way="ADDRESS"))


def _told(session: Session, answer: Mapping[str, Any], text: str) -> None:
    if session.as_json:
        output.emit(answer)
    else:
        output.say(text, err=False)


def _row(rig: Mapping[str, Any]) -> list[str]:
    state = f"{rig['state']}, paused" if rig["paused"] else str(rig["state"])
    return [
        f"{rig['name']}{' (this one)' if rig['is_this'] else ''}",
        state,
        str(len(rig["slots"])),
        ", ".join(rig["jobs"]),
        f"{output.duration(rig['silent_s'])} ago" if rig["silent_s"] is not None else "",
        rig["url"],
    ]
