"""What a fine-tune would learn from, as `submit finetune --dry-run` shows it. Loads pydantic (through documents)."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import click

from api.cli import output
from api.cli.session import Session
from api.client import ApiProblem
from jobs.data import DataReport, Reading, convert, read_rows

Json = dict[str, Any]

#: Of a file that is not on the rig, so many rows are sent to be measured, and not more than so much text.
SENT_ROWS, SENT_BYTES = 500, 600_000
COLOURS = {"learnt": "green", "cut": "red", "left_out": "bright_black"}
#: Where there are no colours.
BRACKETS = {"learnt": ("[[", "]]"), "cut": ("{{cut: ", "}}")}
LEGEND = {True: "green is learnt, red is cut off", False: "[[…]] is learnt, {{cut: …}} is cut off"}


def ask(session: Session, document: Mapping[str, Any], data: tuple[Path, DataReport] | None, template: Path | None) -> Json | None:  # fmt: skip
    """The rig's preview of a fine-tune; of a file that is only here some rows are sent, and not kept."""
    body: Json = {"job": {**document}}
    if template is not None:
        body["job"].pop("chat_template", None)
        body["template"] = template.read_text(encoding="utf-8-sig")
    if data is not None:
        path, report = data
        facts = {name: getattr(report, name) for name in ("rows", "source", "format")}
        body |= {
            "rows": list(_sample(path, document, report.rows)),
            "known": {**facts, "conversions": list(report.conversions)},
        }
        body["job"].pop("data_fields", None)  # the rows that are sent have known names already
    try:
        return session.client.preview(body)
    except ApiProblem as problem:
        if problem.status == 404:  # an older rig
            return None
        raise


def show(session: Session, view: Mapping[str, Any]) -> None:
    """Shape, counts, lengths, and the first row with what is learnt of it."""
    for line in _lines(view):
        session.say(line)
    coloured = not session.as_json and output.colours()
    for example in view["examples"]:
        name = f", {example['name']}" if example["name"] else ""
        session.say("")
        session.say(
            f"Row {example['line']}{name} as the model sees it ({example['tokens']} tokens, {example['trained']} learnt; {LEGEND[coloured]}):"
        )
        click.echo(_text(example["segments"], coloured=coloured), err=session.as_json, color=coloured)


def _lines(view: Mapping[str, Any]) -> Iterator[str]:
    rows = "" if view["rows"] is None else f", {view['rows']} rows"
    if view["source"] or view["format"]:
        yield f"Data: {' of '.join(filter(None, (view['format'], view['source'])))}{rows}"
    yield from (f"  {note}" for note in view["conversions"])
    if view["unknown"]:
        yield f"No preview of the tokens: {view['unknown']}."
        return
    if view["lengths"]:
        yield from _counts(view)
    yield from (f"Note: {note}" for note in view["notes"])
    if view["problems"]:
        yield "These rows would stop the job:"
        yield from (f"  {problem}" for problem in view["problems"])


def _counts(view: Mapping[str, Any]) -> Iterator[str]:
    lengths = view["lengths"]
    some = f" (measured on {view['measured']} of them)" if view["rows"] not in (None, view["measured"]) else ""
    expected = f"about {view['expected_tokens']}" if some else str(view["kept_tokens"])
    share = f", {view['trained_share']:.0%} of them learnt" if view["trained_share"] is not None else ""
    yield f"Tokens: {expected} per epoch{share}{some}"
    yield (
        f"Length of a row: half have at most {lengths['p50']} tokens, 90 % {lengths['p90']}, 99 % {lengths['p99']}; "
        f"the longest has {lengths['longest']}"
    )
    lost = 1 - view["kept_tokens"] / view["tokens"] if view["tokens"] and view["cut"] else 0
    cut = f"{view['cut']} rows are longer and cut ({lost:.1%} of all tokens)" if view["cut"] else "no row is longer"
    left_out = f"; {view['dropped']} rows are left out, nothing can be learnt from them" if view["dropped"] else ""
    yield f"max_length {view['max_length']}: {cut}{left_out}"


def _text(segments: list[Mapping[str, str]], *, coloured: bool) -> str:
    parts = []
    for segment in segments:
        words, part = output.clean(segment["text"]), segment["part"]
        if coloured and part in COLOURS:
            words = click.style(words, fg=COLOURS[part], bold=part == "learnt")
        elif part in BRACKETS:
            words = words.join(BRACKETS[part])
        parts.append(words)
    return "".join(parts)


def _sample(path: Path, document: Mapping[str, Any], rows: int) -> Iterator[tuple[int, Json]]:
    """Rows from everywhere in the file, as ours."""
    reading, room = Reading.of(document), SENT_BYTES
    for line, row in islice(read_rows(path), 0, None, max(1, rows // SENT_ROWS)):
        found = convert(row, reading).row
        room -= len(json.dumps(found))
        if room < 0:
            return
        yield line, dict(found)
