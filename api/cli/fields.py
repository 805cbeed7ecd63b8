"""Changes to the fields of a job document, as flags and `--set` ask for them."""

import json
from collections.abc import Mapping
from typing import IO, Any

import click

from api.cli import output
from api.cli.session import USAGE

Json = dict[str, Any]


class DocumentError(click.ClickException):
    """The document cannot be submitted; the message names the field and the fix."""

    exit_code = USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        """Cleaned: it quotes the document."""
        output.say(self.message)


def change(document: Json, changes: Mapping[str, Any]) -> None:
    """Put fields into a document, those inside an object one by one."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(name), dict):
            change(document[name], value)
        else:
            document[name] = value


def allow_retries(document: Json, retries: int | None) -> None:
    """`--retries` in the words of the document's kind."""
    if retries is not None:
        change(document, {"retries": retries} if document.get("kind") == "command" else {"max_attempts": retries + 1})


def assignment(text: str) -> Json:
    """`learning_rate=1e-4`, `lora.r=8`, `tags=["a"]` as fields. Values are JSON, and text where that fails."""
    path, equals, value = text.partition("=")
    first, *rest = path.strip().split(".")
    if not first or not equals:
        raise DocumentError(f"--set {text}: it is --set FIELD=VALUE")
    try:
        made: Any = json.loads(value, parse_constant=str)
    except ValueError:
        made = value
    for name in reversed(rest):
        made = {name: made}
    return {first.replace("-", "_"): made}
