"""/metrics as Prometheus reads it; the dashboard and the alert rules name only what a real scrape has."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import NOW
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from daemon.recorder import Recorder
from daemon.rig import Slot
from daemon.samples import Identity, Sample, now_path, publish
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Job, State

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
GPU = "GPU-fa6e0000-0000-4000-8000-000000000000"
READING = {
    "name": "NVIDIA GeForce RTX 3090", "index": 0, "state": "ok", "utilization_ratio": 0.97, "memory_used_bytes": 5 << 30,
    "memory_total_bytes": 24 << 30, "temperature_c": 71, "power_w": 345.0, "power_limit_w": 350.0, "energy_j": 1234.5,
    "sm_clock_hz": 1_695_000_000, "memory_clock_hz": 9_751_000_000, "fan_ratio": 0.68, "memory_utilization_ratio": 0.45,
    "memory_temperature_c": 88, "throttled_s": {"power_cap": 221.3, "sw_thermal": 0.0}, "throttle_temperature_c": 95,
    "pcie_generation": 4, "pcie_generation_max": 4, "pcie_width": 16, "pcie_width_max": 16, "pcie_replays": 3,
    "encoder_ratio": 0.0, "ecc_uncorrected": 0, "recovery_action": 0, "pstate": 2, "power_instant_w": 348.0,
    "own_memory_bytes": 5 << 30, "foreign_memory_bytes": 1 << 30, "foreign_utilization_ratio": 0.25, "mig": False,
    "throttle_reasons": ["sw_power_cap"], "processes": [{"pid": 10, "memory_bytes": 5 << 30, "kind": "C"}],
}  # fmt: skip
#: What PromQL is made of besides metrics' names.
PROMQL = re.compile(r"\b(?:overnight|DCGM_FI)_[A-Za-z0-9_]+\b")

Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture
def gpu_rig(settings: Settings, store: Store) -> Settings:
    """A rig with one busy GPU that has had an XID."""
    store.describe_rig("rig", {"slots": [Slot(GPU, READING["name"], 0, 24 << 30).to_json()]})  # type: ignore[arg-type]
    store.beat("rig", {"at": NOW, "processes": {"sampler": {"alive": True, "deaths": 0, "last_exit": ""}}})
    recorder = Recorder(settings.home)
    recorder.know(Identity(GPU, str(READING["name"])))
    recorder.add(GPU, Sample(int(NOW)))
    for at, code in ((NOW - 100, 31), (NOW - 50, 79), (NOW - 20, 31)):
        recorder.note(at, GPU, "kernel", "xid", f"XID {code}", code)
    recorder.save(now=NOW)
    recorder.close()
    publish(now_path(settings.home), {"at": NOW, "source": "nvml", "problem": None, "slots": {GPU: READING}, "pid": 1})
    return settings


def owner(app: FastAPI, settings: Settings) -> TestClient:
    token = settings.token_file.read_text().strip()
    return TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {token}"})


def scrape(client: TestClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        found.setdefault(family.name, [])
        found.setdefault(family.name + "_total", []) if family.type == "counter" else None
    return found


def only(samples: Samples, name: str, /, **labels: str) -> float:
    found = [value for own, value in samples[name] if labels.items() <= own.items()]
    assert len(found) == 1, (name, labels, samples[name])
    return found[0]


def test_a_scrape_tells_the_gpu_in_base_units(gpu_rig: Settings, store: Store) -> None:
    found = scrape(owner(create_app(gpu_rig, store, now=lambda: NOW + 1), gpu_rig))
    labels = {"rig": "rig", "gpu": "0", "uuid": GPU, "name": READING["name"]}
    assert found["overnight_gpu_utilization_ratio"] == [(labels, 0.97)]
    assert only(found, "overnight_gpu_memory_used_bytes") == 5 << 30
    assert only(found, "overnight_gpu_foreign_memory_bytes") == 1 << 30
    assert only(found, "overnight_gpu_energy_joules_total") == 1234.5
    assert only(found, "overnight_gpu_sm_clock_hertz") == 1.695e9
    assert only(found, "overnight_gpu_throttle_seconds_total", reason="power_cap") == 221.3
    assert only(found, "overnight_gpu_xid_errors_total", xid="31") == 2
    assert only(found, "overnight_gpu_xid_last_timestamp_seconds", xid="79") == NOW - 50
    assert only(found, "overnight_telemetry_last_sample_timestamp_seconds") == NOW
    assert (only(found, "overnight_daemon_up"), only(found, "overnight_telemetry_up")) == (1, 1)
    assert not any(name.startswith("DCGM") for name in found)


def test_a_scrape_tells_the_queue_and_what_runs(
    client: TestClient, submit: Callable[..., str], brought: Callable[[str, State], Job]
) -> None:
    running, waiting = submit(), submit(gpus=2)
    brought(running, State.RUNNING)
    found = scrape(client)
    assert only(found, "overnight_jobs", state="queued") == 1
    assert only(found, "overnight_jobs", state="running") == 1
    assert only(found, "overnight_job_attempt", job=running) == 1
    assert waiting not in {labels["job"] for labels, _ in found["overnight_job_running_seconds"]}
    busy = {labels["slot"]: value for labels, value in found["overnight_slot_busy"]}
    assert sorted(busy.values()) == [0, 1]
    assert only(found, "overnight_queue_oldest_wait_seconds") > 0


def test_what_cannot_be_read_has_no_series(gpu_rig: Settings, store: Store) -> None:
    reading = {**READING, "fan_ratio": None, "energy_j": None, "state": "lost"}
    publish(now_path(gpu_rig.home), {"at": NOW, "source": "nvml", "problem": None, "slots": {GPU: reading}, "pid": 1})
    found = scrape(owner(create_app(gpu_rig, store, now=lambda: NOW), gpu_rig))
    assert found["overnight_gpu_fan_ratio"] == []
    assert found["overnight_gpu_energy_joules_total"] == []
    assert only(found, "overnight_gpu_up") == 0


def test_a_job_name_cannot_break_the_text(client: TestClient, submit: Callable[..., str], brought: Any) -> None:
    job = submit(name='a "quoted\\ name} 1')
    brought(job, State.RUNNING)
    found = scrape(client)
    assert only(found, "overnight_job_attempt", name='a "quoted\\ name} 1') == 1


def test_dcgm_names_are_a_setting(gpu_rig: Settings, store: Store) -> None:
    settings = gpu_rig.model_copy(update={"metrics_dcgm": True})
    found = scrape(owner(create_app(settings, store, now=lambda: NOW), settings))
    assert only(found, "DCGM_FI_DEV_GPU_UTIL", UUID=GPU, device="nvidia0") == pytest.approx(97)
    assert only(found, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", gpu="0") == 1_234_500
    assert only(found, "DCGM_FI_DEV_XID_ERRORS", gpu="0") == 31
    assert only(found, "DCGM_FI_DEV_FB_FREE", gpu="0") == 19 << 10


def test_a_scrape_needs_the_token_and_works_while_nothing_was_sampled(client: TestClient, stranger: TestClient) -> None:
    assert stranger.get("/metrics").status_code == 401
    found = scrape(client)
    assert only(found, "overnight_telemetry_up") == 0
    assert found["overnight_gpu_power_watts"] == []


# -- what is made of it


def names_in(expressions: list[str]) -> set[str]:
    found = {name for text in expressions for name in PROMQL.findall(text)}
    assert found
    return found


def expressions(value: Any) -> list[str]:
    """Every PromQL text in a dashboard."""
    if isinstance(value, dict):
        own = [text for key in ("expr", "query", "definition") if isinstance(text := value.get(key), str)]
        return own + [text for inner in value.values() for text in expressions(inner)]
    return [text for inner in value for text in expressions(inner)] if isinstance(value, list) else []


def test_the_dashboard_names_only_metrics_of_a_real_scrape(gpu_rig: Settings, store: Store) -> None:
    scraped = scrape(owner(create_app(gpu_rig, store, now=lambda: NOW), gpu_rig))
    dashboard = json.loads((DEPLOY / "grafana/overnight.json").read_text())
    assert names_in(expressions(dashboard)) <= set(scraped)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_alerts_name_only_metrics_of_a_real_scrape(gpu_rig: Settings, store: Store) -> None:
    scraped = scrape(owner(create_app(gpu_rig, store, now=lambda: NOW), gpu_rig))
    text = (DEPLOY / "prometheus/overnight.rules.yml").read_text()
    assert names_in(text.splitlines()) <= set(scraped)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus package) is not installed")
@pytest.mark.parametrize(
    "argv",
    [
        ["check", "rules", "overnight.rules.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["test", "rules", "overnight.test.yml"],
    ],
)
def test_promtool_accepts_the_files_and_the_alerts_fire_when_they_should(argv: list[str]) -> None:
    done = subprocess.run(["promtool", *argv], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus package) is not installed")
def test_promtool_has_nothing_to_say_about_the_names(gpu_rig: Settings, store: Store) -> None:
    text = owner(create_app(gpu_rig, store, now=lambda: NOW), gpu_rig).get("/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
