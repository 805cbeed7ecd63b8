"""The report as Markdown. Jobs' words stand in code spans only, where nothing is markup."""

import re
from collections.abc import Iterable, Iterator

from api.report_words import (
    COLOUR_WORDS,
    best_words,
    facts,
    foretold_words,
    group_jobs,
    group_title,
    heading,
    repaired_words,
    result_words,
    span_words,
    took_words,
    waited_words,
    waits_words,
    when,
)
from api.wording import STATE_WORDS, number, plain
from daemon.night.model import Night

LONGEST_NAME, LONGEST_LINE = 80, 300
#: What could be read as markup in our own sentences, which may hold a sweep's name or a metric's.
SPECIAL = re.compile(r"([\\`*{}\[\]|~!]|^[#+-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
LISTED = 50


def markdown(night: Night) -> str:
    """The whole report."""
    return "\n".join([*_lines(night), ""])


def _lines(night: Night) -> Iterator[str]:
    yield f"# {safe(heading(night))}"
    yield ""
    yield f"**{COLOUR_WORDS[night.verdict.colour]}.** {safe(night.verdict.sentence)}"
    yield ""
    yield safe(span_words(night))
    yield ""
    counts = night.counts
    yield f"{number(counts.failed)} failed · {number(counts.done)} done · {number(counts.running)} running · {number(counts.queued)} waiting"
    if night.timeline:
        yield from _section("Timeline", [safe(night.timeline)])
    yield from _needs_you(night)
    yield from _section(
        "Repaired by itself",
        (f"- #{one.job} {code(one.name)}: {safe(repaired_words(one))}" for one in night.repaired[:LISTED]),
    )
    if night.best is not None:
        yield from _section(
            "Best result", [f"#{night.best.job} {code(night.best.name)}: {safe(best_words(night.best))}"]
        )
    yield from _section("The rig", [f"- {safe(label)}: {safe(value)}" for label, value in facts(night)])
    yield from _section("What waits", [safe(waits_words(night.waits, night)), *_next(night)])
    if night.foretold is not None:
        yield from _section("Forecast against what came", [safe(foretold_words(night.foretold, night))])
    yield from _ran(night)


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield from ("", f"## {title}", "", *found)


def _needs_you(night: Night) -> Iterator[str]:
    lines: list[str] = []
    for trouble in night.troubles:
        lines += [f"- **{safe(trouble.words)}**", *([f"  {safe(trouble.hint)}"] if trouble.hint else [])]
    for group in night.needs_you:
        lines.append(f"- **{safe(group_title(group))}**: {group_jobs(group)}, {code(group.names[0])}")
        lines += [f"  {code(group.line, LONGEST_LINE)}"] if group.line else []
        lines += [f"  {safe(said)}" for said in (group.hint, waited_words(group)) if said]
        if group.action is not None:
            lines.append(f"  What can safely be done: {safe(group.action.label)}.")
    yield from _section("Needs you", lines)


def _next(night: Night) -> Iterator[str]:
    for one in night.waits.jobs:
        expected = f" starts about {when(one.start_at, night)}" if one.start_at is not None else ""
        ends = f", ends about {when(one.end_at, night)}" if one.end_at is not None else ""
        because = "" if expected else f" {safe(one.because)}"
        yield f"- #{one.job} {code(one.name)}:{expected}{ends}{because}"


def _ran(night: Night) -> Iterator[str]:
    rows = [
        f"| #{ran.job} | {cell(ran.name)} | {STATE_WORDS[ran.state]} | {took_words(ran, night)} | {safe(result_words(ran))} |"
        for ran in night.ran[:LISTED]
    ]
    if rows:
        head = ["| job | name | state | when | result |", "|---|---|---|---|---|"]
        yield from _section("What ran", [*head, *rows])
    if more := night.more + max(0, len(night.ran) - LISTED):
        yield from ("", f"And {number(more)} more.")


def code(text: str, most: int = LONGEST_NAME) -> str:
    """Somebody's words, in which nothing is markup: on one line, in a fence longer than any in them."""
    clean = one_line(text, most) or "(no name)"
    fence = "`" * (max((len(run) for run in re.findall("`+", clean)), default=0) + 1)
    padding = " " if clean.startswith("`") or clean.endswith("`") else ""
    return f"{fence}{padding}{clean}{padding}{fence}"


def cell(text: str) -> str:
    """The same within a table, where a bar would end the cell even in code."""
    return code(text.replace("|", "¦"))


def safe(text: str) -> str:
    """A sentence of ours, with whatever it quotes made harmless."""
    clean = one_line(text, 1_000)
    clean = clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    clean = SPECIAL.sub(r"\\\1", clean)
    return re.sub(r"(?i)(://|@|\bwww\.)", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", clean)


def one_line(text: str, most: int) -> str:
    """Without line breaks and control characters, and no longer than so."""
    clean = " ".join(plain(text).split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"
