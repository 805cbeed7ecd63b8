"""S16: a GPU's name comes from the driver, and the driver may say anything."""

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from fake_nvml.fakenvml import FakeNvml
from live_api import NOW
from starlette.testclient import TestClient

from daemon.gpus import Gpu, discover
from daemon.rig import Slot
from daemon.store import Store

pytest.importorskip("pynvml")

PAGES = (
    "/",
    "/gpus",
    "/gpus/0",
    "/plan",
    "/settings",
    "/jobs",
    "/nights",
    "/submit",
    "/fragments/gpus/6h",
    "/fragments/slots",
)
DATA = ("/api/v1/gpus", "/api/v1/rig", "/api/v1/report?format=md", "/api/v1/report?format=html", "/metrics")
NAMES = (
    b"\"'><img src=x onerror=alert(1)>",
    b"</title><script>alert(1)</script>{{ 7331 * 1301 }}",
    b"RTX\x1b]0;title\x07\r\nForged 9",
    b'" } 1\novernight_forged{gpu="',
    b"W" * 95,
)


def discovered(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """As the daemon finds it at its start."""
    for variable, value in fake.env().items():
        monkeypatch.setenv(variable, value)
    [gpu] = discover(timeout_s=60).gpus
    return gpu


def test_a_name_that_is_no_text_does_not_cost_the_gpu(
    fake_nvml: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_nvml(["3090"])
    fake.gpu[0].name = b"RTX \xff\xfe"
    gpu = discovered(fake, monkeypatch)
    assert (gpu.uuid, gpu.name) == (fake.uuid(0), "NVIDIA GPU")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_from_the_driver_stays_a_name(
    client: TestClient, store: Store, fake_nvml: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    fake = fake_nvml(["3090"])
    fake.gpu[0].name = name
    gpu = discovered(fake, monkeypatch)
    assert gpu.name == name.decode()
    slot = Slot(gpu.uuid, gpu.name, gpu.index, gpu.memory_bytes)
    store.describe_rig("rig", {"slots": [slot.to_json()]})
    store.beat("rig", {"at": NOW})
    for path in PAGES:
        answer: Any = client.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, path
        assert not re.search(r"<img|<script(?! )|\x1b|9537631", answer.text), path
    shown = unescape(client.get("/gpus", headers={"Accept": "text/html"}).text)
    assert re.sub(r"[^ -~]", "", gpu.name.split("\x1b")[0].split("\n")[0])[:20] in shown, "and is shown as it is"
    for path in DATA:
        answer = client.get(path)
        assert answer.status_code == 200 and "\x1b" not in answer.text, path
    assert not re.search(r"^(overnight_forged|Forged)", client.get("/metrics").text, re.MULTILINE)
