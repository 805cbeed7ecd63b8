"""The first answers on a generation's page."""

import json
from pathlib import Path
from typing import Any

from api.answers_panel import CHARACTERS, SHOWN, answers
from jobs.model import End, Job, Outcome
from jobs.rundir import RunDir
from jobs.spec import dump, parse


def folder_with(path: Path, *lines: object) -> RunDir:
    folder = RunDir(path)
    folder.create()
    folder.generations.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return folder


def job(kind: str = "generate", metrics: dict[str, Any] | None = None) -> Job:
    spec = dump(parse({"kind": kind, "model": "m", "data": "d"}))
    outcome = Outcome(end=End.SUCCEEDED, metrics=metrics) if metrics else None
    return Job(id="1", kind=kind, name="n", spec=spec, created_at=0.0, rank=0.0, outcome=outcome)


def test_what_was_asked_and_said_stands_there(tmp_path: Path) -> None:
    chat = {"id": 0, "messages": [{"role": "user", "content": "Where?"}], "text": "Here.\nThere.", "adapter": "formal"}
    body = {"choices": [{"message": {"content": "Yes."}}]}
    batch = {"id": "batch_req_1/short", "custom_id": "q1", "response": {"body": body}, "error": None}
    failed = {"id": "q2", "prompt": "Why?", "text": "", "error": {"code": "x", "message": "Too long."}}
    found = answers(folder_with(tmp_path, chat, batch, failed, "{torn"), job())
    assert found is not None
    one, two, three = found.rows
    assert (one.name, one.asked, one.said) == ("0 · formal", "Where?", "Here.\nThere.")
    assert (two.name, two.asked, two.said, two.error) == ("q1 · short", "", "Yes.", "")
    assert (three.asked, three.error) == ("Why?", "Too long.")
    assert found.errors == "1 row without an answer"


def test_only_the_first_and_not_too_much_of_them(tmp_path: Path) -> None:
    lines = [{"id": n, "prompt": "\x1b[31mred\x07", "text": "a" * 5000} for n in range(50)]
    found = answers(folder_with(tmp_path, *lines), job(metrics={"failed_rows": 7}))
    assert found is not None
    assert len(found.rows) == SHOWN
    assert found.rows[0].asked == "red"
    assert len(found.rows[0].said) == CHARACTERS + 2
    assert found.errors == "7 rows without an answer"


def test_what_is_no_answer_is_not_shown(tmp_path: Path) -> None:
    strange = folder_with(tmp_path / "a", "[1]\n", "null\n", {"response": 3, "error": 4, "messages": 5, "id": None})
    found = answers(strange, job())
    assert found is not None
    assert [(row.said, row.error) for row in found.rows] == [("", "4")]
    assert answers(folder_with(tmp_path / "b"), job()) is None
    assert answers(RunDir(tmp_path / "c"), job()) is None
    outside = folder_with(tmp_path / "d")
    outside.generations.unlink()
    outside.generations.symlink_to("/etc/hostname")
    assert answers(outside, job()) is None
