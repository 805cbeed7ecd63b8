"""How long somebody else used a GPU beside our job, told from the samples alone."""

from pathlib import Path

import pytest

from daemon.contention import LASTS_S, MORE_MIB, SHARE_PERCENT, contended_s
from daemon.energy import Reading
from daemon.recorder import Recorder
from daemon.samples import GpuProcess, Identity, Sample
from daemon.telemetry import summarize

T0 = 1_800_000_000
GPU = "GPU-1"
GIB = 1 << 30


def readings(*spans: tuple[int, int | None, int | None]) -> list[Reading]:
    """One a second: for so many seconds, others hold so many MiB and have such a share."""
    rows = [(mib, share) for seconds, mib, share in spans for _ in range(seconds)]
    return [
        Reading(T0 + n, None, None, None, None, None, foreign_mib=mib, foreign_util=share)
        for n, (mib, share) in enumerate(rows)
    ]


def told(*spans: tuple[int, int | None, int | None]) -> float | None:
    rows = readings(*spans)
    return contended_s(rows, T0, T0 + len(rows))


def test_memory_that_somebody_takes_while_the_job_runs_counts_as_long_as_it_is_held() -> None:
    assert told((60, 0, None), (45, 6_000, None), (60, 0, None)) == 45


def test_memory_that_was_held_before_the_job_began_does_not_count() -> None:
    assert told((100, 6_000, None)) == 0
    assert told((50, 6_000, None), (50, 6_000 + MORE_MIB, None)) == 50


def test_a_share_of_the_multiprocessors_counts_with_any_memory() -> None:
    assert told((20, 100, 0), (40, 100, SHARE_PERCENT + 1), (20, 100, SHARE_PERCENT)) == 40


def test_who_only_looks_in_does_not_count() -> None:
    assert told((60, 0, None), (int(LASTS_S) - 1, 6_000, 90), (60, 0, None)) == 0


def test_whose_processes_they_are_may_not_be_known() -> None:
    assert told((60, None, None)) is None
    assert contended_s([], T0, T0 + 9) is None


def test_nothing_is_made_up_for_a_time_without_samples() -> None:
    rows = [*readings((10, 0, None), (40, 6_000, None))]
    assert contended_s(rows, T0, T0 + 1_000) == 39 + 10  # the longest step for which a sample stands


def test_a_jobs_summary_tells_who_was_beside_it_and_what_its_own_processes_held(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    recorder.save(now=T0)
    ours = GpuProcess(10, 8 * GIB, "C", "python", "own")
    small, game = GpuProcess(11, 1 * GIB, "C", "ollama", "other"), GpuProcess(12, 6 * GIB, "G", "game", "other")
    for n in range(120):
        there = [ours, *([small, game] if n >= 60 else [])]
        recorder.add(GPU, Sample(T0 + n, own_mib=8192, foreign_mib=7168 if n >= 60 else 0))
        if n % 5 == 0:
            recorder.see(T0 + n, GPU, there)
    recorder.save(now=T0 + 120)
    usage = summarize(tmp_path, [GPU], T0 + 0.5, T0 + 119.5)
    assert (usage.peak_own_memory_bytes, usage.contended_s) == (8 * GIB, pytest.approx(59, abs=1))
    assert usage.contended_by == "game (pid 12)"
    alone = summarize(tmp_path, [GPU], T0 + 0.5, T0 + 50.5)
    assert (alone.contended_s, alone.contended_by) == (0, None)


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    for n, (name, size) in enumerate([("a", 1), ("a", 3), ("a", 2), ("b", 1)]):
        recorder.see(T0 + 5 * n, GPU, [GpuProcess(10, size * GIB, "C", name, "other")])
        recorder.save(now=T0 + 5 * n)  # each look is written by itself: they must come together
    rows = recorder._database.execute("SELECT ts - ?, last_ts - ?, name, mem_mib FROM proc ORDER BY ts", (T0, T0))
    assert rows.fetchall() == [(0, 10, "a", 3072), (15, 15, "b", 1024)]
