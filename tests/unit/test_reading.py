"""How a recipe reads a file of rows."""

from pathlib import Path

import pytest

from jobs.data import InvalidData
from jobs.model import Cause
from jobs.reading import usable, while_beating
from jobs.run import Interrupted, JobError, Order, Run
from jobs.rundir import RunDir, read_json


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(RunDir(tmp_path), Order(job_id="1", attempt=1, fence=1, resume=False, spec={}))


def test_rows_come_as_they_are_and_the_watchdog_hears_of_the_first(run: Run) -> None:
    rows = list(enumerate("abc", 1))
    assert list(while_beating(run, rows)) == rows
    told = read_json(run.folder.progress)
    assert told is not None and (told["phase"], told["step"]) == ("preparing", 1)


def test_a_stop_ends_the_reading_after_the_row_at_hand(run: Run) -> None:
    rows = while_beating(run, enumerate("abc", 1))
    assert next(rows) == (1, "a")
    run.stop_requested = True
    with pytest.raises(Interrupted):
        next(rows)


def test_a_bad_row_is_bad_input_that_names_the_field_and_the_place() -> None:
    with pytest.raises(JobError) as refused, usable("eval_data"):
        raise InvalidData(Path("rows.jsonl"), 7, "there is no answer")
    assert refused.value.cause is Cause.BAD_INPUT
    assert refused.value.message.startswith("eval_data: ") and "7" in refused.value.message
