"""A benchmark's rows as a table for people: one for each precision, in Markdown and as texts for the page. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.cells import DOES_NOT_FIT, MEASURED, cell_of, peak_bytes, variant_words
from jobs.metrics import is_finite

Json = Mapping[str, Any]

HEAD = ("batch", "prompt", "first token", "prefill tokens/s", "decode tokens/s", "between tokens", "95 % below", "peak memory", "J/token")  # fmt: skip
LEGEND = (
    "first token: from the request to its first token, the prompt's whole way through the model. decode tokens/s: all rows "
    "together, without the prompt; in brackets the slowest and the fastest of the repeats. between tokens: the median of one "
    "row's waits. J/token: energy of the whole request for each new token, by the GPU's own counter. Medians of the repeats."
)


@dataclass(frozen=True)
class Table:
    """One precision: its measured rows as texts below HEAD, and what was not measured, with the reason."""

    variant: str
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def tables(rows: Iterable[Json]) -> list[Table]:
    """By precision in the order of the rows; in each by length of the prompt and size of the batch."""
    found: dict[str, list[Json]] = {}
    for row in rows:
        found.setdefault(variant_words(cell_of(row).variant), []).append(row)
    return [_table(name, members) for name, members in found.items()]


def markdown(title: str, facts: Iterable[str], rows: Sequence[Json]) -> str:
    """The whole result as a page of Markdown, its columns aligned for those who read it as text."""
    parts = [f"# {title}", "\n".join(facts)]
    for table in tables(rows):
        parts.append(f"## {table.variant}")
        if table.rows:
            widths = [max(map(len, column)) for column in zip(HEAD, *table.rows, strict=True)]
            lines = [HEAD, tuple("-" * width for width in widths), *table.rows]
            parts.append("\n".join(_line(line, widths) for line in lines))
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n\n".join([*parts, LEGEND]) + "\n"


def texts(row: Json) -> list[str]:
    """A measured row as texts below HEAD."""
    spread = f" ({short(row['decode_min_tokens_per_s'])}-{short(row['decode_max_tokens_per_s'])})"
    joules = row.get("joules_per_token")
    return [
        str(row["batch_size"]),
        str(row["prompt_length"]),
        wait(row["ttft_s"]),
        short(row["prefill_tokens_per_s"]),
        short(row["decode_tokens_per_s"]) + (spread if row["repeats"] > 1 else ""),
        wait(row["inter_token_latency_s"]),
        wait(row["inter_token_latency_p95_s"]),
        f"{peak_bytes(row) / 2**30:.2f} GiB",
        short(joules) if is_finite(joules) else "-",
    ]


def reason(row: Json) -> str:
    """Why a row was not measured."""
    words = "does not fit" if row["state"] == DOES_NOT_FIT else "not run"
    return f"{words}: {row['reason']}" if row.get("reason") else words


def short(value: Any) -> str:
    """A finite number by three digits that count: 0.0123, 4.56, 78.9, 1234."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def wait(seconds: float) -> str:
    """12.3 ms, 4.56 s."""
    return f"{short(seconds)} s" if seconds >= 1 else f"{short(seconds * 1000)} ms"


def _table(name: str, members: Sequence[Json]) -> Table:
    ordered = sorted(members, key=lambda row: (row["prompt_length"], row["batch_size"]))
    reasons: dict[str, list[str]] = {}
    for row in ordered:
        if row["state"] != MEASURED:
            reasons.setdefault(reason(row), []).append(f"{row['batch_size']} x {row['prompt_length']}")
    everything = len(reasons) == 1 and not any(row["state"] == MEASURED for row in ordered)
    notes = [words if everything else f"{', '.join(sizes)} {words}" for words, sizes in reasons.items()]
    return Table(name, [texts(row) for row in ordered if row["state"] == MEASURED], notes)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
