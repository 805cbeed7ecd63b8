"""`overnight rerun`: the same work again, under the eye of what has changed since."""

from typing import Any

import click

from api.cli import fields, output
from api.cli.session import FAILED, USAGE, Session, fail, with_rig

Json = dict[str, Any]


@click.command("rerun")
@click.argument("job")
@click.option("--exact", is_flag=True, help="Only if versions, GPU, driver, data and code are what they were.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Change a field first, as in --set seed=7.")
@click.option("-f", "--follow", "follow_", is_flag=True, help="Show log and progress until it has ended.")
@click.option("-w", "--wait", is_flag=True, help="Say nothing until it has ended.")
@with_rig
def rerun(session: Session, job: str, exact: bool, sets: tuple[str, ...], follow_: bool, wait: bool) -> None:
    """Submit a job's document again as a new job: from the start, without what the first one has saved.

    What has changed on the rig since it ran is told first.
    """
    from api.cli import sending  # here: it loads pydantic

    if exact and sets:
        fail("--exact repeats the job as it was; --set changes it: one or the other.", USAGE)
    job_id = session.job_id(job)
    found = session.client.changes(job_id)
    document: Json = found["document"]
    for text in sets:
        fields.change(document, fields.assignment(text))
    if exact and not found["known"]:
        fail(
            f"Job {job_id} has left no word of what it ran on, so nobody can tell whether it would be the same.", FAILED
        )
    for change in found["changes"]:
        output.say(output.clean_line(f"Not as it was: {change}."))
    if exact:
        for limit in found.get("limits", ()):
            output.say(output.clean_line(f"Cannot be promised: {limit}."))
    if exact and found["changes"]:
        fail("Nothing was submitted. Without --exact it runs with what there is now.", FAILED)
    sending.send(session, document, (), sending.How(follow=follow_, wait=wait))
