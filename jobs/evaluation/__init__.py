"""What an evaluation's rows say together: metrics with standard errors, their difference to another's, and when that means something. Pure.

A row of rows.jsonl has `loss` (mean, nats per measured token), `tokens` and `correct` (of those, the model's first choice was the right
one), the same for all of its tokens, and where an answer was asked for: `answer`, `expected`, `exact`, `includes`.

Standard errors are of sampling rows: those of a ratio of two sums over rows by linearisation (Cochran, Sampling Techniques, 1977,
section 6), so tokens of one row count as one observation. The difference of two models on the same rows is taken row by row (Miller,
Adding Error Bars to Evals, arXiv:2411.00640, section 4): what is hard for both cancels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

#: Of the metrics below. Another number, and results are no longer compared with older ones.
DEFINITION = 1
#: Metrics of answers; the others are of tokens.
OF_ANSWERS = ("accuracy", "includes")
#: A difference of so many standard errors is called one: 95 % of the normal distribution lie within.
TELLING_ERRORS = 1.96
STDERR = "_stderr"
#: Of a job's metrics: an object with what was measured, so that it is known what it compares with.
MEASURED_ON = "measured_on"


@dataclass(frozen=True)
class Measured:
    """A metric over rows. `parts`: how much each row pulls the value away, first order; 0 where it has no say."""

    value: float
    parts: Sequence[float]

    @property
    def stderr(self) -> float | None:
        """None for one row, and where it is beyond all numbers: nobody knows."""
        rows = len(self.parts)
        found = math.sqrt(rows / (rows - 1) * math.fsum(part * part for part in self.parts)) if rows > 1 else math.inf
        return found if math.isfinite(found) else None

    def minus(self, other: "Measured") -> "Measured":
        """The difference to another model on the same rows in the same order."""
        return Measured(self.value - other.value, [a - b for a, b in zip(self.parts, other.parts, strict=True)])


def measured(rows: Sequence[Row]) -> dict[str, Measured]:
    """Every metric that these rows tell."""
    found: dict[str, Measured] = {}
    for prefix, loss, tokens in (("eval", "loss", "tokens"), ("all_tokens", "all_loss", "all_tokens")):
        if ratio := _ratio([(row[loss] * row[tokens], row[tokens]) for row in rows]):
            found[f"{prefix}_loss"] = ratio
            if perplexity := _exponential(ratio):
                found["perplexity" if prefix == "eval" else f"{prefix}_perplexity"] = perplexity
    if ratio := _ratio([(row["correct"], row["tokens"]) for row in rows]):
        found["token_accuracy"] = ratio
    asked = [row.get("exact") is not None for row in rows]
    for name, field in zip(OF_ANSWERS, ("exact", "includes"), strict=True):
        if ratio := _ratio([(float(row.get(field) or 0), float(was)) for row, was in zip(rows, asked, strict=True)]):
            found[name] = ratio
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The metrics as a job tells them, each with its standard error; and in MEASURED_ON the counts behind them."""
    told: dict[str, Any] = {}
    for name, one in measured(rows).items():
        told[name] = round(one.value, 6)
        told[name + STDERR] = round(one.stderr, 6) if one.stderr is not None else None
    counts = {
        "rows": len(rows),
        "measured_tokens": sum(row["tokens"] for row in rows),
        "asked_rows": sum(row.get("exact") is not None for row in rows),
        "cut_rows": sum(bool(row.get("cut")) for row in rows),
    }
    return told | {"rows": len(rows), "tokens": sum(row["all_tokens"] for row in rows), MEASURED_ON: counts}


def differences(rows: Sequence[Row], base: Sequence[Row]) -> dict[str, Measured]:
    """This evaluation less another one of the same rows, metric by metric; nothing when they are not the same rows."""
    mine, theirs = ({int(row["index"]): row for row in each} for each in (rows, base))
    if mine.keys() != theirs.keys() or any(mine[at]["all_tokens"] != theirs[at]["all_tokens"] for at in mine):
        return {}
    order = sorted(mine)
    found, others = (measured([each[at] for at in order]) for each in (mine, theirs))
    return {name: one.minus(others[name]) for name, one in found.items() if name in others}


def is_telling(difference: float, stderr: float | None) -> bool:
    """Whether a difference is more than chance between rows would make."""
    return stderr is not None and abs(difference) > TELLING_ERRORS * stderr


def basis(metrics: Mapping[str, Any], metric: str) -> tuple[object, ...] | None:
    """What must be the same for two results to be held against each other in this metric; None: it is no evaluation's.

    Of tokens: the very tokens and masks that were measured (data, template, tokenizer, length). Of answers: the questions
    and the room for an answer; models with other tokenizers were asked the same. Of lm-eval's tasks: their versions and settings.
    """
    facts = metrics.get(MEASURED_ON)
    if not isinstance(facts, Mapping):
        return None
    name = metric.removesuffix(STDERR)
    if "/" in name:
        fields: tuple[str, ...] = ("tasks_sha256",)
    elif name in OF_ANSWERS:
        fields = ("data_sha256", "rows", "asked_rows", "max_new_tokens")
    else:
        fields = ("tokens_sha256",)
    return "evaluation", facts.get("definition"), *(facts.get(field) for field in fields)


def worst(rows: Iterable[Row], count: int) -> list[Row]:
    """The rows with the highest loss of a measured token."""
    return sorted(rows, key=lambda row: (-float(row["loss"]), int(row["index"])))[:count]


def is_exact(answer: str, expected: str) -> bool:
    """The answer is the expected one, spaces at both ends aside."""
    return answer.strip() == expected.strip()


def includes(answer: str, expected: str) -> bool:
    """The expected words stand somewhere in the answer: `Includes` of OpenAI Evals (docs/eval-templates.md), spaces at both ends aside."""
    return expected.strip() in answer


def _ratio(pairs: Sequence[tuple[float, float]]) -> Measured | None:
    """Sum over sum; None where there is nothing to divide by."""
    below = math.fsum(size for _, size in pairs)
    if not below:
        return None
    value = math.fsum(amount for amount, _ in pairs) / below
    return Measured(value, [(amount - value * size) / below for amount, size in pairs])


def _exponential(one: Measured) -> Measured | None:
    """e to its power, by the delta method; None when that is no number."""
    try:
        value = math.exp(one.value)
    except OverflowError:
        return None
    return Measured(value, [value * part for part in one.parts])
