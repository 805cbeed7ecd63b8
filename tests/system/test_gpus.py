"""Rigs with several GPUs, played by the fake driver: who is pinned to what, proven from the job's own environment."""

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fake_nvml.fakenvml import FakeNvml
from until import until

from daemon import telemetry
from daemon.explain import explain
from daemon.facts import Ledger
from jobs.model import Cause, State

SHOW = 'echo "$CUDA_DEVICE_ORDER $CUDA_VISIBLE_DEVICES"'


def gpu_rig(make_rig: Any, fake_nvml: Callable[..., FakeNvml], *cards: str) -> tuple[Any, FakeNvml]:
    fake = fake_nvml(list(cards))
    return make_rig(slots="auto", environment=fake.env()), fake


def uuids(rig: Any) -> list[str]:
    return [slot["id"] for slot in rig.store.rigs()["rig"]["slots"]]


def test_each_worker_is_pinned_to_its_own_gpu_by_uuid(make_rig: Any, fake_nvml: Any) -> None:
    rig, _ = gpu_rig(make_rig, fake_nvml, "3090", "3090")
    cards = uuids(rig)
    assert len(set(cards)) == 2 and all(card.startswith("GPU-") for card in cards)
    # both at once, so that each one needs a slot of its own
    jobs = [rig.submit(kind="command", argv=["sh", "-c", f"{SHOW}; exec tail -f /dev/null"]) for _ in cards]
    for job in jobs:
        rig.until_printed(job, "PCI_BUS_ID GPU-")
    assert {rig.log(job).split()[1] for job in jobs} == set(cards)
    assert {rig.job(job).slots[0] for job in jobs} == set(cards)
    assert all(rig.log(job).split()[1] == rig.job(job).slots[0] for job in jobs)


def test_a_gang_sees_all_its_gpus(make_rig: Any, fake_nvml: Any) -> None:
    rig, _ = gpu_rig(make_rig, fake_nvml, "3090", "3090")
    job = rig.submit(kind="command", argv=["sh", "-c", SHOW], gpus=2)
    assert rig.until_ended(job).state is State.SUCCEEDED
    assert set(rig.log(job).split()[1].split(",")) == set(uuids(rig))


def test_a_program_that_reads_no_uuids_gets_indexes(make_rig: Any, fake_nvml: Any) -> None:
    fake = fake_nvml(["3090", "3090"])
    rig = make_rig(slots="auto", environment=fake.env(), gpu_env="index")
    one, both = (rig.submit(kind="command", argv=["sh", "-c", f"{SHOW}; echo $OVERNIGHT_GPU_UUID"], gpus=n) for n in (1, 2))  # fmt: skip
    for job, amount in ((one, 1), (both, 2)):
        assert rig.until_ended(job).state is State.SUCCEEDED
        order, visible, names = rig.log(job).split()
        assert order == "PCI_BUS_ID"
        assert [uuids(rig)[int(index)] for index in visible.split(",")] == names.split(",")
        assert len(names.split(",")) == amount


def test_eight_gpus_run_eight_jobs(make_rig: Any, fake_nvml: Any) -> None:
    rig, _ = gpu_rig(make_rig, fake_nvml, *["3090"] * 8)
    jobs = [rig.submit(kind="command", argv=["sh", "-c", f"{SHOW}; exec tail -f /dev/null"]) for _ in range(8)]
    for job in jobs:
        rig.until(job, State.RUNNING, within_s=60)
    assert {rig.job(job).slots[0] for job in jobs} == set(uuids(rig))


def test_a_job_on_a_gpu_ends_with_its_energy_and_peak_memory(make_rig: Any, fake_nvml: Any) -> None:
    rig, fake = gpu_rig(make_rig, fake_nvml, "3090")
    fake.busy(0)
    until(lambda: (rig.settings.home / "gpu-now.json").exists(), evidence=rig.evidence)
    job = rig.count(50, 0.06)
    usage = rig.until_ended(job).outcome.usage
    assert usage["gpu_s"] > 2.5 and usage["energy_j"] > 100 and usage["peak_vram_bytes"] >= 0, usage


def test_the_window_closes_and_opens_without_losing_work(make_rig: Any) -> None:
    rig = make_rig(slots="cpu:1", window="00:00-00:01", timezone=_far_from_midnight())
    night, any_time = rig.count(5), rig.count(5, 0.01, window="any")
    assert rig.until_ended(any_time).state is State.SUCCEEDED
    assert rig.job(night).state is State.QUEUED


def _far_from_midnight() -> str:
    """A zone in which it is about noon now: the test must not begin inside its own window."""
    hours = 12 - datetime.now(UTC).hour
    return f"Etc/GMT{-hours:+d}" if hours else "UTC"


def test_a_job_moves_off_a_gpu_that_fails_under_it(make_rig: Any, fake_nvml: Any) -> None:
    rig, fake = gpu_rig(make_rig, fake_nvml, "3090", "3090")
    until(lambda: (rig.settings.home / "gpu-now.json").exists(), evidence=rig.evidence)
    job = rig.count(60, 0.05)
    rig.until_printed(job, "start 0")
    card = rig.job(job).slots[0]
    fake.lose(uuids(rig).index(card), xid=79)
    until(lambda: telemetry.events(rig.settings.home, 0, 2e9, slots=[card]), evidence=rig.evidence)
    os.kill(rig.child(card), signal.SIGKILL)  # as the driver's error would end it
    ended = rig.until_ended(job)
    assert ended.state is State.SUCCEEDED, rig.evidence()
    assert [(run.slots[0] == card, run.cause) for run in ended.attempts] == [(True, Cause.GPU_FAULT), (False, None)]
    # that it is lost may be told before its XID is, which says why
    until(lambda: rig.store.quarantines("rig")[card]["reason"].startswith("XID 79"), evidence=rig.evidence)


def test_a_gpu_that_is_away_while_the_daemon_starts_gets_jobs_again_when_it_is_back(
    make_rig: Any, fake_nvml: Any
) -> None:
    rig, fake = gpu_rig(make_rig, fake_nvml, "3090", "3090")
    until(lambda: rig.store.rigs().get("rig"), evidence=rig.evidence)
    cards = uuids(rig)
    assert rig.stop() == 0
    fake.lose(1)
    rig.start()
    alone, both = rig.count(1, 0.01), rig.count(1, 0.01, gpus=2)
    assert rig.until_ended(alone).attempts[-1].slots == (cards[0],)
    assert uuids(rig) == cards
    facts = Ledger(rig.store).facts(time.time(), rig.settings)
    assert explain(facts, rig.job(both)) == "needs 2 GPUs; GPU 1 is lost"
    fake.recover(1)
    os.kill(_sampler(rig), signal.SIGKILL)  # the next one looks at once, not at its next round in 30 s
    assert rig.until_ended(both).state is State.SUCCEEDED


def test_a_gpu_that_was_lost_at_the_very_first_start_gets_jobs_when_it_comes(make_rig: Any, fake_nvml: Any) -> None:
    fake = fake_nvml(["3090", "3090"])
    fake.lose(1, xid=None)
    rig = make_rig(slots="auto", environment=fake.env())
    assert uuids(rig) == [fake.uuid(0)]
    fake.recover(1)
    os.kill(_sampler(rig), signal.SIGKILL)  # the next one looks at once, not at its next round in 30 s
    until(lambda: uuids(rig) == [fake.uuid(0), fake.uuid(1)], within_s=30, evidence=rig.evidence)
    both = rig.count(1, 0.01, gpus=2)
    assert rig.until_ended(both).state is State.SUCCEEDED


def test_a_driver_that_is_loaded_after_the_first_start_puts_gpus_in_the_place_of_cpu_slots(
    make_rig: Any, fake_nvml: Any
) -> None:
    fake = fake_nvml(["3090"])
    fake.lose(0, xid=None)
    rig = make_rig(slots="auto", environment=fake.env())
    assert uuids(rig) == ["cpu:0", "cpu:1"]
    running = rig.count(60, 0.05)
    rig.until_printed(running, "start 0")
    fake.recover(0)
    os.kill(_sampler(rig), signal.SIGKILL)
    until(lambda: fake.uuid(0) in uuids(rig), within_s=30, evidence=rig.evidence)
    assert rig.until_ended(running).attempts[0].slots[0].startswith("cpu:"), "what runs there goes on"
    until(lambda: uuids(rig) == [fake.uuid(0)], evidence=rig.evidence)
    assert rig.until_ended(rig.count(1, 0.01)).attempts[0].slots == (fake.uuid(0),)


def _sampler(rig: Any) -> int:
    return until(lambda: next((pid for pid, line in rig.processes().items() if "daemon.sampler" in line), 0))


def test_a_full_disk_holds_the_queue_and_never_fails_a_job(make_rig: Any) -> None:
    rig = make_rig(disk_floor_bytes=10**18)
    job = rig.count(1, 0.01)
    facts = Ledger(rig.store).facts(time.time(), rig.settings)
    assert "jobs start again at" in (explain(facts, rig.job(job)) or "")
    assert rig.job(job).state is State.QUEUED
