"""What every command shares: which rig, how to print, and an exit code for everything that can go wrong."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import click

from api.cli import config, output
from api.client import ApiProblem, Client, RigUnreachable

P = ParamSpec("P")
R = TypeVar("R")

SUCCEEDED, FAILED, USAGE, CANCELLED, NOT_AUTHORISED, NOT_FOUND, OVER_TIME, UNREACHABLE, DETACHED = 0, 1, 2, 3, 4, 5, 6, 69, 130  # fmt: skip
BY_STATUS = {401: NOT_AUTHORISED, 403: NOT_AUTHORISED, 404: NOT_FOUND}
JOB_ID = re.compile(r"(?:job:|#)?([1-9][0-9]{0,17})")
LAST = "@last"


@dataclass(frozen=True)
class Session:
    """One command's rig and way of printing."""

    client: Client
    access: config.Access
    as_json: bool

    def job_id(self, text: str) -> str:
        """`142`, `#142`, `job:142` or `@last` as an id."""
        if text == LAST:
            newest = self.client.jobs(limit=1)["jobs"]
            if not newest:
                fail("There is no job yet.", NOT_FOUND)
            return str(newest[0]["id"])
        found = JOB_ID.fullmatch(text)
        if found is None:
            fail(f"{text!r} is not a job's id; ids are numbers, and {LAST} is the newest job", USAGE)
        return found[1]

    def page_of(self, job_id: str) -> str:
        """The job's page."""
        return f"{self.access.url.text}/jobs/{job_id}"

    def page_of_sweep(self, sweep_id: str) -> str:
        """The sweep's page."""
        return f"{self.access.url.text}/sweeps/{sweep_id}"

    def say(self, text: str) -> None:
        """A result for a person: on stdout, unless stdout is for JSON."""
        output.say(text, err=self.as_json)


def with_rig(command: Callable[Concatenate[Session, P], R]) -> Callable[..., R]:
    """Give a command --server, --token, --json and the session that they make."""

    @click.option("--server", metavar="URL", help="The rig's address (or OVERNIGHT_URL).")
    @click.option("--token", metavar="TOKEN", help="Better in OVERNIGHT_TOKEN: others see a command's flags.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, everything else on stderr.")
    @functools.wraps(command)
    def with_session(server: str | None, token: str | None, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> R:
        access = config.resolve(os.environ, server=server, token=token)
        with Client(access.url.text, access.token.text) as client:
            return command(Session(client, access, as_json), *args, **kwargs)

    return with_session


class Commands(click.Group):
    """A group whose errors are sentences with the exit codes of the contract."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; end with its exit code."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without UTF-8 must not end a command
        try:
            return super().invoke(ctx)
        except RigUnreachable as error:
            fail(unreachable_words(error), UNREACHABLE)
        except ApiProblem as problem:
            fail(problem_words(problem), exit_code_of(problem))
        except config.ConfigError as error:
            fail(str(error), USAGE)
        except (KeyboardInterrupt, click.Abort):
            raise SystemExit(DETACHED) from None


def fail(text: str, code: int) -> NoReturn:
    """End with a sentence on stderr."""
    output.say(text)
    raise SystemExit(code)


def unreachable_words(error: RigUnreachable) -> str:
    """One sentence: what happened and what to do."""
    if error.sent:
        return (
            f"The rig at {error.url} gave no answer ({error.reason}); look at it with `overnight doctor` and try again."
        )
    fix = "start it with `overnight up`, or name yours with --server or OVERNIGHT_URL"
    return f"No rig answers at {error.url} ({error.reason}), so nothing was sent: {fix}."


def problem_words(problem: ApiProblem) -> str:
    """The refusal, with a line for each field."""
    if problem.status == 401:
        return "The rig does not know this token: set OVERNIGHT_TOKEN, or --token. On the rig, `overnight token` shows where it is."
    lines = [
        f"{e.get('field')}: {e.get('message')}" if e.get("field") else str(e.get("message")) for e in problem.errors
    ]
    if lines:
        return "\n".join(lines)
    return problem.detail or problem.title or f"The rig answered with HTTP status {problem.status}."


def exit_code_of(problem: ApiProblem) -> int:
    """4xx is the caller's mistake; a rig that cannot take jobs now is as good as unreachable."""
    if problem.status in (502, 503, 504):
        return UNREACHABLE
    return BY_STATUS.get(problem.status, USAGE if 400 <= problem.status < 500 else FAILED)


def fate(jobs: Iterable[Mapping[str, Any]]) -> int:
    """The exit code for how jobs ended, from their state alone; of several, the worst."""
    codes = {_fate_of(job) for job in jobs}
    return next((code for code in (FAILED, OVER_TIME, CANCELLED) if code in codes), SUCCEEDED)


def _fate_of(job: Mapping[str, Any]) -> int:
    match job["state"]:
        case "succeeded":
            return SUCCEEDED
        case "cancelled":
            return CANCELLED
        case "failed" if (job.get("outcome") or {}).get("cause") == "timeout":
            return OVER_TIME
        case _:
            return FAILED
