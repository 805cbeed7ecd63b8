"""Power limits are set by a process of its own, and a refusal is a sentence."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nvml.fakenvml import FakeNvml

from daemon.power import set_limits, wanted
from daemon.rig import Slot
from daemon.settings import load
from daemon.supervisor import as_environment

NO_PERMISSION = 4


def run(fake: FakeNvml, *argv: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "daemon.power", *argv], env=fake.env(), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip()


def test_a_limit_is_set_on_the_gpu_that_it_is_for(fake_nvml: Callable[..., FakeNvml]) -> None:
    fake = fake_nvml(["3090", "3090"])
    assert run(fake, f"{fake.uuid(1)}=250") == (0, f"{fake.uuid(1)} may draw 250 W.")
    assert [fake.gpu[index].limit_mw for index in range(2)] == [350_000, 250_000]


def test_one_that_needs_root_says_what_to_run(fake_nvml: Callable[..., FakeNvml]) -> None:
    fake = fake_nvml(["3090"])
    fake.fail(0, "SetPowerLimit", NO_PERMISSION)
    status, said = run(fake, f"{fake.uuid(0)}=250")
    assert status == 1 and said.endswith(f"only root may set it. Run once: sudo nvidia-smi -i {fake.uuid(0)} -pl 250")


def test_one_out_of_range_names_the_range_and_the_others_are_set(fake_nvml: Callable[..., FakeNvml]) -> None:
    fake = fake_nvml(["3090", "3090"])
    status, said = run(fake, f"{fake.uuid(0)}=5000", f"{fake.uuid(1)}=300")
    assert status == 1 and "it can be set from 100 to" in said and f"{fake.uuid(1)} may draw 300 W." in said
    assert run(fake, "GPU-none=1")[0] == 1


def test_the_daemon_asks_a_child_and_goes_on_without_a_driver(
    fake_nvml: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_nvml(["3090"])
    assert set_limits({}) == []
    for name in ("LD_LIBRARY_PATH", "FAKE_NVML_STATE"):
        monkeypatch.setenv(name, fake.env()[name])
    assert set_limits({fake.uuid(0): 200.0}) == [f"{fake.uuid(0)} may draw 200 W."]
    fake.state.init_ret = 9
    assert "The NVIDIA driver is not loaded" in set_limits({fake.uuid(0): 200.0})[0]


def test_one_number_is_for_every_gpu_and_a_table_for_those_it_names(tmp_path: Path) -> None:
    slots = [Slot("GPU-a", "card", 0), Slot("GPU-b", "card", 1), Slot("cpu:0", "CPU", 0)]
    assert wanted(None, slots) == {}
    assert wanted(250, slots) == {"GPU-a": 250, "GPU-b": 250}
    (tmp_path / "config.toml").write_text("gpu_power_limit_w = {GPU-b = 200, GPU-gone = 100}")
    settings = load({"home": tmp_path}, {})
    assert wanted(settings.gpu_power_limit_w, slots) == {"GPU-b": 200}
    assert load({}, as_environment(settings)) == settings, "a table reaches the other processes by the file"
