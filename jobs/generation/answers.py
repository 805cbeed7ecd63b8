"""An answer as a line of the output: plain, or as OpenAI's batches have it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.generation.requests import Problem, Request

Line = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One answer to a prompt."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """What came of a request: its samples, or a problem."""

    request: Request
    samples: Sequence[Sample] = ()
    problem: Problem | None = None

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.samples)


@dataclass(frozen=True)
class Tally:
    """What a line of the output counts as. `fresh`: it was made by this attempt."""

    prompt_tokens: int
    completion_tokens: int
    failed: bool
    error: str = ""


class Plain:
    """One object a row: `id index prompt|messages text prompt_tokens completion_tokens finish_reason`.

    With several answers `texts` has all of them and `text` the first; `adapter` names the one of several; `error` is
    `{code, message}`.
    """

    name = "jsonl"

    def line(self, answer: Answer) -> Line:
        request, row = answer.request, answer.request.row
        made: Line = {"id": row.get("id", row.get("custom_id", request.index)), "index": request.index}
        if request.adapter is not None:
            made["adapter"] = request.adapter
        for name in ("messages", "prompt"):
            if row.get(name) is not None:
                made[name] = row[name]
                break
        problem = answer.problem or request.problem
        made["text"] = answer.samples[0].text if answer.samples else ""
        if len(answer.samples) > 1:
            made["texts"] = [sample.text for sample in answer.samples]
        made |= {"prompt_tokens": len(request.tokens), "completion_tokens": answer.tokens}
        made["finish_reason"] = "error" if problem else answer.samples[0].finish_reason
        if len(answer.samples) > 1:
            made["finish_reasons"] = [sample.finish_reason for sample in answer.samples]
        if problem:
            made["error"] = {"code": problem.code, "message": problem.message}
        return made

    def key(self, line: Mapping[str, Any]) -> str:
        adapter = line.get("adapter")
        return f"{line['index']}" if adapter is None else f"{line['index']}/{adapter}"

    def tally(self, line: Mapping[str, Any]) -> Tally:
        error = line.get("error") or {}
        return Tally(line["prompt_tokens"], line["completion_tokens"], bool(error), error.get("message", ""))


class OpenAI:
    """Lines as OpenAI's batch API (and vLLM's run-batch) writes them: `id custom_id response error`."""

    name = "openai"

    def __init__(self, model: str, created: int):
        self._model, self._created = model, created

    def line(self, answer: Answer) -> Line:
        request = answer.request
        problem = answer.problem or request.problem
        made = {"id": f"batch_req_{request.key}", "custom_id": request.row.get("custom_id", request.row.get("id"))}
        made["custom_id"] = None if made["custom_id"] is None else str(made["custom_id"])
        status, body = (problem.status, _refused(problem)) if problem else (200, self._body(answer))
        made["response"] = {"status_code": status, "request_id": f"req_{request.key}", "body": body}
        made["error"] = {"code": problem.code, "message": problem.message} if problem else None
        return made

    def key(self, line: Mapping[str, Any]) -> str:
        return str(line["id"]).removeprefix("batch_req_")

    def tally(self, line: Mapping[str, Any]) -> Tally:
        error, usage = line["error"] or {}, line["response"]["body"].get("usage", {})
        counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        return Tally(*counts, bool(error), error.get("message", ""))

    def _body(self, answer: Answer) -> dict[str, Any]:
        request = answer.request
        chat = request.row.get("messages") is not None
        choices = [
            {"index": number, **_said(sample.text, chat=chat), "logprobs": None, "finish_reason": sample.finish_reason}
            for number, sample in enumerate(answer.samples)
        ]
        prompt, completion = len(request.tokens), answer.tokens
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request.key}",
            "object": "chat.completion" if chat else "text_completion",
            "created": self._created,
            "model": request.adapter or self._model,
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }


Format = Plain | OpenAI


def _said(text: str, *, chat: bool) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}


def _refused(problem: Problem) -> dict[str, Any]:
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    return {"error": {"message": problem.message, "type": kind, "param": None, "code": problem.code}}
