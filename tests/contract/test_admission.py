"""What a rig refuses before it is stored: each check with its fix, and where the names in a document lead."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from daemon.admission import admit, read_secrets
from daemon.places import Refused, resolve
from daemon.settings import Settings
from daemon.store import UnknownJob
from jobs.model import Job, State
from jobs.rundir import run_dir
from jobs.spec import InvalidSpec, parse

Admitted = Callable[..., dict[str, str]]
DIGEST = "a" * 64


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A rig that allows one folder."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    return settings.model_copy(update={"allowed_paths": (allowed.resolve(),)})


@pytest.fixture
def allowed(settings: Settings) -> Path:
    return settings.allowed_paths[0]


@pytest.fixture
def jobs() -> dict[str, Job]:
    """The jobs that the queue knows; a test adds its own."""
    return {}


@pytest.fixture
def wrong(settings: Settings, jobs: dict[str, Job]) -> Admitted:
    """Admits a document; what is wrong, by field."""

    def admitted(slots: int = 2, rig: Settings = settings, **document: Any) -> dict[str, str]:
        def known(ids: Sequence[str]) -> Mapping[str, Job]:
            return {job_id: jobs[job_id] for job_id in ids if job_id in jobs}

        try:
            admit(parse(document), rig, slots=slots, known_jobs=known)
        except InvalidSpec as error:
            return {e.field: e.message for e in error.errors}
        return {}

    return admitted


@pytest.fixture
def model(settings: Settings) -> Path:
    """A model in the models folder."""
    return make_model(settings.models / "tiny")


def make_model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def job(job_id: str, kind: str, state: State = State.QUEUED, **spec: Any) -> Job:
    return Job(id=job_id, kind=kind, name="", spec=spec, created_at=0, rank=0, state=state)


def upload(settings: Settings, text: str, digest: str = DIGEST) -> str:
    settings.inputs.mkdir(parents=True, exist_ok=True)
    (settings.inputs / digest).write_text(text)
    return f"sha256:{digest}"


def rows(count: int) -> str:
    return "".join(json.dumps({"prompt": f"q{n}", "completion": "a"}) + "\n" for n in range(count))


def tune(settings: Settings, **changes: Any) -> dict[str, Any]:
    return {"kind": "finetune", "model": "tiny", "data": upload(settings, rows(3)), **changes}


def command(**changes: Any) -> dict[str, Any]:
    return {"kind": "command", "argv": ["true"], **changes}


# -- GPUs ---------------------------------------------------------------------------------------------------------------


def test_more_gpus_than_the_rig_has_are_refused_once_it_is_known(wrong: Admitted) -> None:
    assert wrong(**command(gpus=3)) == {"gpus": "this rig has 2 GPUs, the job asks for 3"}
    assert wrong(slots=1, **command(gpus=2)) == {"gpus": "this rig has 1 GPU, the job asks for 2"}
    assert wrong(slots=0, **command(gpus=64)) == {}


def test_a_recipe_that_uses_one_gpu_is_not_given_two(wrong: Admitted, settings: Settings, model: Path) -> None:
    assert wrong(**tune(settings, gpus=2)) == {}
    assert "uses one GPU" in wrong(**{**tune(settings, gpus=2), "kind": "generate"})["gpus"]


# -- models -------------------------------------------------------------------------------------------------------------


def test_a_model_folder_needs_a_config_and_safetensors(wrong: Admitted, settings: Settings, model: Path) -> None:
    assert wrong(**tune(settings)) == {}
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "has no .safetensors file" in wrong(**tune(settings))["model"]
    (model / "config.json").unlink()
    assert "is not a model" in wrong(**tune(settings))["model"]


def test_a_missing_model_is_told_with_those_that_are_there(wrong: Admitted, settings: Settings, model: Path) -> None:
    message = wrong(**tune(settings, model="tinny"))["model"]

    assert "'tinny' is not a model of this rig; there are tiny." in message


def test_hub_ids_are_accepted_unless_the_rig_downloads_nothing(wrong: Admitted, settings: Settings) -> None:
    closed = settings.model_copy(update={"allow_hub": False})

    assert wrong(**tune(settings, model="org/name@main")) == {}
    assert "allow_hub = false" in wrong(rig=closed, **tune(settings, model="org/name"))["model"]


@pytest.mark.parametrize(
    "name", ["../x", "a/b/c", "~", "~/models/x", "./tiny", "org/na me", "http://x/y", ".hidden", "job:0"]
)
def test_s22_model_ids_match_a_strict_pattern(wrong: Admitted, settings: Settings, model: Path, name: str) -> None:
    assert "model" in wrong(**tune(settings, model=name))


def test_s22_a_models_own_code_runs_only_when_listed_with_its_revision(
    wrong: Admitted, settings: Settings, model: Path, jobs: dict[str, Job]
) -> None:
    listed = settings.model_copy(update={"allow_remote_code": ("org/name@abc", "org/loose", "tiny")})
    jobs["1"] = job("1", "finetune", model="org/other")

    def refused(name: str) -> str:
        return wrong(rig=listed, **tune(settings, model=name, trust_remote_code=True)).get("trust_remote_code", "")

    assert refused("org/name@abc") == ""
    assert refused("tiny") == ""
    assert "pinned revision" in refused("org/name")
    assert "pinned revision" in refused("org/loose")
    assert "not listed" in refused("org/name@abd")
    assert "pinned revision" in refused("job:1")  # it is the base model's code
    assert "trust_remote_code" in wrong(**tune(settings, trust_remote_code=True))


# -- paths --------------------------------------------------------------------------------------------------------------


def test_s21_only_paths_below_allowed_folders_are_accepted(wrong: Admitted, allowed: Path, tmp_path: Path) -> None:
    inside, outside = make_model(allowed / "m"), make_model(tmp_path / "outside")
    (allowed / "out").symlink_to(outside)
    (allowed / "up").symlink_to("..")
    (tmp_path / "in").symlink_to(inside)  # wherever it stands: what counts is where it leads
    data = allowed / "d.jsonl"
    data.write_text(rows(1))

    def model_error(path: object) -> str:
        return wrong(kind="finetune", model=str(path), data=str(data)).get("model", "")

    assert model_error(inside) == ""
    assert model_error(tmp_path / "in") == ""
    for path in (outside, allowed / "out", allowed / "up" / "outside", allowed / ".." / "outside", f"{allowed}x", "/"):
        assert "is outside the folders" in model_error(path), path


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "~/x", "..", "/proc/self/environ", "/dev/zero", "/a/" + "b" * 3000, "x\ny"]
)
@pytest.mark.parametrize("field", ["data", "eval_data", "adapter", "cwd"])
def test_s21_no_field_reaches_the_rest_of_the_disk(
    wrong: Admitted, settings: Settings, model: Path, path: str, field: str
) -> None:
    document = command(cwd=path) if field == "cwd" else tune(settings, **{field: path})

    assert field in wrong(**document)


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.sampled_from(["..", ".", "", "up", "etc", "allowed", "passwd", "x"]) | st.text(max_size=4), max_size=7)
)
def test_s21_no_path_that_is_made_up_leads_out(
    settings: Settings, allowed: Path, wrong: Admitted, parts: list[str]
) -> None:
    text = f"{allowed}/" + "/".join(parts)
    try:
        refused = wrong(**command(cwd=text))
        real = os.path.realpath(text)
    except (InvalidSpec, ValueError):
        return
    assert refused or Path(real).is_relative_to(allowed)


# -- data ---------------------------------------------------------------------------------------------------------------


def test_a_broken_line_is_named_with_its_number(wrong: Admitted, settings: Settings, model: Path) -> None:
    data = upload(settings, rows(36) + '{"prompt": "q", "compl\n' + rows(2), "b" * 64)

    assert wrong(**tune(settings, data=data))["data"].startswith("line 37: ")


def test_empty_and_missing_data_are_refused(wrong: Admitted, settings: Settings, model: Path) -> None:
    assert "no rows" in wrong(**tune(settings, data=upload(settings, "", "b" * 64)))["data"]
    assert "is not uploaded" in wrong(**tune(settings, eval_data="sha256:" + "c" * 64))["eval_data"]
    assert "neither uploaded" in wrong(**tune(settings, data="here.jsonl"))["data"]


def test_prompts_are_checked_as_prompts(wrong: Admitted, settings: Settings, model: Path) -> None:
    data = upload(settings, '{"prompt": "hello"}\n', "d" * 64)

    assert wrong(kind="generate", model="tiny", data=data) == {}
    assert "data" in wrong(**tune(settings, data=data))


def test_a_file_that_many_jobs_name_is_read_again_only_when_it_has_changed(
    wrong: Admitted, settings: Settings, model: Path
) -> None:
    document = tune(settings)
    assert wrong(**document) == {}
    (settings.inputs / DIGEST).write_text("broken\n")

    assert "line 1" in wrong(**document)["data"]


def test_data_that_cannot_be_read_is_told(wrong: Admitted, settings: Settings, model: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    document = tune(settings)
    (settings.inputs / DIGEST).chmod(0)

    assert "cannot be read" in wrong(**document)["data"]


# -- other jobs ---------------------------------------------------------------------------------------------------------


def test_other_jobs_must_exist_fit_and_not_have_failed(
    wrong: Admitted, settings: Settings, model: Path, jobs: dict[str, Job]
) -> None:
    jobs["1"] = job("1", "finetune", State.RUNNING, model="tiny")
    jobs["2"] = job("2", "finetune", State.FAILED, model="tiny")
    jobs["3"] = job("3", "generate", model="tiny")
    data = upload(settings, '{"prompt": "hello"}\n', "d" * 64)

    def refused(**changes: Any) -> dict[str, str]:
        return wrong(**{"kind": "generate", "model": "tiny", "data": data, **changes})

    assert refused(adapter="job:1") == {}
    assert refused(model="job:1") == {}
    assert refused(data="job:3") == {}
    assert refused(adapter="job:9")["adapter"] == "there is no job 9"
    assert "is failed and leaves no result" in refused(adapter="job:2")["adapter"]
    assert "job 3 is a generate job" in refused(model="job:3")["model"]
    assert "job 1 is a finetune job" in refused(data="job:1")["data"]
    assert "brings its own adapter" in refused(model="job:1", adapter="job:1")["adapter"]
    assert "could never start" in refused(after=["2"])["after"]
    assert refused(after=["8", "9"])["after"] == "there is no job 8 and no job 9"


def test_names_lead_to_absolute_paths(settings: Settings, model: Path, jobs: dict[str, Job], allowed: Path) -> None:
    jobs["1"] = job("1", "finetune", State.SUCCEEDED, model="tiny")
    jobs["2"] = job("2", "finetune", model="job:1")
    jobs["3"] = job("3", "finetune", model="org/name@abc")
    jobs["4"] = job("4", "generate", model="tiny")
    first = run_dir(settings.runs, "1")
    first.adapter.mkdir(parents=True)

    def get_job(job_id: str) -> Job:
        if job_id not in jobs:
            raise UnknownJob(job_id)
        return jobs[job_id]

    def paths(**spec: Any) -> dict[str, str]:
        return resolve(spec, settings, settings.runs, get_job=get_job)

    assert paths(kind="generate", model="tiny", adapter=None) == {"model": str(model)}
    assert paths(model="org/name") == {}
    assert paths(model="job:1") == {"model": str(model), "adapter": str(first.adapter)}
    # a fine-tune of a fine-tune: one base model, the last adapter
    assert paths(model="job:2") == {"model": str(model), "adapter": str(run_dir(settings.runs, "2").adapter)}
    assert paths(model="job:3")["model"] == "org/name@abc"
    assert paths(data="job:4") == {"data": str(run_dir(settings.runs, "4").generations)}
    assert paths(cwd=str(allowed)) == {"cwd": str(allowed)}
    with pytest.raises(InvalidSpec, match="there is no job 9"):
        paths(model="job:9")
    first.adapter.rmdir()
    with pytest.raises(InvalidSpec, match="its result is not on this rig any more"):
        paths(adapter="job:1")


# -- commands -----------------------------------------------------------------------------------------------------------


def test_a_program_must_be_there_and_executable(wrong: Admitted, allowed: Path) -> None:
    (allowed / "run.sh").write_text("#!/bin/sh\n")

    assert wrong(**command(argv=["/bin/true"])) == {}
    assert "is not there" in wrong(**command(argv=["/bin/no-such"]))["argv"]
    assert "is relative: set cwd" in wrong(**command(argv=["./run.sh"]))["argv"]
    assert "is not executable" in wrong(**command(argv=["./run.sh"], cwd=str(allowed)))["argv"]
    assert "did you mean ./run.sh?" in wrong(**command(argv=["run.sh"], cwd=str(allowed)))["argv"]
    (allowed / "run.sh").chmod(0o755)
    assert wrong(**command(argv=["./run.sh"], cwd=str(allowed))) == {}
    assert "is not there" in wrong(**command(argv=["/" + "x" * 4000]))["argv"]


def test_secrets_are_known_by_name_in_a_file_of_their_owner_alone(wrong: Admitted, settings: Settings) -> None:
    wanted = command(secrets=["HF_TOKEN"])
    assert "no secret HF_TOKEN" in wrong(**wanted)["secrets"]
    settings.secrets_file.write_text('HF_TOKEN = "hf_value"\n')
    settings.secrets_file.chmod(0o644)
    assert "chmod 600" in wrong(**wanted)["secrets"]
    settings.secrets_file.chmod(0o600)
    assert wrong(**wanted) == {}
    assert read_secrets(settings.secrets_file) == {"HF_TOKEN": "hf_value"}


@pytest.mark.parametrize(
    "text", ["HF_TOKEN = hf_value", 'HF_TOKEN = "hf_value', "HF_TOKEN = 5", '[HF_TOKEN]\nx = "hf_value"']
)
def test_s34_a_broken_secrets_file_is_told_without_its_content(settings: Settings, text: str) -> None:
    settings.secrets_file.write_text(text)
    settings.secrets_file.chmod(0o600)

    with pytest.raises(Refused) as refused:
        read_secrets(settings.secrets_file)
    assert "hf_value" not in str(refused.value)
