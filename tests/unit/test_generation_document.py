"""What a generation's document and its rows may say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from api.job_panel import command
from jobs.data import InvalidData, Reading, check, convert
from jobs.generation import sampling
from jobs.generation.sampling import Sampling, keys, of_body, of_row
from jobs.model import Job
from jobs.pipeline import PROVISIONAL, linked, numbered
from jobs.spec import InvalidSpec, dump, parse

PLAIN = {"kind": "generate", "model": "m", "data": "d"}
CHAT = {"role": "user", "content": "Where?"}


def line(custom_id: str = "a", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    messages = {} if "prompt" in body else {"messages": [CHAT]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "gpt", **messages, **body}}


def wrong(**fields: Any) -> str:
    with pytest.raises(InvalidSpec) as caught:
        parse({**PLAIN, **fields})
    return str(caught.value)


# -- the document -------------------------------------------------------------------------------------------------------


def test_sampling_parameters_have_their_known_names() -> None:
    given = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "n": 3,
        "stop": "\n\n",
    }
    found = sampling.of_document(dump(parse({**PLAIN, **given, "max_new_tokens": 64})))
    assert found == Sampling(
        max_new_tokens=64, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, n=3, stop=("\n\n",)
    )
    assert sampling.of_document(dump(parse(PLAIN))).is_plain


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "n: several answers to a prompt are all the same at temperature 0"),
        ({"adapter": "job:1", "adapters": {"a": "job:2"}}, "adapters: is instead of adapter"),
        ({"adapters": {"a b": "job:2"}}, "adapters"),
        ({"stop": [""]}, "stop"),
        ({"engine": "vlm"}, "engine"),
        ({"min_p": 2}, "min_p"),
    ],
)
def test_what_does_not_fit_together_is_said(fields: Mapping[str, Any], words: str) -> None:
    assert words in wrong(**fields)


def test_adapters_of_other_jobs_are_waited_for() -> None:
    spec = parse({**PLAIN, "adapters": {"short": "job:3", "long": "job:4", "plain": "", "own": "/models/a"}})
    assert list(spec.references) == [("adapters.short", "3"), ("adapters.long", "4")]
    assert spec.dependencies == ("3", "4")


def test_adapters_may_be_jobs_of_the_same_batch() -> None:
    train = {"id": "train", "kind": "finetune", "model": "m", "data": "/d"}
    ask = {**PLAIN, "adapters": {"tuned": "job:train", "old": "job:7", "plain": ""}}
    found = linked([train, ask])
    assert found[1]["adapters"] == {"tuned": f"job:{PROVISIONAL}", "old": "job:7", "plain": ""}
    assert ask["adapters"]["tuned"] == "job:train"
    stored = numbered(parse(found[1]), 20)
    assert dump(stored)["adapters"] == {"tuned": "job:20", "old": "job:7", "plain": ""}
    assert stored.dependencies == ("20", "7")


# -- OpenAI's batch lines -----------------------------------------------------------------------------------------------


def test_a_batch_line_is_a_prompt() -> None:
    found = convert(line("q1", tools=[{"type": "function"}], temperature=0.5), Reading("generate"))
    assert (found.source, found.shape) == ("OpenAI batch", "batch request")
    assert found.row["custom_id"] == "q1"
    assert found.row["messages"] == [CHAT]
    assert found.row["tools"] == [{"type": "function"}]
    assert found.row["body"]["temperature"] == 0.5
    completion = convert(line(url="/v1/completions", prompt="Once"), Reading("generate"))
    assert completion.row["prompt"] == "Once"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (line(url="/v1/embeddings", input="x"), "`url` is '/v1/embeddings'"),
        (line(custom_id=""), "`custom_id` must be a text"),
        ({**line(), "method": "GET"}, "`method` must be POST"),
        ({**line(), "body": []}, "`body` must be an object"),
        (line(messages=[]), "`body.messages` is empty"),
        (line(messages=[CHAT, {"role": "assistant", "content": "Here."}]), "nothing left to answer"),
        (line(url="/v1/completions", prompt=""), "`body.prompt` is empty"),
    ],
)
def test_a_wrong_batch_line_is_told(row: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        convert(row, Reading("generate"))


def test_custom_ids_are_used_once(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(line(name)) + "\n" for name in ("a", "b")))
    assert (check(path, Reading("generate")).rows, check(path, Reading("generate")).source) == (2, "OpenAI batch")
    path.write_text("".join(json.dumps(line(name)) + "\n" for name in ("a", "b", "a")))
    with pytest.raises(InvalidData, match="line 3: `custom_id` 'a' was used before"):
        check(path, Reading("generate"))


def test_answers_of_several_adapters_may_be_prompts_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "q", "prompt": "Where?", "adapter": name} for name in ("a", "b")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(path, Reading("generate")).rows == 2


# -- parameters of single requests --------------------------------------------------------------------------------------


def test_a_request_has_its_own_parameters() -> None:
    own = of_row(Sampling(max_new_tokens=256, temperature=0.2), 42, 7)
    body = {"max_tokens": 5, "temperature": 1, "top_p": 0.5, "top_k": -1, "stop": "END", "n": 2, "presence_penalty": 0}
    found = of_body(own, body)
    assert (found.max_new_tokens, found.temperature, found.top_p, found.top_k) == (5, 1.0, 0.5, 0)
    assert (found.stop, found.n, found.stream) == (("END",), 2, own.stream)
    assert of_body(own, {"max_completion_tokens": 9, "temperature": None}).max_new_tokens == 9


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"logprobs": True}, "`logprobs` is not offered"),
        ({"response_format": {"type": "json_object"}}, "`response_format` is not offered"),
        ({"frequency_penalty": 0.5}, "`frequency_penalty` is not offered"),
        ({"temperature": "warm"}, "`temperature` must be a number from 0 to 10"),
        ({"max_tokens": 0}, "`max_tokens` must be a whole number from 1"),
        ({"n": True}, "`n` must be a whole number"),
        ({"stop": [1]}, "`stop` must be a text or a list"),
        ({"top_p": 0}, "`top_p` must be above 0"),
    ],
)
def test_what_is_not_offered_is_refused(body: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_body(Sampling(), body)


def test_draws_belong_to_their_place_or_to_the_seed_of_the_request() -> None:
    one, other = (of_row(Sampling(temperature=1.0), 42, row) for row in (1, 2))
    assert keys(one.stream, 0, 0) != keys(other.stream, 0, 0)
    assert len({keys(one.stream, sample, step) for sample in range(3) for step in range(50)}) == 150
    assert keys(one.stream, 0, 3) == keys(of_row(Sampling(), 42, 1).stream, 0, 3)
    seeded = {of_body(each, {"seed": 5}).stream for each in (one, other)}
    assert len(seeded) == 1
    assert 0 <= one.seed_of(0) < 2**31


def test_the_command_of_a_jobs_page_repeats_its_adapters() -> None:
    spec = dump(parse({**PLAIN, "adapters": {"short": "job:3", "plain": ""}, "stop": ["a, b"]}))
    repeat = command(Job(id="1", kind="generate", name="n", spec=spec, created_at=0.0, rank=0.0))
    assert "--adapters short=job:3 --adapters plain=" in repeat
    assert "--stop 'a, b'" in repeat


def test_bad_rows_are_refused_or_left_to_the_job(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Where?"}\n{torn\n{"prompt": ""}\n')
    with pytest.raises(InvalidData, match="line 2: not valid JSON"):
        check(path, Reading.of(PLAIN))
    report = check(path, Reading.of({**PLAIN, "bad_rows": "report"}))
    assert report.rows == 1
    assert [note.partition(":")[0] for note in report.conversions] == [
        "line 2 will have an error",
        "line 3 will have an error",
    ]
    path.write_text('{"prompt": ""}\n')
    with pytest.raises(InvalidData, match="`prompt` is empty"):
        check(path, Reading.of({**PLAIN, "bad_rows": "report"}))
