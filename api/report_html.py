"""The report to read: what the page of a night shows, and the same as one file that needs nothing else.

The file has its own style and no script, and says so itself: its policy allows this one style sheet by its hash. So it can be
mailed, or kept for years.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from api import page, report_words
from api.context import Context
from api.curves import Curve, Curves
from api.job_panel import Panel
from api.svg import Series, chart
from api.wording import number
from daemon.night.model import Night
from jobs.model import State
from jobs.rundir import run_dir

STATIC = Path(__file__).parent / "static"
#: Curves of so many failed jobs, besides the best one's.
FAILED_CURVES = 3
CURVES = ("loss", "eval_loss", "train_loss")


def of_night(rig: Context, night: Night) -> str:
    """The report as one file."""
    values = shown(rig, night)
    answer = page.render("report.html", rig, **values, style=Markup(style()), policy=policy(framed=True), linked=False)  # noqa: S704 - our own file
    return bytes(answer.body).decode()


def shown(rig: Context, night: Night) -> dict[str, Any]:
    """What the templates need."""
    return {
        "night": night,
        "words_of": report_words,
        "charts": charts(rig, night),
    }


def charts(rig: Context, night: Night) -> list[Panel]:
    """The loss of the best job beside its baseline, and of jobs that failed."""
    curves = Curves()

    def read(job_id: str) -> dict[str, Curve]:
        return curves.read(run_dir(rig.settings.runs, job_id)) if job_id.isdigit() else {}

    found: list[Panel] = []
    if night.best is not None:
        others = [night.best.baseline.job] if night.best.baseline else []
        series = [line for job in dict.fromkeys([night.best.job, *others]) for line in _series(job, read(job))]
        found += _panel(f"Best: #{night.best.job} {night.best.name}", series)
    for ran in [one for one in night.ran if one.state is State.FAILED]:
        if len(found) > FAILED_CURVES:
            break
        found += _panel(f"Failed: #{ran.job} {ran.name}", _series(ran.job, read(ran.job)))
    return found


@cache
def style() -> str:
    """The file's style sheet: the page's palette, which ends at its first empty line, and the report's own."""
    palette, _, _ = (STATIC / "overnight.css").read_text().partition("\n\n")
    return f"{palette}\n{(STATIC / 'report.css').read_text()}"


@cache
def policy(*, framed: bool = False) -> str:
    """What the file may do: show itself in its own style, and nothing else. `framed`: as a <meta>, which knows no frames."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    said = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return said if framed else f"{said}; frame-ancestors 'none'"


def _series(job: str, found: dict[str, Curve]) -> list[Series]:
    names = [name for name in CURVES if found.get(name)]
    if "loss" in names and "train_loss" in names:
        names.remove("train_loss")
    return [Series(f"#{job} {name.replace('_', ' ')}", found[name]) for name in names]


def _panel(title: str, series: list[Series]) -> list[Panel]:
    drawn = chart(series)
    if drawn is None or not any(len(one.points) > 1 for one in series):
        return []
    told = [f"{s.label} from {number(s.points[0][1])} to {number(s.points[-1][1])} at step {number(s.points[-1][0])}" for s in series]  # fmt: skip
    return [Panel(title, "", drawn, "; ".join(told) + ".", tuple(one.label for one in series))]
