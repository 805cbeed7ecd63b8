"""The pages of the GPUs, the plan and the settings: what they say without script, and that no text becomes HTML."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from live_api import NOW
from long_past import remember
from starlette.testclient import TestClient

from api.app import create_app
from daemon import quarantine
from daemon.faults import Fault, Policy
from daemon.recorder import Recorder
from daemon.rig import Slot, cpu_slots
from daemon.samples import Identity, SlotNow, now_path, publish
from daemon.settings import Settings, load
from daemon.store import Store, Wanted, connect
from jobs.model import End, Job, Outcome
from jobs.spec import parse

GPUS = (Slot("GPU-aaaa", "NVIDIA GeForce RTX 3090", 0, 24 << 30), Slot("GPU-bbbb", "NVIDIA GeForce RTX 3090", 1, 24 << 30))  # fmt: skip
PAGES = ("/gpus", "/gpus?span=30d", "/gpus/0", "/gpus/GPU-bbbb?span=1h", "/plan", "/plan?by=07:00", "/settings", "/submit", "/fragments/gpus/6h", "/fragments/gpus/6h/GPU-aaaa", "/fragments/plan", "/fragments/plan/07:00")  # fmt: skip
HOSTILE = "\"'><svg onload=alert(1)></title><script>alert(1)</script>"
OURS = {"Origin": "http://localhost"}


@pytest.fixture
def settings(home: Path) -> Settings:
    (home / "config.toml").write_text('window = "10:00-14:00"\nprice_per_kwh = 0.3\n')
    return load({"home": home, "rig": "rig", "port": 0, "timezone": "UTC", "currency": "EUR"}, {})


@pytest.fixture
def owner(settings: Settings, store: Store) -> Iterator[TestClient]:
    """The owner of a rig with two GPUs, at 11:06 UTC."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in GPUS], "origins": dict(settings.origins)})
    store.beat("rig", {"at": NOW})
    sampled(settings, GPUS)
    with client_of(settings, store) as client:
        yield client


def client_of(settings: Settings, store: Store) -> TestClient:
    app = create_app(settings, store, now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    return TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False)


def sampled(settings: Settings, slots: Any) -> None:
    readings = {slot.id: asdict(SlotNow(name=slot.name, index=slot.index, utilization_ratio=0.42, power_w=300.0, power_limit_w=350.0, memory_used_bytes=8 << 30, memory_total_bytes=slot.memory_bytes)) for slot in slots}  # fmt: skip
    source = "nvml" if slots[0].is_gpu else "cpu"
    publish(now_path(settings.home), {"at": NOW, "pid": 1, "source": source, "problem": None, "slots": readings})


def put(store: Store, **fields: Any) -> Job:
    [job], _ = store.submit([parse({"kind": "command", "argv": ["true"], **fields})], now=NOW - 9_000)
    return job


def ran(store: Store, job: Job, start: float, end: float | None, slot: str = "GPU-aaaa") -> Job:
    offered = store.offer(job.id, rig="rig", slots=(slot,), epoch=store.new_epoch("rig"), now=NOW + start)
    job = store.claim(job.id, fence=offered.fence, owner="w", now=NOW + start, lease_s=60)
    if end is None:
        return job
    return store.finish(job.id, fence=job.fence, outcome=Outcome(end=End.SUCCEEDED), now=NOW + end)


def text_of(client: TestClient, path: str, status: int = 200) -> str:
    """What somebody reads there, in one line with plain spaces."""
    answer = client.get(path)
    assert answer.status_code == status, answer.text[:500]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def test_s3_s15_the_new_pages_need_the_token_and_have_nothing_inline(owner: TestClient, store: Store) -> None:
    put(store)
    for path in PAGES:
        html = owner.get(path).text
        assert not re.search(r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son[a-z]+=|javascript:", html), path
        assert not re.search(r"(?:src|href|action)=\"(?!/|#)", html), path
        answer = owner.get(path, headers={"Authorization": "", "Accept": "text/html"})
        assert answer.status_code == 303 and answer.headers["location"].startswith("/login?next=/"), path


# -- GPUs ------------------------------------------------------------------------------------------------------------------------


def test_a_gpu_is_found_by_its_number_and_by_its_uuid(owner: TestClient, settings: Settings) -> None:
    remember(settings.home, GPUS, NOW - 2 * 86_400, NOW, lambda slot, ts: 0.5)
    for name in ("1", "GPU-bbbb"):
        text = text_of(owner, f"/gpus/{name}?span=24h")
        assert "GPU 1" in text and "The last 24 h" in text and "Utilisation" in text and "Power" in text
        assert "kWh" in text and "EUR" in text
    assert "There is no GPU 7" in text_of(owner, "/gpus/7", 404)
    assert text_of(owner, "/gpus/..%2f..%2ftoken", 404)


@pytest.mark.parametrize("span", ["1h", "6h", "24h", "7d", "30d"])
def test_every_span_is_a_link_and_says_which_one_is_shown(owner: TestClient, span: str) -> None:
    html = owner.get(f"/gpus?span={span}").text
    assert f'href="/gpus?span={span}" aria-current="true"' in html
    assert html.count('aria-current="true"') == 1
    assert owner.get("/gpus?span=nonsense").status_code == 200


def test_jobs_and_faults_are_marked_and_listed(owner: TestClient, settings: Settings, store: Store) -> None:
    remember(settings.home, GPUS, NOW - 8 * 3600, NOW, lambda slot, ts: None if 7000 < NOW - ts < 9000 else 0.5)
    done, running = put(store, name="the first"), put(store, name="the second")
    ran(store, done, -7200, -3600)
    ran(store, running, -1800, None)
    recorder = Recorder(settings.home)
    recorder.know(Identity("GPU-aaaa", GPUS[0].name))
    recorder.note(NOW - 5000, "GPU-aaaa", "kernel", "xid", f"NVRM: Xid 79 {HOSTILE}", 79, job=done.id)
    recorder.save(now=NOW)
    recorder.close()
    text, html = text_of(owner, "/gpus/0"), owner.get("/gpus/0").text
    assert "the first" in text and "1 h · succeeded" in text and "the second" in text and "30 min · running" in text
    assert "XID 79: the GPU has fallen off the bus" in text and f"during job {done.id}" in text
    assert "<svg onload" not in html and HOSTILE in unescape(html)
    assert html.count('class="gap"') >= 5 and "no readings" in text
    assert 'class="fault grave"' in html
    assert "the first" not in text_of(owner, "/gpus/1")


def test_a_gpu_out_of_service_can_be_released_or_checked_from_its_page(owner: TestClient, store: Store) -> None:
    quarantine.impose(store, "rig", Fault("GPU-aaaa", "XID 79: gone", Policy.QUARANTINE, NOW - 60))
    text, html = text_of(owner, "/gpus/0"), owner.get("/gpus/0").text
    assert "Out of service: XID 79: gone" in text
    assert 'formaction="/do/gpus/GPU-aaaa/check"' in html and 'formaction="/do/gpus/GPU-aaaa/release"' in html
    asked = owner.post("/do/gpus/GPU-aaaa/check", data={"next": "/gpus/0"}, headers=OURS)
    assert asked.status_code == 200 and "The daemon computes on it" in asked.text
    done = owner.post("/do/gpus/GPU-aaaa/check", data={"next": "/gpus/0", "sure": "yes"}, headers=OURS)
    assert (done.status_code, done.headers["location"]) == (303, "/gpus/0")
    assert quarantine.read(store, "rig")["GPU-aaaa"].check_asked
    assert (
        owner.post("/do/gpus/GPU-aaaa/check", data={"sure": "yes"}, headers={"Origin": "http://evil"}).status_code
        == 403
    )


def test_a_rig_without_gpus_is_told_kindly(settings: Settings, store: Store) -> None:
    slots = cpu_slots(2)
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in slots]})
    store.beat("rig", {"at": NOW})
    sampled(settings, slots)
    with client_of(settings, store) as client:
        text = text_of(client, "/gpus")
        assert "This rig has no NVIDIA GPU that its driver shows, and that is fine" in text and "2 CPU slots" in text
        assert "CPU slot 1" in text_of(client, "/gpus/cpu:1")


def test_without_the_queue_the_readings_are_there_all_the_same(settings: Settings) -> None:
    remember(settings.home, GPUS, NOW - 8 * 3600, NOW, lambda slot, ts: 0.5)
    sampled(settings, GPUS)
    away = settings.model_copy(update={"redis_url": f"unix://{settings.home}/nobody.sock"})
    with client_of(away, Store(connect(away.redis_url or ""))) as client:
        assert "Redis does not answer." in text_of(client, "/gpus") and "Utilisation" in text_of(client, "/gpus/0")
        assert "The plan cannot be made now" in text_of(client, "/plan", 503)
        assert "Settings in force" in text_of(client, "/settings")
        assert "Submit a job" in text_of(client, "/submit")


# -- the plan ---------------------------------------------------------------------------------------------------------------------


def test_the_plan_names_each_job_with_its_times_and_draws_a_lane_for_each_gpu(owner: TestClient, store: Store) -> None:
    argv = ["python", "train.py"]
    ran(store, put(store, argv=argv), -7200, -3600)  # an hour
    for n in range(7):
        put(store, argv=argv, name=f"job number {n}")
    put(store, argv=argv, name="a held one")
    held = store.page(Wanted(text="held")).jobs[0]
    owner.patch(f"/api/v1/jobs/{held.id}", json={"held": True})
    text, html = text_of(owner, "/plan"), owner.get("/plan").text
    assert html.count('class="lane"') == 2 and "window closes 14:00" in text
    assert "3 jobs will not be done by 14:00" in text and "What would have to give" in text
    assert "Starts now, done about 12:06 (1 h)" in text and "Not done by 14:00" in text
    assert "Not in sight" in text and "a held one" in text
    assert html.count('class="late"') >= 2, "late jobs are hatched"
    assert re.search(r'aria-label="GPU 0: job number 0 11:06 to 12:06', html)
    noon = text_of(owner, "/plan?by=12:30")
    assert "will not be done by 12:30" in noon and "deadline 12:30" in noon
    assert "is no time of day" in text_of(owner, "/plan?by=noon")


def test_a_rig_with_nothing_to_do_says_so(owner: TestClient) -> None:
    assert "Nothing runs and nothing waits" in text_of(owner, "/plan")


def test_s16_names_on_lanes_and_lists_never_become_html(owner: TestClient, store: Store) -> None:
    harmless, hostile = put(store, name="harmless"), put(store, name=HOSTILE)
    ran(store, hostile, -600, None)
    ran(store, harmless, -600, None, "GPU-bbbb")
    for path in ("/plan", "/gpus/0", "/gpus", f"/submit?from={hostile.id}", "/submit?kind=command&name=" + HOSTILE):
        html = owner.get(path).text
        assert "<svg onload" not in html and "<script>" not in html, path
        assert HOSTILE in unescape(html) or path == "/gpus", path


# -- settings ----------------------------------------------------------------------------------------------------------------------


def test_settings_tell_value_default_origin_and_meaning(owner: TestClient) -> None:
    text = text_of(owner, "/settings")
    assert "window config.toml 10:00-14:00 Hours in which jobs run" in text
    assert "currency flag EUR" in text and "lease_s default 30" in text
    assert "pydantic" in text and "GPU 1" in text


def test_a_changed_or_broken_file_is_told_before_the_next_start(owner: TestClient, settings: Settings) -> None:
    (settings.home / "config.toml").write_text('window = "20:00-21:00"\nprice_per_kwh = 0.3\n')
    assert "config.toml says 20:00-21:00 now" in text_of(owner, "/settings")
    (settings.home / "config.toml").write_text("windw = 3\n")
    text = text_of(owner, "/settings")
    assert "config.toml cannot be used at the next start" in text and "did you mean 'window'" in text


def test_s34_of_secrets_only_the_names_are_shown(settings: Settings, store: Store) -> None:
    settings.secrets_file.write_text('HF_TOKEN = "hf_CANARY"\n')
    settings.secrets_file.chmod(0o600)
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in GPUS]})
    shared = settings.model_copy(update={"public_url": "http://rig"})
    with client_of(shared, store) as client:
        html = client.get("/settings").text
        assert "HF_TOKEN" in html and "CANARY" not in html
        assert settings.token_file.read_text().strip() not in html
        settings.secrets_file.write_text("CANARY = no quotes\n")
        assert "CANARY" not in client.get("/settings").text
