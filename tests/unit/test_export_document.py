"""Documents of exports, and where a job that exported is named as a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.for_recipes import check_export, environment_for, settings_for
from daemon.places import Places, Refused
from daemon.settings import InvalidSettings, Settings, load
from jobs.estimate import Facts, estimate
from jobs.model import Job, State
from jobs.model_facts import read_model
from jobs.spec import InvalidSpec, dump, parse

FINETUNE = {"kind": "finetune", "model": "org/m", "data": "sha256:" + "0" * 64}


def test_a_job_brings_its_base() -> None:
    spec = parse({"kind": "export", "adapter": "job:12", "to": ["merged", "gguf"]})
    assert (spec.model, spec.adapter, spec.dependencies) == ("job:12", None, ("12",))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"model": "m"}, "to: merged needs something to merge"),
        ({"model": "m", "to": []}, "to"),
        ({"model": "m", "to": ["onnx"]}, "to.0"),
        ({"adapter": "/a/b"}, "model: is missing: only an adapter of job:N"),
    ],
)
def test_what_cannot_be_exported_is_refused(document: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        parse({"kind": "export", **document})


def test_a_model_alone_becomes_a_gguf_file() -> None:
    assert dump(parse({"kind": "export", "model": "m", "to": ["gguf"]}))["to"] == ["gguf"]


@pytest.fixture
def places(tmp_path: Path) -> Callable[..., Places]:
    def make(*jobs: Job) -> Places:
        known = {job.id: job for job in jobs}
        return Places(Settings(home=tmp_path), tmp_path / "runs", known.get)

    return make


def job(job_id: str, document: dict[str, Any], state: State = State.QUEUED) -> Job:
    spec = dump(parse(document))
    return Job(id=job_id, kind=spec["kind"], name="", spec=spec, created_at=0.0, rank=0.0, state=state)


def test_the_merged_model_of_an_export_is_a_model(places: Callable[..., Places], tmp_path: Path) -> None:
    tuned, merged = job("1", FINETUNE), job("2", {"kind": "export", "adapter": "job:1"})
    later = job("3", {**FINETUNE, "model": "job:2"})
    found = places(tuned, merged, later)
    assert found.model("job:2") == {"model": str(tmp_path / "runs/2/output/merged")}
    assert found.model("job:3") == {"model": str(tmp_path / "runs/2/output/merged"), "adapter": str(tmp_path / "runs/3/output/adapter")}  # fmt: skip
    assert found.base_model("job:3") == "org/m"


def test_a_gguf_file_alone_is_no_model_and_an_export_is_no_adapter(places: Callable[..., Places]) -> None:
    found = places(job("1", FINETUNE), job("2", {"kind": "export", "model": "job:1", "to": ["gguf"]}))
    with pytest.raises(Refused, match="job 2 wrote a GGUF file only"):
        found.model("job:2")
    with pytest.raises(Refused, match="job 2 is a export job"):
        found.adapter("job:2")


def test_disk_is_counted_for_what_is_made(tiny_model: Path) -> None:
    facts = Facts(model=read_model(tiny_model))
    made = [
        estimate(dump(parse({"kind": "export", "adapter": "job:1", "to": to})), facts).disk_bytes
        for to in (["merged"], ["merged", "gguf"])
    ]
    stored = (tiny_model / "model.safetensors").stat().st_size
    assert made[0] == pytest.approx(stored, rel=0.01) and made[1] == pytest.approx(stored * (1 + 1.0625 / 2), rel=0.01)
    plain = estimate(dump(parse(FINETUNE)), facts).disk_bytes or 0
    assert (estimate(dump(parse({**FINETUNE, "export": ["merged"]})), facts).disk_bytes or 0) > plain


# -- the rig's own settings ---------------------------------------------------------------------------------------------


def rig(tmp_path: Path, **values: Any) -> Settings:
    return Settings(home=tmp_path, **values)


def test_a_converter_and_trackers_come_from_the_rig_alone(tmp_path: Path) -> None:
    settings = rig(tmp_path, gguf_converter=("python", "{model}", "{output}"), trackers=("wandb",))
    asks = dump(parse({**FINETUNE, "export": ["gguf"]}))
    assert settings_for(asks, settings) == {"gguf_converter": ["python", "{model}", "{output}"], "trackers": ["wandb"]}
    assert settings_for(dump(parse({**FINETUNE, "trackers": False})), settings) == {}
    assert settings_for({"kind": "command"}, settings) == {}
    assert settings_for(asks, rig(tmp_path)) == {}


def test_only_jobs_that_tell_a_tracker_get_its_secrets(tmp_path: Path) -> None:
    settings = rig(tmp_path, trackers=("wandb",), tracker_variables={"WANDB_MODE": "offline"})
    settings.secrets_file.write_text('WANDB_API_KEY = "k"\nMLFLOW_TRACKING_TOKEN = "t"\nHF_TOKEN = "h"\n')
    settings.secrets_file.chmod(0o600)
    told = {"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}
    assert environment_for(dump(parse(FINETUNE)), settings) == told
    for silent in ({**FINETUNE, "trackers": False}, {"kind": "command", "argv": ["true"]}):
        assert environment_for(dump(parse(silent)), settings) == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('gguf_converter = ["python", "convert.py"]', "'{model}' and '{output}'"),
        ('trackers = ["neptune"]', "trackers"),
        ('tracker_variables = { PATH = "/" }', "PATH is no variable of a tracker"),
        ('tracker_variables = { WANDB_API_KEY = "k" }', "WANDB_API_KEY is a secret: it belongs into secrets.toml"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_start(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(line)
    with pytest.raises(InvalidSettings) as refused:
        load({"home": tmp_path}, {})
    assert words in str(refused.value)


def test_a_shape_that_nobody_can_write_is_told_at_submission(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    spec, paths = parse({"kind": "export", "model": "m", "to": ["gguf"]}), {"model": str(tmp_path)}
    with pytest.raises(Refused, match="a gemma3 model is not written as GGUF here"):
        check_export(spec, paths, rig(tmp_path))
    check_export(spec, paths, rig(tmp_path, gguf_converter=("c", "{model}", "{output}")))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    check_export(spec, paths, rig(tmp_path))
