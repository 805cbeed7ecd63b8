"""A sweep over a pipeline: what it makes, in which order, who waits for whom, and what is said about a wrong one."""

from typing import Any

import pytest

from daemon.store import new_job
from daemon.store.submission import member
from daemon.sweep_table import Table, table
from jobs.model import End, Job, Outcome, State
from jobs.pipeline import numbered
from jobs.spec import InvalidSpec, parse
from jobs.stages import StagedExpansion, expand_stages
from jobs.sweep import MAX_SWEEP, Sweep

TRAIN = {"id": "train", "kind": "finetune", "name": "keeper", "model": "m", "data": "/d", "lora": {"r": 4}}
TEST = {"id": "test", "kind": "evaluate", "model": "m", "adapter": "job:train", "data": "/held"}
BASE = {"id": "base", "kind": "evaluate", "model": "m", "data": "/held"}
REPORT = {"kind": "command", "argv": ["true"], "after": ["test", "base"]}


def swept(sweep: Any, *jobs: Any) -> StagedExpansion:
    return expand_stages(jobs or (TRAIN, TEST, BASE), sweep, read_csv=str)


def numbered_from(first: int, found: StagedExpansion) -> list[Any]:
    return [numbered(parse(document), first) for document in found.documents]


def refusal(sweep: Any, *jobs: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refused:
        swept(sweep, *jobs)
    return [(error.field, error.message) for error in refused.value.errors]


def test_every_point_has_its_own_jobs_and_what_it_does_not_change_is_there_once_and_first() -> None:
    found = swept({"train.learning_rate": [1e-4, 3e-4]})
    base, *points = numbered_from(7, found)
    assert (base.kind, base.adapter, base.name) == ("evaluate", None, "")
    assert [(spec.kind, spec.dependencies) for spec in points] == [
        ("finetune", ()), ("evaluate", ("8",)), ("finetune", ()), ("evaluate", ("10",)),
    ]  # fmt: skip
    assert [spec.learning_rate for spec in points[::2]] == [1e-4, 3e-4]
    assert [spec.name for spec in points[:2]] == ["keeper learning_rate=0.0001", "evaluate m learning_rate=0.0001"]
    assert (found.facts.stages, found.facts.once, found.facts.axes) == (("train", "test"), 1, ("train.learning_rate",))
    assert TRAIN["lora"] == {"r": 4}


def test_whatever_waits_for_a_changed_job_is_made_for_every_point() -> None:
    found = swept({"train.lora.r": [8, 16]}, TRAIN, TEST, BASE, REPORT)
    assert found.facts.stages == ("train", "test", "job 4")
    reports = [spec for spec in numbered_from(1, found) if spec.kind == "command"]
    assert [spec.after for spec in reports] == [("3", "1"), ("6", "1")]


def test_later_stages_alone_can_be_swept() -> None:
    found = swept({"test.limit": [1, 2]})
    train, base, *tests = numbered_from(1, found)
    assert (train.kind, base.kind, found.facts.stages) == ("finetune", "evaluate", ("test",))
    assert [(spec.limit, spec.adapter) for spec in tests] == [(1, "job:1"), (2, "job:1")]


def test_two_axes_of_one_name_are_told_apart_in_names() -> None:
    found = swept({"train.max_length": [64], "test.max_length": [128]})
    assert found.documents[1]["name"] == "keeper train.max_length=64 test.max_length=128"
    assert [document["max_length"] for document in found.documents[1:]] == [64, 128]


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("learning_rate", "begins with the id of the job that it changes, as in train.learning_rate"),
        ("trian.learning_rate", "one of train, test, base; did you mean 'train'?"),
        ("train.lerning_rate", "is not a field of a finetune document; did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_axis_is_told(axis: str, words: str) -> None:
    [(field, message)] = refusal({axis: [1]})
    assert field == f"sweep.{axis}" and words in message


def test_a_wrong_value_is_told_where_the_body_has_it() -> None:
    found = swept({"train.learning_rate": [-1]})
    assert found.field_of(1, "learning_rate") == "sweep.train.learning_rate"
    assert found.field_of(2, "data") == "jobs.1.data"
    assert found.field_of(0, "model") == "jobs.2.model"


def test_it_makes_no_more_jobs_than_a_sweep_may() -> None:
    [(field, message)] = refusal({"train.seed": list(range(MAX_SWEEP // 2))})
    assert field == "sweep" and "makes 10001 jobs" in message


# -- the table ----------------------------------------------------------------------------------------------------------


def ended(job: Job, **metrics: float) -> Job:
    outcome = Outcome(end=End.SUCCEEDED, metrics=metrics)
    return job.__class__(**{**job.__dict__, "state": State.SUCCEEDED, "outcome": outcome})


def studied(*metrics: dict[str, float] | None) -> Table:
    """The table of a sweep over two points whose jobs ended with these metrics (None: still waits)."""
    found = swept({"train.learning_rate": [1e-4, 3e-4], "goal": {"maximize": "accuracy"}})
    sweep = Sweep(**dict(found.facts), id="5", last="9", created_at=0.0)
    made = zip(found.documents, found.points, range(5, 10), strict=True)
    jobs = [member(new_job(numbered(parse(document), 5), number, 0.0), "5", found.facts, point) for document, point, number in made]  # fmt: skip
    told = [job if each is None else ended(job, **each) for job, each in zip(jobs, metrics, strict=True)]
    return table(sweep, told, lambda job: {})


def test_a_row_is_a_point_with_what_all_of_its_jobs_tell() -> None:
    made = studied({"accuracy": 0.1}, {"train_loss": 2.0}, {"accuracy": 0.5}, {"train_loss": 1.0}, {"accuracy": 0.7})
    assert [(row.job.id, row.value, sorted(row.stages)) for row in made.rows] == [
        ("9", 0.7, ["test", "train"]), ("7", 0.5, ["test", "train"]), ("5", 0.1, []),
    ]  # fmt: skip
    assert made.rows[0].metrics == {"train_loss": 1.0, "accuracy": 0.7}
    assert made.best is not None and made.best.job.point == {"train.learning_rate": 3e-4}


def test_the_last_stage_that_tells_the_goals_metric_is_the_one_that_counts() -> None:
    made = studied({}, {"accuracy": 0.9}, None, {"accuracy": 0.8}, {"accuracy": 0.7})
    rows = [(row.job.id, row.value, row.job.state) for row in made.rows]
    assert rows[0] == ("9", 0.7, State.SUCCEEDED)
    assert ("7", None, State.QUEUED) in rows


def test_a_point_stands_where_its_unfinished_job_stands() -> None:
    made = studied({"accuracy": 0.1}, {"train_loss": 2.0}, None, None, None)
    assert [(row.job.id, row.job.state) for row in made.rows][1:] == [("7", State.QUEUED), ("8", State.QUEUED)]
    assert made.best is not None and made.best.job.id == "5"
