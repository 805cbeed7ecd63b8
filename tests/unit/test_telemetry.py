"""Telemetry between the sampler's rows and the figures on a job: storage, summaries, series, the live view."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import telemetry
from daemon.energy import Reading, tally
from daemon.recorder import INSERT_MINUTE, PRUNING, Recorder
from daemon.samples import STATES, Identity, Sample, SlotNow, database_path, now_path, publish, summarize_minute
from daemon.telemetry import events, latest, series, summarize

T0 = 1_800_000_000  # a whole minute
GPU = "GPU-1"
WATTS = 300
LOST = STATES.index("lost")


def sample(second: int, *, watts: int | None = WATTS, energy_j: float | None = None, **readings: int) -> Sample:
    """A second of a GPU that draws 300 W all the time; its counter grows in step."""
    counted = energy_j if energy_j is not None else 1000 + WATTS * second
    values = {"util": 90, "mem_mib": 8192, "temp_c": 70, "sm_mhz": 1700, **readings}
    return Sample(T0 + second, power_mw=watts and watts * 1000, energy_mj=int(counted * 1000), **values)


def record(home: Path, samples: Iterable[Sample], *, slot: str = GPU, saved: bool = True) -> Recorder:
    """Samples in the database, or not saved yet and in `gpu-now.json` only."""
    recorder = Recorder(home)
    recorder.know(Identity(slot, "NVIDIA GeForce RTX 3090"))
    recorder.save(now=T0)
    last = T0
    for row in samples:
        recorder.add(slot, row)
        last = row.ts
    if saved:
        recorder.save(now=last + 1)
    publish(now_path(home), now_file(at=last, unsaved=recorder.unsaved()))
    return recorder


def now_file(*, at: float = T0, **changes: object) -> dict[str, object]:
    slots = {GPU: asdict(SlotNow("NVIDIA GeForce RTX 3090", 0, utilization_ratio=0.9, energy_j=12.5))}
    return {"at": at, "pid": 1, "source": "nvml", "problem": None, "slots": slots, "unsaved": {}, **changes}


def test_energy_is_the_counters_difference_between_start_and_end(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(100)))
    usage = summarize(tmp_path, [GPU], T0 + 10.25, T0 + 70.25)
    assert usage.energy_j == pytest.approx(60 * WATTS, rel=1e-6)
    assert usage.energy_method == "counter"
    assert usage.energy_deviation == pytest.approx(0, abs=1e-6)
    assert (usage.gpu_s, usage.coverage) == (60, 1)


def test_counters_read_at_the_edges_are_believed(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(20)))
    usage = summarize(tmp_path, [GPU], T0 + 5, T0 + 15, energy_start={GPU: 100.0}, energy_end={GPU: 3142.0})
    assert (usage.energy_j, usage.energy_method) == (3042.0, "counter")


def test_a_counter_that_lies_is_seen(tmp_path: Path) -> None:
    record(tmp_path, [sample(second, watts=150) for second in range(30)])
    usage = summarize(tmp_path, [GPU], T0 + 5, T0 + 25)
    assert usage.energy_deviation == pytest.approx(1.0)


def test_the_last_seconds_of_a_short_job_count_before_they_are_saved(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(5)), saved=False)
    usage = summarize(tmp_path, [GPU], T0 + 1, T0 + 4.9)
    assert usage.energy_j == pytest.approx(3.9 * WATTS)
    assert usage.peak_memory_bytes == 8 << 30
    assert usage.coverage == 1


def test_a_row_that_is_saved_and_published_counts_once(tmp_path: Path) -> None:
    rows = [sample(0, util=0), sample(1, util=100)]
    record(tmp_path, rows)
    publish(now_path(tmp_path), now_file(unsaved={GPU: [rows[1]]}))
    assert summarize(tmp_path, [GPU], T0, T0 + 2).utilization_mean == 0.5


def test_a_job_shorter_than_a_second_has_energy(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(5)))
    usage = summarize(tmp_path, [GPU], T0 + 2.6, T0 + 3.0)
    assert usage.energy_j == pytest.approx(0.4 * WATTS)
    assert usage.coverage == 1
    assert usage.utilization_mean is None


def test_after_a_driver_reload_power_bridges_the_step_and_the_method_is_mixed(tmp_path: Path) -> None:
    before = [sample(second) for second in range(10)]
    after = [sample(second, energy_j=WATTS * (second - 10)) for second in range(10, 20)]
    record(tmp_path, before + after)
    usage = summarize(tmp_path, [GPU], T0 + 1, T0 + 19)
    assert usage.energy_j == pytest.approx(18 * WATTS)
    assert usage.energy_method == "mixed"


def test_a_reload_is_seen_although_the_counter_has_overtaken_its_old_value(tmp_path: Path) -> None:
    rows = [sample(0, energy_j=50), sample(1, energy_j=0), sample(2, energy_j=WATTS)]
    record(tmp_path, rows)
    usage = summarize(tmp_path, [GPU], T0 + 0.5, T0 + 2.5, energy_start={GPU: 50.0}, energy_end={GPU: 300.0})
    assert usage.energy_j == pytest.approx(2 * WATTS)


def test_a_gpu_without_a_counter_is_integrated(tmp_path: Path) -> None:
    record(tmp_path, [sample(second)._replace(energy_mj=None) for second in range(20)])
    usage = summarize(tmp_path, [GPU], T0 + 2, T0 + 18)
    assert usage.energy_j == pytest.approx(16 * WATTS)
    assert usage.energy_method == "integral"


def test_the_counter_bridges_a_gap_and_coverage_tells_of_it(tmp_path: Path) -> None:
    record(tmp_path, [sample(second) for second in range(200) if not 50 <= second < 150])
    usage = summarize(tmp_path, [GPU], T0, T0 + 200)
    assert usage.energy_j == pytest.approx(200 * WATTS)
    assert usage.coverage == pytest.approx(0.5, abs=0.01)


def test_power_is_not_extrapolated_over_a_gap(tmp_path: Path) -> None:
    rows = [sample(second)._replace(energy_mj=None) for second in range(200) if not 50 <= second < 150]
    record(tmp_path, rows)
    assert summarize(tmp_path, [GPU], T0, T0 + 200).energy_j == pytest.approx(100 * WATTS, rel=0.02)


def test_a_cpu_slot_has_no_energy(tmp_path: Path) -> None:
    record(tmp_path, [Sample(T0 + second, util=50, mem_mib=1024) for second in range(10)], slot="cpu:0")
    usage = summarize(tmp_path, ["cpu:0"], T0 + 1, T0 + 9)
    assert (usage.energy_j, usage.energy_method, usage.energy_deviation) == (None, None, None)
    assert (usage.gpu_s, usage.utilization_mean, usage.coverage) == (8, 0.5, 1)


def test_a_gang_adds_time_and_energy_and_takes_the_fullest_gpu(tmp_path: Path) -> None:
    record(tmp_path, [sample(second, mem_mib=4096, util=40) for second in range(10)])
    record(tmp_path, [sample(second, temp_c=83, util=60) for second in range(10)], slot="GPU-2")
    usage = summarize(tmp_path, [GPU, "GPU-2"], T0 + 1, T0 + 9)
    assert usage.gpu_s == 16
    assert usage.energy_j == pytest.approx(16 * WATTS)
    assert (usage.peak_memory_bytes, usage.temperature_max_c, usage.utilization_mean) == (8 << 30, 83, 0.5)


def test_a_lost_gpus_seconds_are_not_covered(tmp_path: Path) -> None:
    record(tmp_path, [sample(s) if s < 5 else Sample(T0 + s, state=LOST) for s in range(100)])
    assert summarize(tmp_path, [GPU], T0, T0 + 100).coverage == pytest.approx(0.07, abs=0.01)


@pytest.mark.parametrize("content", [None, b"", b"not a database, not a database, not a database" * 100])
def test_without_a_readable_database_there_is_usage_without_figures(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        database_path(tmp_path).write_bytes(content)
    usage = summarize(tmp_path, [GPU], T0, T0 + 60)
    assert (usage.gpu_s, usage.energy_j, usage.coverage, usage.peak_memory_bytes) == (60, None, 0, None)
    assert series(tmp_path, GPU, T0, T0 + 60) == []


@given(
    kept=st.sets(st.integers(0, 299), min_size=2),
    cuts=st.lists(st.floats(0, 300, allow_nan=False), min_size=2, max_size=2, unique=True),
)
def test_counted_energy_does_not_depend_on_which_samples_were_taken(kept: set[int], cuts: list[float]) -> None:
    start, end = sorted(cuts)
    readings = [Reading(second + 0.5, 90, 1, 70, WATTS * 1000, 1000 * WATTS * second) for second in sorted(kept)]
    first, last = readings[0].at - 2, readings[-1].at + 2  # an edge sample stands for two seconds
    known_s = min(end, last) - max(start, first)
    assert tally(readings, start, end).joules == pytest.approx(max(0, known_s) * WATTS, abs=0.01)


def test_a_short_series_is_of_seconds_with_averages_and_peaks(tmp_path: Path) -> None:
    record(tmp_path, [sample(second, util=second % 2 * 100) for second in range(120)])
    points = series(tmp_path, GPU, T0, T0 + 120, points=12)
    assert [point["at"] for point in points] == list(range(T0, T0 + 120, 10))
    assert {(p["utilization_mean"], p["utilization_max"], p["power_max_w"]) for p in points} == {(0.5, 1.0, 300)}
    assert points[0]["memory_max_bytes"] == 8 << 30
    assert points[0]["sm_clock_mean_hz"] == 1_700_000_000


def test_a_series_contains_what_is_not_saved_yet(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(30)), saved=False)
    assert len(series(tmp_path, GPU, T0, T0 + 60)) == 30


def test_a_long_series_is_of_minutes_and_keeps_the_peaks(tmp_path: Path) -> None:
    rows = [sample(second, mem_mib=24_000 if second == 3000 else 8192) for second in range(0, 4 * 3600, 5)]
    record_all(tmp_path, rows)
    points = series(tmp_path, GPU, T0, T0 + 4 * 3600, points=60)
    assert len(points) == 60
    assert max(point["memory_max_bytes"] for point in points) == 24_000 << 20
    assert points[0]["utilization_mean"] == pytest.approx(0.9)


def record_all(home: Path, rows: list[Sample]) -> Recorder:
    """As the sampler does it: saved every few rows."""
    recorder = Recorder(home)
    recorder.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    for row in rows:
        recorder.add(GPU, row)
        if row.ts % 60 == 0:
            recorder.save(now=row.ts + 1)
    recorder.save(now=rows[-1].ts + 60)
    return recorder


def test_a_minutes_energies_add_up_to_the_counter(tmp_path: Path) -> None:
    recorder = record_all(tmp_path, [sample(second) for second in range(600) if not 100 <= second < 200])
    minutes = recorder._database.execute("SELECT ts, n, energy_mj FROM s60 ORDER BY ts").fetchall()
    assert sum(energy for _, _, energy in minutes) == 599 * WATTS * 1000
    assert [n for _, n, _ in minutes] == [60, 40, 40, *[60] * 6]


def test_a_minute_has_the_time_throttled_in_it(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    for second in range(121):
        recorder.add(GPU, sample(second, reasons=4, thr_power_ms=second * 500, thr_sw_therm_ms=7, thr_brake_ms=0))
        if second % 10 == 0:
            recorder.save(now=T0 + second)
    rows = recorder._database.execute("SELECT thr_power_ms, thr_sw_therm_ms, thr_hw_therm_ms, reasons_or FROM s60")
    assert rows.fetchall() == [(29_500, 0, None, 4), (30_000, 0, None, 4)]


def test_ten_minutes_and_hours_are_made_of_minutes_and_lose_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    recorder.save(now=T0)
    db = recorder._database
    for n in range(150):  # two and a half hours of minutes, as an earlier version has left them
        minute = summarize_minute(T0 + 60 * n, [sample(60 * n, util=n % 100)], None)
        db.execute(INSERT_MINUTE, (1, *minute._replace(energy_mj=1000)))
    recorder.add(GPU, sample(150 * 60))
    recorder.save(now=T0 + 151 * 60)
    for table, rows in (("s600", 15), ("s3600", 2)):
        found = db.execute(f"SELECT count(*), sum(n), max(util_max) FROM {table}").fetchone()
        assert found == (rows, rows * {"s600": 10, "s3600": 60}[table], 99)
    assert db.execute("SELECT util_avg, energy_mj, ts FROM s600 LIMIT 1").fetchone() == (4.5, 10_000, T0)
    points = series(tmp_path, GPU, T0 - 30 * 86_400, T0 + 86_400, 600)
    assert sum(point["at"] >= T0 for point in points) == len(points) > 0


def test_a_minute_that_a_killed_sampler_began_is_summarised_by_the_next(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(30)))
    recorder = record(tmp_path, [sample(90)])
    recorder.save(now=T0 + 130)
    assert recorder._database.execute("SELECT n FROM s60 ORDER BY ts").fetchall() == [(30,), (1,)]


def test_the_next_sampler_saves_what_a_killed_one_left(tmp_path: Path) -> None:
    record(tmp_path, map(sample, range(5)), saved=False)
    recorder = Recorder(tmp_path)
    recorder.adopt({GPU: [sample(second) for second in range(5)], "GPU-unknown": [sample(0)]})
    assert recorder._database.execute("SELECT count(*) FROM s").fetchone() == (5,)


def test_old_rows_go_slice_by_slice(tmp_path: Path) -> None:
    recorder = record(tmp_path, [sample(0), sample(30_000), sample(20 * 86_400)])
    counts = []
    for _ in range(3):
        recorder.prune(now=T0 + 20 * 86_400)
        counts.append(recorder._database.execute("SELECT count(*) FROM s").fetchone()[0])
    assert counts == [2, 1, 1]
    assert PRUNING[0][1] == 14 * 86_400


def test_a_broken_database_is_put_aside_and_begun_anew(tmp_path: Path) -> None:
    database_path(tmp_path).write_bytes(b"not a database " * 1000)
    record(tmp_path, map(sample, range(5)))
    assert summarize(tmp_path, [GPU], T0, T0 + 5).coverage == 1
    assert database_path(tmp_path).with_name("telemetry.sqlite.broken").exists()


def test_the_same_xid_in_a_burst_is_one_event(tmp_path: Path) -> None:
    recorder = record(tmp_path, [sample(0)])
    told = [recorder.note(T0 + after, GPU, "nvml", "xid", "XID 13", 13) for after in (0, 1, 5.5, 20)]
    recorder.note(T0 + 1, GPU, "nvml", "xid", "XID 31", 31)
    recorder.note(T0 + 2, None, "nvml", "driver", "The NVIDIA driver is not loaded")
    recorder.save(now=T0 + 30)
    assert told == [True, False, False, True]
    assert [event.code for event in events(tmp_path, T0, T0 + 60, slots=[GPU])] == [13, 31, 13]
    assert [event.kind for event in events(tmp_path, T0 + 1.5, T0 + 10)] == ["driver"]


def test_the_live_view_says_how_old_it_is(tmp_path: Path) -> None:
    publish(now_path(tmp_path), now_file(at=T0))
    live = latest(tmp_path, now=T0 + 3.5)
    assert (live.age_s, live.stale, live.source) == (3.5, False, "nvml")
    assert live.slots[GPU].energy_j == 12.5
    assert latest(tmp_path, now=T0 + 6).stale


@pytest.mark.parametrize("content", [None, "{", '{"at": 1}', '{"at": 1, "slots": {"GPU-1": {"colour": 3}}}'])
def test_a_live_view_that_is_absent_or_not_ours_is_stale_and_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        now_path(tmp_path).write_text(content)
    live = latest(tmp_path, now=T0)
    assert live.stale and live.problem and not live.slots
    assert telemetry.summarize(tmp_path, [GPU], T0, T0 + 1).coverage == 0
