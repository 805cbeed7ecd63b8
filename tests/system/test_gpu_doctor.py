"""`overnight doctor` on the fake driver: each thing that is wrong with a card is told with what to do about it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_nvml import scenarios
from fake_nvml.fakenvml import FakeNvml

from api.cli import doctor_gpus, overnight

Checks = dict[str, list[dict[str, str]]]
Doctor = Callable[[FakeNvml], Checks]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Runs it beside this fake driver; the checks by name."""

    def run(fake: FakeNvml) -> Checks:
        own = {"OVERNIGHT_HOME": str(tmp_path / "h"), "OVERNIGHT_PORT": "0", "OVERNIGHT_URL": "http://127.0.0.1:9"}
        done = CliRunner(env={**fake.env(), **own}).invoke(overnight, ["doctor", "--json"])
        found: Checks = {}
        for check in json.loads(done.stdout)["checks"]:
            found.setdefault(check["name"], []).append(check)
        return found

    return run


def words(checks: Checks, name: str, level: str) -> str:
    return "\n".join(f"{check['message']} {check['fix']}" for check in checks[name] if check["level"] == level)


def test_healthy_cards_are_told_with_their_link_power_and_room(
    fake_nvml: Callable[..., FakeNvml], doctor: Doctor
) -> None:
    fake = fake_nvml(["3090", "h200"])
    fake.busy(0)
    found = doctor(fake)
    assert not any(check["level"] == "fail" for name in ("gpus", "driver", "gpu 0", "gpu 1") for check in found[name])
    assert found["gpus"][0]["message"] == "2: NVIDIA GeForce RTX 3090, NVIDIA H200"
    good = words(found, "gpu 0", "ok")
    assert "PCIe 4.0 x16 under load" in good
    assert "power limit 350 W (usual 350, at most 366)" in good
    assert "71 °C, slows down at 95 °C" in good
    assert "generation under load shows while a job runs (up to 5.0)" in words(found, "gpu 1", "ok")
    assert "ECC is on" in words(found, "gpu 1", "ok") and "ECC" not in good
    assert "36 °C, slows down at 87 °C" in words(found, "gpu 1", "ok"), "by its margin: server cards have no threshold"
    assert "580.95.05" in found["driver"][0]["message"]
    assert {check["level"] for check in found["clock"]} <= {"ok", "warn"}


def test_each_trouble_has_its_fix(fake_nvml: Callable[..., FakeNvml], doctor: Doctor) -> None:
    fake = fake_nvml(["3090", "3090", "h200", "3060"])
    scenarios.heat(fake, 0)
    fake.gpu[0].throttled_ns[1] = 300 * 10**9
    scenarios.poor_riser(fake, 1)
    scenarios.throttle(fake, 1, scenarios.POWER_BRAKE)
    fake.gpu[1].throttled_ns[3] = 90 * 10**9
    scenarios.memory_errors(fake, 2)
    scenarios.ask_for_reset(fake, 3)
    found = doctor(fake)
    assert "no room for a warm night" in words(found, "gpu 0", "warn") and "nvidia-smi -pl" in words(
        found, "gpu 0", "warn"
    )
    assert "1234 packets were sent again" in words(found, "gpu 1", "warn")
    assert "the power supply braked it for 1 min" in words(found, "gpu 1", "fail")
    assert "2 errors that it could not correct" in words(found, "gpu 2", "fail")
    assert "asks for a reset" in words(found, "gpu 3", "fail")


def test_fewer_lanes_and_a_slow_generation_under_load_are_told(
    fake_nvml: Callable[..., FakeNvml], doctor: Doctor
) -> None:
    fake = fake_nvml(["3090", "3090"])
    fake.busy(1)
    fake.gpu[0].pcie_width, fake.gpu[1].pcie_generation = 8, 3
    found = doctor(fake)
    assert "x8 of x16" in words(found, "gpu 0", "warn")
    assert "PCIe 3.0 x16 under load, 4.0 is possible" in words(found, "gpu 1", "warn")


def test_memory_that_is_hot_behind_a_cool_core_is_guessed(fake_nvml: Callable[..., FakeNvml], doctor: Doctor) -> None:
    fake = fake_nvml(["3090"])
    fake.busy(0, temp=62)
    fake.gpu[0].throttled_ns[1] = 600 * 10**9
    assert "its memory may be too hot" in words(doctor(fake), "gpu 0", "warn")


def test_a_replaced_driver_needs_a_reboot(fake_nvml: Callable[..., FakeNvml], doctor: Doctor) -> None:
    fake = fake_nvml(["3090"])
    fake.state.init_ret = scenarios.VERSION_MISMATCH
    assert words(doctor(fake), "driver", "fail").endswith("Reboot.")


def test_a_wedged_driver_does_not_hang_it(
    fake_nvml: Callable[..., FakeNvml], doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.cli.doctor.CHILD_TIMEOUT_S", 4.0)
    fake = fake_nvml(["3090"])
    scenarios.hang(fake, "Init")
    assert "could not be asked" in words(doctor(fake), "gpus", "fail")


@pytest.mark.parametrize(
    ("rows", "level", "said"),
    [
        ((0, 2, 0, 0), "ok", "2 broken rows were replaced"),
        ((0, 0, 1, 0), "warn", "at the next reset"),
        ((0, 0, 0, 1), "fail", "could not be replaced"),
        (None, "ok", "ECC is on"),
    ],
)
def test_memory_rows_that_broke_are_told(rows: tuple[int, ...] | None, level: str, said: str) -> None:
    told = doctor_gpus.memory("gpu 0", {"ecc": True, "now": {"ecc_uncorrected": 0}, "remapped_rows": rows})
    assert told is not None and (told.level, said in told.message) == (level, True)


def test_the_probe_tells_what_each_card_answers_refuses_and_how_long_it_takes(
    fake_nvml: Callable[..., FakeNvml], tmp_path: Path
) -> None:
    fake = fake_nvml(["3090", "h200", "3090"])
    fake.busy(0)
    fake.lose(2, xid=None)
    fake.slow("Utilization", 2_000)
    done = CliRunner(env={**fake.env(), "OVERNIGHT_HOME": str(tmp_path)}).invoke(overnight, ["doctor", "--gpu-probe"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    gaming, server, lost = told["gpus"]
    assert (told["driver"], gaming["uuid"], lost["error"]) == ("580.95.05", fake.uuid(0), "NVMLError_GpuIsLost")
    assert gaming["calls"]["UtilizationRates"]["answer"] == {"gpu": 97, "memory": 45}
    assert gaming["calls"]["UtilizationRates"]["median_us"] >= 2_000 <= gaming["sampler_ms_per_s"] * 1000
    assert {"RemappedRows", "TotalEccErrors", "MarginTemperature"} <= set(gaming["unsupported"])
    assert "FanSpeed" in server["unsupported"] and "RemappedRows" not in server["unsupported"]
    assert set(gaming["fields"]) >= {"83", "185", "186", "190"} and gaming["xid_events"]
    assert gaming["changes_every_ms"]["energy"] is not None
    assert fake.calls("PcieThroughput") == 0
