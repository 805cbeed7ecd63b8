"""Which jobs somebody asks for, as it stands in an address: one reading for the page of all jobs and for the API.

state=failed&state=cancelled   cause=oom_gpu   kind=   tag=   sweep=12 (or none)   q=
since=24h   until=2026-11-24T08:00             when they ended
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlencode
from zoneinfo import ZoneInfo

from daemon.store import Wanted
from jobs.model import Cause, State

SPAN = re.compile(r"([1-9][0-9]{0,3})([hd])")
SPAN_S = {"h": 3600.0, "d": 86_400.0}
#: What the page offers.
SPANS: Mapping[str, str] = {"12h": "12 hours", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
MOMENTS = "24h, 7d, or a day as 2026-11-24"
MOST_FIELDS, LONGEST_MOMENT = 50, 40


@dataclass(frozen=True)
class Filters:
    """What somebody asks for, as it stands in the address. What cannot be understood is told in `problem`."""

    states: tuple[State, ...] = ()
    causes: tuple[Cause, ...] = ()
    kind: str = ""
    tag: str = ""
    sweep: str = ""
    q: str = ""
    since: str = ""
    until: str = ""
    ended_since: float | None = None
    ended_until: float | None = None
    problem: str = ""

    @classmethod
    def of(cls, query: str, now: float, zone: ZoneInfo) -> "Filters":
        """Read them from an address's query."""
        problems: list[str] = []
        try:
            told = parse_qs(query, max_num_fields=MOST_FIELDS)
        except ValueError:
            told = {}
            problems.append(f"These are more than {MOST_FIELDS} filters.")
        states = [_one_of(State, word, "state", problems) for word in told.get("state", [])]
        causes = [_one_of(Cause, word, "cause", problems) for word in told.get("cause", [])]
        texts = {name: told.get(name, [""])[0][:LONGEST_MOMENT] for name in ("since", "until")}
        moments = {name: moment_of(text, now, zone) for name, text in texts.items()}
        problems += [
            f"“{text}” is no time: {MOMENTS}." for name, text in texts.items() if text and moments[name] is None
        ]
        words = {name: told.get(name, [""])[0][:128] for name in ("kind", "tag", "sweep", "q")}
        return cls(
            states=tuple(dict.fromkeys(state for state in states if state)),
            causes=tuple(dict.fromkeys(cause for cause in causes if cause)),
            since=texts["since"] if moments["since"] is not None else "",
            until=texts["until"] if moments["until"] is not None else "",
            ended_since=moments["since"],
            ended_until=moments["until"],
            problem=" ".join(problems),
            **words,
        )

    @property
    def wanted(self) -> Wanted:
        """The same for the store."""
        return Wanted(
            states=self.states,
            causes=self.causes,
            kind=self.kind,
            tag=self.tag,
            sweep=self.sweep,
            text=self.q,
            ended_since=self.ended_since,
            ended_until=self.ended_until,
        )

    @property
    def of_ends(self) -> bool:
        """Whether only jobs that ended can be meant."""
        return self.ended_since is not None or self.ended_until is not None

    @property
    def any(self) -> bool:
        """Whether anything is asked for at all."""
        return bool(self.query())

    def query(self, **changes: Any) -> str:
        """The address's query; changes replace a filter, an empty one takes it out."""
        told: dict[str, Any] = {
            "state": [str(state) for state in self.states],
            "cause": [str(cause) for cause in self.causes],
            "kind": self.kind,
            "tag": self.tag,
            "sweep": self.sweep,
            "since": self.since,
            "until": self.until,
            "q": self.q,
        } | changes
        return urlencode({name: value for name, value in told.items() if value}, doseq=True)


def moment_of(text: str, now: float, zone: ZoneInfo) -> float | None:
    """The moment that `24h`, `7d`, a date, a date with time, or epoch seconds mean; None when it is none of them."""
    if span := SPAN.fullmatch(text):
        return now - int(span[1]) * SPAN_S[span[2]]
    if re.fullmatch(r"[0-9]{9,11}(\.[0-9]{1,6})?", text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        return None


def _one_of(kind: Any, word: str, name: str, problems: list[str]) -> Any:
    if word in list(kind):
        return kind(word)
    if word:
        problems.append(f"There is no {name} “{word[:40]}”.")
    return None
