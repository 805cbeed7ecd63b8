"""Where the first screen and the report lead, and the lanes that both draw."""

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlparse

from unit.test_night import HOUR, SINCE, UNTIL, job, told, whole

from api import night_lanes, night_links
from api.night_panel import tiles
from daemon.night.build import night
from daemon.night.model import Baseline, Best
from jobs.model import Cause, State


def asked(link: str) -> dict[str, list[str]]:
    """The filters of a link to the jobs."""
    address = urlparse(link)
    assert address.path == "/jobs"
    return parse_qs(address.query)


def best(baseline: Baseline | None) -> Best:
    known: dict[str, Any] = {"name": "b", "kind": "finetune", "metric": "loss", "value": 1.0, "lower_is_better": True}
    return Best(job="7", sweep="", baseline=baseline, change=None, better=None, **known)


def test_what_ended_in_the_night_is_asked_for_from_its_begin_and_of_one_that_is_over_to_its_end() -> None:
    found = night(told(whole(1)))
    since = str(int(SINCE))
    assert asked(tiles(found, {})[0].href) == {"state": ["failed"], "since": [since]}
    over = replace(found, over=True, until=UNTIL - 0.5)
    assert asked(tiles(over, {})[1].href) == {"state": ["succeeded"], "since": [since], "until": [str(int(UNTIL))]}


def test_what_runs_and_waits_is_asked_for_as_it_is_now() -> None:
    found = night(told(whole(1)))
    assert [asked(tile.href) for tile in tiles(found, {})[2:]] == [{"state": ["running"]}, {"state": ["queued"]}]
    assert [tile.href for tile in tiles(replace(found, over=True), {})[2:]] == ["", ""], "of then nobody can be asked"


def test_a_group_leads_to_its_failures_by_cause_and_sweep() -> None:
    failed = [job(n, 0, 1, cause=Cause.OOM_GPU) for n in (1, 2)] + [
        job(n, 2, 3, cause=Cause.OOM_GPU, sweep="3") for n in (3, 4)
    ]
    found = night(told(*failed))
    links = [asked(night_links.group(found, group)[0]) for group in found.needs_you]
    common = {"state": ["failed"], "cause": ["oom_gpu"], "since": [str(int(SINCE))]}
    assert sorted(links, key=str) == [{**common, "sweep": ["3"]}, {**common, "sweep": ["none"]}]
    alone = night(told(job(1, 0, 1, cause=Cause.NAN)))
    assert night_links.group(alone, alone.needs_you[0]) == ("/jobs/1", "Open job 1")


def test_a_comparison_has_the_baseline_first_and_is_none_without_another_run() -> None:
    assert (
        night_links.compare(best(Baseline(job="3", name="a", value=2.0, why="tagged baseline"))) == "/compare?ids=3,7"
    )
    assert night_links.compare(best(Baseline(job="7", name="b", value=2.0, why="before training"))) == ""
    assert night_links.compare(best(None)) == ""


def test_a_bar_is_never_too_thin_to_be_seen_and_stays_in_its_lane() -> None:
    found = night(told(job(1, 0, 0.001), job(2, 9.999, 10, cause=Cause.NAN)))
    line = night_lanes.timeline(found)
    assert line is not None
    first, last = line.rows[0].bars
    assert float(first.width) == float(last.width) == night_lanes.LEAST_WIDTH
    assert float(last.x) + float(last.width) <= 100.0
    assert [bar.href for bar in line.rows[0].bars] == ["/jobs/1", "/jobs/2"]
    assert line.shown == (("succeeded", "done"), ("failed", "failed"))
    assert "idle: " in line.rows[0].idle[0].title and line.rows[0].idle[0].href == ""


def test_a_bar_of_many_jobs_leads_to_those_that_ended_in_it() -> None:
    found = night(told(*(job(n, n / 100, n / 100 + 0.005) for n in range(1, 900))))
    line = night_lanes.timeline(found)
    assert line is not None
    [bar] = [bar for bar in line.rows[0].bars if "jobs" in bar.title][:1]
    link = asked(bar.href)
    assert link["state"] == [str(State.SUCCEEDED)] and int(link["since"][0]) >= SINCE
    assert int(link["until"][0]) <= UNTIL and not line.rows[0].bars[-1].href.startswith("//")


def test_no_run_no_timeline() -> None:
    assert night_lanes.timeline(night(told(job(1)))) is None
    assert HOUR == 3600.0
