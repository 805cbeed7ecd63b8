"""The owner's hand on a whole rig: jobs start in the order in which they were put, and a restart changes none of it."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from until import until

from api.cli import overnight
from jobs.model import State


class Owner:
    """Somebody at a terminal beside the rig."""

    def __init__(self, rig: Any):
        self.rig = rig

    def __call__(self, *args: str) -> str:
        address = json.loads((self.rig.settings.home / "api.json").read_text())
        token = (self.rig.settings.home / "token").read_text().strip()
        environment = {"OVERNIGHT_URL": address["url"], "OVERNIGHT_TOKEN": token}
        result = CliRunner(env=environment).invoke(overnight, list(args))
        assert result.exit_code == 0, result.output + self.rig.evidence()
        return result.output

    def waits_for_the_api(self) -> None:
        def answers() -> bool:
            try:
                address = json.loads((self.rig.settings.home / "api.json").read_text())
                os.kill(address["pid"], 0)
                return True
            except (FileNotFoundError, ProcessLookupError, ValueError):
                return False

        until(answers, within_s=30.0, evidence=self.rig.evidence)


@pytest.fixture
def owner(make_rig: Any) -> Iterator[Owner]:
    """A rig with one slot."""
    owner = Owner(make_rig(slots="cpu:1"))
    owner.waits_for_the_api()
    yield owner


def test_jobs_start_in_the_order_in_which_they_were_put_also_after_a_restart(owner: Owner) -> None:
    rig = owner.rig
    owner("pause")
    ids = [rig.submit(kind="command", argv=["true"], window="any") for _ in range(5)]
    owner("move", ids[4], ids[3], "--before", ids[0])
    owner("hold", ids[1])
    owner("edit", ids[2], "--priority", "high")
    assert rig.stop() == 0
    (rig.settings.home / "api.json").unlink(missing_ok=True)
    rig.start()
    owner.waits_for_the_api()
    rows = [line.split()[1] for line in owner("ls", "--queued").splitlines()[1:]]
    assert rows == [ids[2], ids[4], ids[3], ids[0], ids[1]]
    assert "the rig is paused" in owner("show", ids[2])
    assert {rig.job(job_id).state for job_id in ids} == {State.QUEUED}, "a pause outlives the daemon"
    owner("resume")
    for job_id in (ids[2], ids[4], ids[3], ids[0]):
        assert rig.until_ended(job_id).state is State.SUCCEEDED
    started = {job_id: rig.job(job_id).started_at for job_id in ids}
    assert sorted((i for i in ids if i != ids[1]), key=lambda i: started[i] or 0.0) == rows[:4]
    assert started[ids[1]] is None and "held until it is released" in owner("show", ids[1])
    owner("release", ids[1])
    assert rig.until_ended(ids[1]).state is State.SUCCEEDED


def test_a_slot_is_freed_now_and_its_job_goes_on_when_the_slot_may_again(owner: Owner) -> None:
    rig = owner.rig
    job_id = rig.count(100, 0.05, window="any")
    rig.until_printed(job_id, "start 0")
    assert "was asked to save its work and give way" in owner("pause", "0", "--now")
    rig.until(job_id, State.QUEUED)
    assert "CPU slot 0 is paused" in owner("ls", "--queued")
    owner("resume", "0")
    job = rig.until_ended(job_id)
    assert (job.state, job.attempt, len(job.attempts)) == (State.SUCCEEDED, 1, 2)
