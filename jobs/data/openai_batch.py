"""OpenAI's batch lines: `{"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {…}}`."""

from typing import Any

from jobs.data.chat import checked_messages, tools_of
from jobs.data.values import Notes, Row, text

CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
FIELDS = ("custom_id", "body")


def is_request(row: Row) -> bool:
    """Whether a row is one of a batch's requests."""
    return all(row.get(name) is not None for name in FIELDS)


def request(row: Row, notes: Notes) -> Row:
    """The request as a prompt: `custom_id`, `body`, and `messages` or `prompt` of the body. Raises ValueError with what is wrong."""
    custom_id, body = row["custom_id"], row["body"]
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError("`custom_id` must be a text")
    if not isinstance(body, dict):
        raise ValueError("`body` must be an object")
    if row.get("method", "POST") != "POST":
        raise ValueError("`method` must be POST")
    url = row.get("url") or (CHATS if "messages" in body else TEXTS)
    found: dict[str, Any] = {"custom_id": custom_id, "body": body, "url": url}
    if url == CHATS:
        messages = checked_messages(body.get("messages"), "body.messages", notes)
        if messages[-1]["role"] == "assistant":
            raise ValueError("`body.messages` ends with the assistant's words; there is nothing left to answer")
        return {**found, "messages": messages, **tools_of(body, notes)}
    if url == TEXTS:
        if not text(body.get("prompt"), "body.prompt"):
            raise ValueError("`body.prompt` is empty")
        return {**found, "prompt": body["prompt"]}
    raise ValueError(f"`url` is {str(url)[:60]!r}; {CHATS} and {TEXTS} are answered here")
