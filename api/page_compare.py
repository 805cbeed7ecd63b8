"""The page of 2 to 5 runs beside each other.

/compare?ids=141,142        the first one is the baseline, or &baseline=142; &all=1 shows fields that are the same
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api import page, panels
from api.comparing import fetched, named
from api.comparison import MOST, Cell, Comparison, compare_link
from api.context import Context, Rig
from api.curves import Curve
from api.job_panel import Panel, parameter_text, told
from api.problems import ApiError, words_of
from api.svg import Series, chart, usual_gap
from api.wording import short, words
from daemon.store import UnknownJob

#: Charts of metrics beside the loss.
MOST_CHARTS = 8
#: A curve of more points is smoothed, over this share of its length.
NOISY, WINDOWS = 60, 40
MINUS = "\u2212"
TALL = ("loss", "eval_loss")

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Query(max_length=120)]


@dataclass(frozen=True)
class Overlay:
    """One metric of all runs in one chart. `styles`: which run's line each one is."""

    panel: Panel
    styles: Sequence[int]
    is_tall: bool


@router.get("/compare")
def compare_page(rig: Rig, ids: Text = "", baseline: Text = "", all: Text = "") -> Response:
    """Runs beside each other."""
    now = rig.now()
    snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    common: dict[str, Any] = {
        "now": now,
        "snap": snap,
        "heart": panels.heart(snap),
        "banners": [banner for banner in panels.banners(snap) if banner.level == "warn"],
        "here": "jobs",
    }
    try:
        made = fetched(named(ids, baseline), rig)
    except (ApiError, UnknownJob, redis.RedisError) as error:
        status, text = words_of(error)
        return _empty(rig, 200 if not ids else status, "" if not ids else text, ids, common)
    return page.render(
        "compare.html",
        rig,
        200,
        **common,
        made=made,
        verdict=verdict(made),
        overlays=overlays(made),
        whole=all == "1",
        same=len(made.fields) - len(made.differing),
        text=lambda value: short(parameter_text(value)),
        address=lambda **changes: _address(made, all, **changes),
    )


def _empty(rig: Context, status: int, problem: str, ids: str, common: dict[str, Any]) -> Response:
    """The form alone."""
    values = {"made": None, "problem": problem, "ids": ids, "most": MOST}
    return page.render("compare.html", rig, status, **common, **values)


def _address(made: Comparison, whole: str, *, baseline: str = "", all: str | None = None) -> str:
    """The same runs, the baseline first; with another one where it is named."""
    others = sorted((run.job.id for run in made.runs), key=int)
    shown = whole if all is None else all
    return compare_link([baseline or made.baseline.job.id, *others]) + (f"&all={shown}" if shown else "")


def verdict(made: Comparison) -> str:
    """Which is best by the metric that tells most, in one sentence."""
    judged = next((m for m in made.metrics if m.direction and m.told > 1), None)
    if judged is None:
        return "They have no number in common that says which is better."
    base, others = judged.cells[0], list(zip(made.runs[1:], judged.cells[1:], strict=True))
    if base.value is None:
        return f"The baseline, job {made.baseline.job.id}, has no {words(judged.name)}."
    known = [(run, cell) for run, cell in others if cell.value is not None and cell.delta is not None]
    sign = 1 if judged.direction == "lower" else -1
    run, cell = min(known, key=lambda pair: sign * (pair[1].value or 0.0))
    if cell.judgement != "better":
        rest = "is as good" if cell.judgement == "same" else "is better"
        return f"None beats the baseline, job {made.baseline.job.id}: {words(judged.name)} {base.text}." if rest == "is better" else f"Job {run.job.id} has the same {words(judged.name)} as the baseline, job {made.baseline.job.id}: {base.text}."  # fmt: skip
    percent = f" ({_percent(cell)})" if base.value else ""
    return f"Job {run.job.id} is best: {words(judged.name)} {cell.text}, {cell.words}{percent} than job {made.baseline.job.id}.".replace(", better (", " (")  # fmt: skip


def _percent(cell: Cell) -> str:
    base = (cell.value or 0.0) - (cell.delta or 0.0)
    return f"{(cell.delta or 0.0) / abs(base) * 100:+.1f} %".replace("-", MINUS)


def overlays(made: Comparison) -> list[Overlay]:
    """A chart for each metric that the runs have curves of."""
    found = []
    for name in made.charted[: MOST_CHARTS + len(TALL)]:
        with_curve = [(at, run) for at, run in enumerate(made.runs) if run.curves.get(name)]
        lines = [smooth(run.curves[name]) for _, run in with_curve]
        pairs = zip(with_curve, lines, strict=True)
        drawn = chart([Series(f"#{run.job.id}", line, usual_gap(line)) for (_, run), line in pairs])
        if drawn:
            alt = "; ".join(told(f"#{run.job.id}", run.curves[name]) for _, run in with_curve) + "."
            is_smooth = any(line is not run.curves[name] for (_, run), line in zip(with_curve, lines, strict=True))
            panel = Panel(words(name), "smoothed" if is_smooth else "", drawn, alt)
            found.append(Overlay(panel, [at for at, _ in with_curve], name in TALL))
    return found


def smooth(points: Curve) -> Curve:
    """A moving mean of a long curve: with their noise, several in one chart cannot be told apart. A short one as it is."""
    if len(points) <= NOISY:
        return points
    half = max(1, len(points) // (2 * WINDOWS))
    sums = [0.0, *accumulate(value for _, value in points)]
    smoothed = []
    for at, (step, _) in enumerate(points):
        reach = min(half, at, len(points) - 1 - at)  # narrower towards the ends, so that these stay where they are
        smoothed.append((step, (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)))
    return smoothed
