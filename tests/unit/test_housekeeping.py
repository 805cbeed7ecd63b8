"""Which checkpoints are removed, and which never."""

from pathlib import Path
from typing import Any

import pytest
from until import until

from daemon.housekeeping import DAY_S, EVERY_S, Housekeeper, tidy
from daemon.settings import Settings
from jobs import checkpoints
from jobs.rundir import RunDir, write_json

NOW = 100 * DAY_S


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, disk_floor_bytes=1, keep_checkpoints_days=14)


def ended(settings: Settings, number: int, days_ago: float, **facts: Any) -> RunDir:
    """A run folder of a job that has two checkpoints and ended so many days ago."""
    folder = RunDir(settings.runs / str(number))
    folder.create()
    for step in (10, 20):
        (folder.checkpoints / f"step-{step:06d}").mkdir()
    (folder.checkpoints / "count").write_text("7")
    folder.adapter.mkdir()
    job = {"kind": "finetune", "state": "succeeded", "finished_at": NOW - days_ago * DAY_S, **facts}
    write_json(folder.state, job)
    return folder


def has_checkpoints(folder: RunDir) -> bool:
    return bool(checkpoints.sealed(folder.checkpoints))


def test_checkpoints_of_a_finetune_that_succeeded_long_ago_go_and_its_result_stays(settings: Settings) -> None:
    old, young = ended(settings, 1, 15), ended(settings, 2, 13)
    assert tidy(settings, now=NOW) == 1
    assert not has_checkpoints(old) and old.adapter.is_dir()
    assert has_checkpoints(young)


@pytest.mark.parametrize(
    "facts",
    [{"state": "failed"}, {"state": "cancelled"}, {"state": "queued", "finished_at": None}, {"kind": "command"}],
)
def test_what_a_retry_or_its_owner_may_need_stays(settings: Settings, facts: dict[str, Any]) -> None:
    folder = ended(settings, 1, 99, **facts)
    assert tidy(settings, now=NOW) == 0 and has_checkpoints(folder)
    folder.state.write_text("{half")
    assert tidy(settings, now=NOW) == 0 and has_checkpoints(folder)


def test_on_a_full_disk_they_go_after_a_day(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, disk_floor_bytes=10**18)
    yesterday, today = ended(settings, 1, 1.5), ended(settings, 2, 0.5)
    assert tidy(settings, now=NOW) == 1
    assert not has_checkpoints(yesterday) and has_checkpoints(today)


def test_it_looks_once_an_hour(settings: Settings) -> None:
    folder = ended(settings, 1, 15)
    keeper = Housekeeper(settings, now=NOW)
    keeper.look(NOW + EVERY_S - 1)
    assert has_checkpoints(folder)
    keeper.look(NOW + EVERY_S)
    until(lambda: not has_checkpoints(folder))
