"""What the GPUs' pages draw: jobs and faults at their place in the time."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from long_past import remember

from api import gpu_panel
from daemon.rig import Slot
from daemon.samples import SlotNow
from daemon.slot_past import Past, past
from daemon.telemetry import GpuEvent
from jobs.model import Attempt, Cause, End, Job

NOW = 1_795_000_000.0
DAY_S = 86_400.0
GPU = Slot("GPU-0", "NVIDIA GeForce RTX 3090", 0, 24 << 30)
UTC = ZoneInfo("UTC")
CARD = SlotNow(name=GPU.name, index=0, power_limit_w=350.0, memory_total_bytes=24 << 30)


def ran(number: int, start: float, end: float | None, *, how: End | None = End.SUCCEEDED, cause: Cause | None = None, rig: str = "rig") -> Job:  # fmt: skip
    run = Attempt(number=1, fence=1, rig=rig, slots=(GPU.id,), started_at=NOW + start, ended_at=None if end is None else NOW + end, end=how, cause=cause)  # fmt: skip
    return Job(id=str(number), kind="command", name=f"job {number}", spec={}, created_at=0.0, rank=0.0, attempts=(run,))


def view(found: Past, *jobs: Job, events: Any = (), now: SlotNow | None = CARD) -> gpu_panel.View:
    return gpu_panel.view(found, now, jobs, events, slot=GPU.id, rig="rig", at=NOW, zone=UTC)


def test_jobs_stand_where_they_ran_and_how_they_ended() -> None:
    seen = view(
        Past(NOW - 1000, NOW, 10),
        ran(1, -2000, -800),
        ran(2, -500, -400, how=End.FAILED, cause=Cause.NAN),
        ran(3, -100, None, how=None),
        ran(4, -300, -200, rig="another"),
        ran(5, -3000, -2000),
    )
    assert [(block.x, block.width, block.state) for block in seen.blocks] == [
        (0.0, 20.0, "succeeded"),
        (50.0, 10.0, "failed"),
        (90.0, 10.0, "running"),
    ]
    assert [stay.job.id for stay in seen.stays] == ["3", "2", "1"]
    assert seen.busy_ratio == 0.4
    assert "failed: training diverged" in seen.blocks[1].text


def test_very_many_jobs_become_few_blocks_and_a_failure_among_them_is_seen() -> None:
    jobs = [ran(n, -n * 10.0, -n * 10.0 + 8, how=End.FAILED if n == 500 else End.SUCCEEDED) for n in range(1, 1000)]
    seen = view(Past(NOW - 10_000, NOW, 10), *jobs)
    assert len(seen.blocks) <= 2 * gpu_panel.MOST_BLOCKS
    assert [block.state for block in seen.blocks].count("failed") == 1


def test_a_limit_is_a_line_and_the_scale_reaches_it(home: Path) -> None:
    remember(home, [GPU], NOW - 2 * DAY_S, NOW, lambda slot, ts: 0.4)
    panels = {panel.key: panel for panel in view(past(home, GPU.id, NOW - DAY_S, NOW)).panels}
    assert list(panels) == ["util", "power", "temp", "memory", "clock"]
    limit = panels["power"].limit
    assert limit is not None and 0 < limit.y < 50
    assert "limit 350" in panels["power"].alt
    assert panels["util"].limit is None and panels["util"].peaks.count("Z") == 0


def test_peaks_are_an_area_for_each_piece_between_gaps(home: Path) -> None:
    remember(home, [GPU], NOW - DAY_S, NOW, lambda slot, ts: None if NOW - 50_000 < ts < NOW - 30_000 else 0.4)
    found = past(home, GPU.id, NOW - DAY_S, NOW)
    [panel, *_] = view(found).panels
    assert panel.line.count("M") == 2 and panel.peaks.count("M") == 2
    assert len(view(found).gaps) == 1 and "1 gap without readings" in panel.alt


def test_a_card_without_readings_of_power_has_no_chart_of_it(home: Path) -> None:
    remember(home, [GPU], NOW - DAY_S, NOW, lambda slot, ts: 0.4)
    found = past(home, GPU.id, NOW - DAY_S, NOW)
    blind = replace(found, pieces=[piece._replace(power_mw=None, power_max_mw=None, sm_mhz=None) for piece in found.pieces])  # fmt: skip
    assert [panel.key for panel in view(blind).panels] == ["util", "temp", "memory"]


def test_faults_stand_at_their_moment_with_their_meaning() -> None:
    events = [
        GpuEvent(NOW - 500, GPU.id, "kernel", "xid", 79, "NVRM: Xid 79", job="7"),
        GpuEvent(NOW - 250, GPU.id, "nvml", "recovered", None, ""),
        GpuEvent(NOW - 100, GPU.id, "kernel", "xid", 31, "NVRM: Xid 31"),
    ]
    grave, back, soft = view(Past(NOW - 1000, NOW, 10), events=events).faults
    assert (grave.x, grave.grave, grave.job) == (50.0, True, "7") and "fallen off the bus" in grave.title
    assert (back.title, back.grave) == ("It answers again", False)
    assert soft.title.startswith("XID 31") and not soft.grave


def test_a_slow_down_is_a_row_with_its_share(home: Path) -> None:
    remember(home, [GPU], NOW - DAY_S, NOW, lambda slot, ts: 0.95)
    seen = view(past(home, GPU.id, NOW - DAY_S, NOW))
    [one] = seen.slowed
    assert one.name == "power_cap" and "33" in one.text and {bar.height for bar in one.bars} <= {33, 66, 100}
    assert "its power limit" in gpu_panel.busiest(seen.past)
