"""The file of answers: each once, in order, whatever was torn on the way; as plain lines and as OpenAI's."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.generation.answers import Answer, Format, OpenAI, Plain, Sample
from jobs.generation.requests import Problem, Request
from jobs.generation.results import Results
from jobs.generation.sampling import Sampling
from jobs.rundir import read_json_lines

ORDER = {"data_sha256": "0f", "temperature": 0.0}
FORMATS = [Plain(), OpenAI("tiny", 1_700_000_000)]


def request(index: int, adapter: str | None = None) -> Request:
    row = {"custom_id": f"q{index}", "messages": [{"role": "user", "content": "Where?"}]}
    return Request(index, row, [1, 2, 3], Sampling(), adapter)


def answer(index: int, adapter: str | None = None) -> Answer:
    return Answer(request(index, adapter), [Sample(f"answer {index} ü\u2028", 5, "stop")])


def results_in(
    folder: Path, keys: Sequence[str] = ("0", "1", "2", "3"), form: Format = FORMATS[0], **order: object
) -> Results:
    return Results(folder / "generations.jsonl", folder / "order.json", {**ORDER, **order}, keys, form)


def ids(folder: Path) -> list[str]:
    lines = read_json_lines(folder / "generations.jsonl")
    return [line.get("custom_id") or line["id"] for line in lines]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_answers_come_out_in_the_order_of_their_rows(tmp_path: Path, form: Format) -> None:
    results = results_in(tmp_path, form=form)
    results.start_over()
    results.append([answer(3), answer(1)])
    results.append([answer(0), answer(2)])
    assert ids(tmp_path) == ["q3", "q1", "q0", "q2"]
    results.finish()
    assert ids(tmp_path) == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("torn_bytes", [1, 9])
def test_a_torn_tail_is_cut_off_and_the_rest_stays(tmp_path: Path, form: Format, torn_bytes: int) -> None:
    results = results_in(tmp_path, form=form)
    results.start_over()
    results.append([answer(3), answer(1)])
    results.append([answer(0)])
    file = tmp_path / "generations.jsonl"
    file.write_bytes(file.read_bytes()[:-torn_bytes])
    again = results_in(tmp_path, form=form)
    assert again.resume() == {"3", "1"}
    again.append([answer(0), answer(2)])
    again.finish()
    assert ids(tmp_path) == ["q0", "q1", "q2", "q3"]


def test_several_adapters_stand_beside_each_other(tmp_path: Path) -> None:
    keys = ["0/a", "0/b", "1/a", "1/b"]
    results = results_in(tmp_path, keys)
    results.start_over()
    results.append([answer(0, "a"), answer(1, "a")])
    assert results_in(tmp_path, keys).resume() == {"0/a", "1/a"}
    results.append([answer(1, "b"), answer(0, "b")])
    results.finish()
    found = [(line["index"], line["adapter"]) for line in read_json_lines(tmp_path / "generations.jsonl")]
    assert found == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_answers_of_another_order_are_never_mixed_in(tmp_path: Path) -> None:
    results = results_in(tmp_path)
    results.start_over()
    results.append([answer(2)])
    assert results_in(tmp_path, temperature=0.7).resume() == set()
    other = results_in(tmp_path, temperature=0.7)
    other.start_over()
    assert ids(tmp_path) == []


def test_nothing_is_resumed_where_nothing_was(tmp_path: Path) -> None:
    assert results_in(tmp_path).resume() == set()


def test_lines_are_tallied(tmp_path: Path) -> None:
    for form in FORMATS:
        results = results_in(tmp_path, form=form)
        results.start_over()
        results.append([answer(0), Answer(request(1), problem=Problem("invalid_request", "No."))])
        (_, good), (key, bad) = results.tallies()
        assert (good.prompt_tokens, good.completion_tokens, good.failed) == (3, 5, False)
        assert (key, bad.failed, bad.error, bad.completion_tokens) == ("1", True, "No.", 0)


def test_a_plain_line_says_what_was_asked_and_answered() -> None:
    row = {"id": "q7", "prompt": "Where?"}
    asked = Request(4, row, [1, 2], Sampling(n=2, temperature=1.0), "formal")
    line = Plain().line(Answer(asked, [Sample("Here.", 2, "stop"), Sample("There", 3, "length")]))
    assert line == {
        "id": "q7", "index": 4, "adapter": "formal", "prompt": "Where?", "text": "Here.", "texts": ["Here.", "There"],
        "prompt_tokens": 2, "completion_tokens": 5, "finish_reason": "stop", "finish_reasons": ["stop", "length"],
    }  # fmt: skip
    wrong = Plain().line(Answer(Request(5, {"prompt": "x"}, problem=Problem("invalid_request", "No."))))
    assert (wrong["id"], wrong["text"], wrong["finish_reason"]) == (5, "", "error")
    assert wrong["error"] == {"code": "invalid_request", "message": "No."}


def test_an_openai_line_is_what_their_clients_read() -> None:
    line = FORMATS[1].line(answer(2))
    assert (line["id"], line["custom_id"], line["error"]) == ("batch_req_2", "q2", None)
    assert (line["response"]["status_code"], line["response"]["request_id"]) == (200, "req_2")
    body = line["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "answer 2 ü\u2028", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

    completion = Answer(Request(0, {"custom_id": "c", "prompt": "Once", "body": {}}, [1]), [Sample("…", 1, "length")])
    body = FORMATS[1].line(completion)["response"]["body"]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "…")


def test_an_openai_error_has_its_shape() -> None:
    line = FORMATS[1].line(Answer(request(1), problem=Problem("context_length_exceeded", "Too long.")))
    assert line["error"] == {"code": "context_length_exceeded", "message": "Too long."}
    assert line["response"]["status_code"] == 400
    refused = {
        "message": "Too long.",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }
    assert line["response"]["body"] == {"error": refused}
    json.dumps(line)
