"""How an answer is drawn: the parameters of a job, and what single requests of an OpenAI batch say otherwise. Pure."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

#: Fields of a job document that answers depend on.
FIELDS = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed", "n")
MOST_ANSWERS = 128
MOST_STOPS = 16
#: Of an OpenAI request: asked for, and the answer would not be what was asked for without them. Value: what is harmless.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (None, False), "top_logprobs": (None, 0), "logit_bias": (None, {}), "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0), "response_format": (None, {"type": "text"}), "best_of": (None, 1), "suffix": (None, ""),
    "echo": (None, False), "functions": (None, []), "audio": (None,), "stream": (None, False),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Parameters of one request, by their names in transformers."""

    max_new_tokens: int = 256
    #: 0 is greedy: always the likeliest token.
    temperature: float = 0.0
    top_p: float = 1.0
    #: 0: all tokens.
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    #: What its draws begin with: the same stream draws the same.
    stream: str = ""

    @property
    def is_plain(self) -> bool:
        """Nothing but the model's scores decides the next token, and nothing but an end token ends the answer."""
        return self.temperature == 0 and self.repetition_penalty == 1.0 and not self.stop

    def seed_of(self, sample: int) -> int:
        """31 bits for engines that draw by themselves."""
        return int.from_bytes(_digest(f"{self.stream}/{sample}")[:4], "little") >> 1


def of_document(spec: Mapping[str, Any]) -> Sampling:
    """The parameters of a job document (jobs.spec.dump)."""
    values = {name: spec[name] for name in FIELDS if name not in ("stop", "seed")}
    return Sampling(**values, stop=tuple(spec["stop"]))


def of_row(document: Sampling, seed: int, row: int) -> Sampling:
    """Those of a row: the same, with draws of its own."""
    return replace(document, stream=f"{seed}/{row}")


def of_body(own: Sampling, body: Mapping[str, Any]) -> Sampling:
    """Those of an OpenAI request: what its body says, else the row's. Raises ValueError for what is not offered.

    With a `seed` of its own a request draws the same wherever it stands in the file.
    """
    for name, harmless in REFUSED.items():
        if name in body and body[name] not in harmless:
            raise ValueError(f"`{name}` is not offered here")
    found: dict[str, Any] = {}
    for names, target, check in (
        (("max_tokens", "max_completion_tokens", "max_new_tokens"), "max_new_tokens", _whole(1, 1_048_576)),
        (("temperature",), "temperature", _number(0, 10)),
        (("top_p",), "top_p", _share),
        (("top_k",), "top_k", _top_k),
        (("min_p",), "min_p", _number(0, 1)),
        (("repetition_penalty",), "repetition_penalty", _penalty),
        (("stop",), "stop", _stops),
        (("n",), "n", _whole(1, MOST_ANSWERS)),
    ):
        for name in names:
            if body.get(name) is not None:
                found[target] = check(name, body[name])
    if body.get("seed") is not None:
        found["stream"] = f"seed {_whole(-(2**63), 2**63 - 1)('seed', body['seed'])}"
    return replace(own, **found)


def keys(stream: str, sample: int, step: int) -> tuple[int, int]:
    """Two numbers of 32 bits (signed) that a token's draw begins with: the same for the same answer and place in it."""
    digest = _digest(f"{stream}/{sample}/{step}")
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if not _is_number(value) or not least <= value <= most:
            raise ValueError(f"`{name}` must be a number from {least:g} to {most:g}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"`{name}` must be a whole number from {least} to {most}")
        return value

    return check


def _share(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"`{name}` must be above 0 and at most 1")
    return float(value)


def _top_k(name: str, value: Any) -> int:
    return max(0, _whole(-1, 2**31 - 1)(name, value))  # -1 is vLLM's word for all


def _penalty(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 < value <= 10:
        raise ValueError(f"`{name}` must be above 0 and at most 10")
    return float(value)


def _stops(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts) or len(texts) > MOST_STOPS:  # fmt: skip
        raise ValueError(f"`{name}` must be a text or a list of at most {MOST_STOPS} texts")
    return tuple(text for text in texts if text)
