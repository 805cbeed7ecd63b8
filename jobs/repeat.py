"""The same work again: what makes two jobs the same, and what has changed since one ran. Pure."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.differences import NOT_ITS_WORK
from jobs.spec import HUB_ID


def fingerprint(spec: Mapping[str, Any]) -> str:
    """The same for documents that ask for the same work, whatever they are called and whenever they run."""
    work = {name: value for name, value in spec.items() if name not in NOT_ITS_WORK}
    return hashlib.sha256(json.dumps(work, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was: two descriptions by jobs.environment, in words. What either leaves out is not compared."""
    for name, words in (("python", "Python"), ("platform", "the system")):
        yield from _changed(words, then.get(name), now.get(name))
    yield from _each("", then.get("packages"), now.get("packages"))
    before, after = _object(then.get("gpu")), _object(now.get("gpu"))
    yield from _changed("the GPU", _kinds(before), _kinds(after))
    yield from _changed("the driver", before.get("driver"), after.get("driver"))
    yield from _each("the content of ", then.get("inputs"), now.get("inputs"))
    before, after = _object(then.get("git")), _object(now.get("git"))
    yield from _changed("the commit", before.get("commit"), after.get("commit"))
    if before and after and before.get("commit") == after.get("commit") and before.get("diff") != after.get("diff"):
        yield "the changes that are not committed are others"


def limits(spec: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    """What a repetition cannot promise to be the same, however much is. `then`: a description by jobs.environment."""
    if spec.get("kind") == "command":
        yield "of a command its packages, its random numbers and what it reads by itself are not known"
        if spec.get("cwd") and not spec.get("workdir") and not then.get("git"):
            yield "the folder that it ran in is not in git, so nobody knows whether its files are the same"
        return
    if HUB_ID.fullmatch(str(spec.get("model") or "")) and "@" not in str(spec["model"]):
        yield "the model is named without a revision (org/name@commit): the hub may have another one by now"
    if _object(then.get("gpu")).get("devices"):
        yield "a GPU's kernels may add in another order: the last digits of a loss may differ"


def _changed(words: str, then: object, now: object) -> Iterator[str]:
    if then is not None and then != now:
        yield f"{words} was {_short(then)} and is {'gone' if now is None else _short(now)}"


def _each(words: str, then: object, now: object) -> Iterator[str]:
    before, after = _object(then), _object(now)
    if after:
        for name, value in sorted(before.items()):
            yield from _changed(f"{words}{name}", value, after.get(name))


def _kinds(gpu: Mapping[str, Any]) -> str | None:
    """The names of the cards, each once: the same work runs on one of several alike."""
    devices = gpu.get("devices")
    return ", ".join(sorted(set(map(str, devices)))) if isinstance(devices, list) and devices else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
