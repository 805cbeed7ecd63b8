"""The night as a message: in a few lines, in a mail, and without a name."""

from dataclasses import replace
from typing import Any

import pytest

from daemon.night.model import Baseline, Best, Colour, Counts, Group, Night, Ran, Trouble, Verdict
from daemon.notify.message import SHORT_BYTES
from daemon.notify.nights import report_of
from jobs.model import Cause, State

NOW = 1_795_003_200.0
FAILED = Group(cause=Cause.OOM_GPU, words="out of GPU memory", jobs=("141", "142"), names=("my-project r=64", "b"), line="CUDA out of memory on /home/me/x", line_of="141", hint="Half the batch.")  # fmt: skip
BEST = Best(job="150", name="my-project r=32", kind="finetune", metric="eval_loss", value=1.108, lower_is_better=True, baseline=Baseline(job="1", name="base", value=1.342, why="tagged baseline"), change=-0.174, better=True)  # fmt: skip


def night(**facts: Any) -> Night:
    return Night(**{
        "date": "2026-11-24", "rig": "rig", "zone": "Europe/Berlin", "since": NOW - 9 * 3600, "until": NOW, "made_at": NOW,
        "over": False, "began_by": "window", "verdict": Verdict(colour=Colour.RED, sentence="2 of 14 failed."),
        "counts": Counts(failed=2, done=12, running=1, queued=3), "needs_you": (FAILED,), "best": BEST, **facts,
    })  # fmt: skip


def test_a_night_is_a_title_and_a_few_lines() -> None:
    report = report_of(night())
    assert report is not None
    assert report.title == "2 of 14 failed, best 1.108 (-17 %)"
    assert len(report.text.encode()) <= SHORT_BYTES
    assert "FAILED 2 x out of GPU memory" in report.text
    assert (report.needs_you, report.date) == (True, "2026-11-24")


def test_a_mail_has_the_decisive_line_and_what_ran() -> None:
    ran = Ran(job="150", name="my-project r=32", kind="finetune", state=State.SUCCEEDED, start=NOW - 60, end=NOW, attempts=1, metric="eval_loss", value=1.108)  # fmt: skip
    report = report_of(night(ran=(ran,), more=7))
    assert report is not None
    assert "CUDA out of memory on /home/me/x" in report.long_text
    assert "   150  succeeded  my-project r=32  eval_loss 1.108" in report.long_text


def test_a_public_channel_gets_numbers_and_no_name_or_line() -> None:
    report = report_of(night(troubles=(Trouble(kind="gpu", words="GPU 0 of my-host is out of service: XID 79"),)))
    assert report is not None
    assert "FAILED 2 x out of GPU memory: job 141" in report.bare_text
    assert "BEST job 150 eval_loss 1.108" in report.bare_text
    assert not [word for word in ("my-project", "/home/me", "my-host") if word in report.bare_text + report.title]


@pytest.mark.parametrize("failed", [0, 2])
def test_it_wants_a_person_only_where_one_is_needed(failed: int) -> None:
    report = report_of(night(needs_you=(FAILED,) if failed else (), counts=Counts(failed=failed, done=3)))
    assert report is not None
    assert report.needs_you is bool(failed)


def test_a_night_in_which_nothing_ran_is_no_message() -> None:
    empty = night(counts=Counts(queued=3), needs_you=(), best=None)
    assert report_of(empty) is None
    assert report_of(replace(empty, troubles=(Trouble(kind="disk", words="nothing starts"),))) is not None
