"""What a job has taken, as its own process can tell."""

from pathlib import Path

import pytest

from jobs.rundir import RunDir, write_json
from jobs.spent import Meter, Spent

ATTEMPTS = [{"started_at": 100.0, "ended_at": 160.0, "usage": {"energy_j": 1000.0}}, {"started_at": 200.0, "ended_at": None, "usage": {}}]  # fmt: skip


class Gpu:
    """A GPU's counter that goes on with every look."""

    def __init__(self) -> None:
        self.joules = 0.0

    def __call__(self) -> float | None:
        self.joules += 50.0
        return self.joules


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    folder = RunDir(tmp_path)
    write_json(folder.state, {"attempts": ATTEMPTS})
    return folder


def test_earlier_attempts_count(folder: RunDir) -> None:
    assert Meter(folder, [Gpu()]).read(now=230.0) == Spent(time_s=90.0, energy_j=1050.0)


def test_energy_that_was_not_counted_everywhere_is_not_told(folder: RunDir) -> None:
    assert Meter(folder, [lambda: None]).read(now=230.0) == Spent(time_s=90.0, energy_j=None)
    write_json(folder.state, {"attempts": [{**ATTEMPTS[0], "usage": {}}, ATTEMPTS[1]]})
    assert Meter(folder, [Gpu()]).read(now=230.0).energy_j is None


def test_by_hand_there_is_no_record_and_without_a_gpu_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OVERNIGHT_GPU_UUID", raising=False)
    assert Meter(RunDir(tmp_path)).read(now=1.0) == Spent(time_s=None, energy_j=None)
