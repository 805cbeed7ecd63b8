"""The commands' parts that need no rig: flags, documents, words, configuration, paths."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from api.cli import config, documents, fields, output, overnight, submit
from api.cli import flags as flag_module
from api.cli.demo import MAX_SOCKET_PATH_BYTES, SOCKET_NAME, demo_home, missing, results
from api.cli.doctor import FAIL, OK, Machine, disk, home, python, socket_path, token_file
from api.cli.fields import DocumentError
from api.cli.session import exit_code_of, fate, problem_words
from api.client import ApiProblem, Client
from api.sse import parse_events


def made(kind: str, *args: str) -> dict[str, object]:
    """The document that these flags make."""
    command = click.Command("x", params=flag_module.options(kind))
    context = click.Context(
        command, token_normalize_func=submit.commands["finetune"].context_settings["token_normalize_func"]
    )
    command.parse_args(context, list(args))
    return flag_module.document(kind, context.params)


def call(command: click.Command, *args: str) -> Result:
    return CliRunner().invoke(command, list(args))


# -- flags ------------------------------------------------------------------------------------------------------------


def test_only_what_was_given_is_in_the_document():
    assert made("finetune") == {"kind": "finetune"}
    assert made("finetune", "--learning-rate", "1e-4") == {"kind": "finetune", "learning_rate": 1e-4}


@pytest.mark.parametrize("flag", ["--lora.r", "--lora-r", "--lora_r"])
def test_a_nested_field_is_spelt_with_a_dot_a_dash_or_an_underscore(flag: str):
    assert made("finetune", flag, "8")["lora"] == {"r": 8}


def test_peft_and_transformers_spellings_are_understood():
    document = made("finetune", "--lora_alpha", "64", "--per_device_train_batch_size", "2", "--no-packing")
    assert document == {"kind": "finetune", "lora": {"lora_alpha": 64.0}, "per_device_train_batch_size": 2, "packing": False}  # fmt: skip


def test_lists_are_repeated_or_have_commas():
    document = made("generate", "--tag", "a", "--tag", "b,c", "--after", "1,2")
    assert document["tags"] == ["a", "b", "c"]
    assert document["after"] == ["1", "2"]
    assert made("finetune", "--lora-target-modules", "q_proj,v_proj")["lora"] == {
        "target_modules": ["q_proj", "v_proj"]
    }
    assert made("finetune", "--lora-target-modules", "all-linear")["lora"] == {"target_modules": "all-linear"}


def test_words_from_a_list_keep_their_spelling():
    assert (
        made("finetune", "--lr-scheduler-type", "constant_with_warmup")["lr_scheduler_type"] == "constant_with_warmup"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6h", 21600), ("90m", 5400), ("90min", 5400), ("1h30m", 5400), ("45", 45), ("2d", 172800), ("1.5h", 5400)],
)
def test_times_have_units(text: str, seconds: float):
    assert made("finetune", "--max-runtime", text)["max_runtime_s"] == seconds


@pytest.mark.parametrize("text", ["", "h", "soon", "6 hours later", "1.2.3h", "-5m"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(click.UsageError, match="not a time"):
        made("finetune", "--max-runtime", text)


def test_a_moment_is_the_next_such_time_with_an_offset():
    text = str(made("finetune", "--not-before", "22:00")["not_before"])
    then = datetime.fromisoformat(text)
    assert then > datetime.now().astimezone()
    assert (then.hour, then.minute) == (22, 0)
    assert (
        datetime.fromisoformat(str(made("finetune", "--not-before", "2026-11-24T22:00")["not_before"])).tzinfo
        is not None
    )
    with pytest.raises(click.UsageError, match="not a moment"):
        made("finetune", "--not-before", "tonight")


def test_environment_variables_are_pairs():
    assert made("command", "--env", "A=1", "--env", "B=x=y")["env"] == {"A": "1", "B": "x=y"}
    with pytest.raises(click.UsageError, match="NAME=VALUE"):
        made("command", "--env", "A")


def test_an_unknown_flag_names_the_nearest_one():
    result = call(submit, "finetune", "--learning-rat", "1")
    assert result.exit_code == 2
    assert "--learning-rate" in result.output


# -- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("learning_rate=1e-4", {"learning_rate": 1e-4}),
        ("learning-rate=1e-4", {"learning_rate": 1e-4}),
        ("lora.r=8", {"lora": {"r": 8}}),
        ("name=night run", {"name": "night run"}),
        ('tags=["a"]', {"tags": ["a"]}),
        ("packing=true", {"packing": True}),
        ("eval_data=", {"eval_data": ""}),
        ("eval_data=null", {"eval_data": None}),
    ],
)
def test_set_takes_any_field(text: str, change: dict[str, object]):
    assert fields.assignment(text) == change


def test_a_change_keeps_what_is_beside_it():
    document = {"lora": {"r": 16, "lora_alpha": 32}}
    fields.change(document, {"lora": {"r": 8}})
    assert document == {"lora": {"r": 8, "lora_alpha": 32}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'kind = "command"\nargv = ["true"]\nnot_before = 2026-11-24T22:00:00+01:00'),
        ("a.json", '{"kind": "command", "argv": ["true"], "not_before": "2026-11-24T22:00:00+01:00"}'),
        ("a.yaml", 'kind: command\nargv: ["true"]\nnot_before: "2026-11-24T22:00:00+01:00"'),
    ],
)
def test_a_file_says_the_same_in_every_format(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    body = documents.read(tmp_path / name)
    assert json.loads(json.dumps(body)) == {"kind": "command", "argv": ["true"], "not_before": "2026-11-24T22:00:00+01:00"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "kind = ", "not valid TOML"),
        ("a.json", "{", "not valid JSON"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("a.txt", "", "a job document is a .toml, .yaml or .json file"),
        ("a.json", "[]", "is an object with fields"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(DocumentError, match=says):
        documents.read(tmp_path / name)


def test_an_unknown_field_names_the_nearest_one_and_its_place():
    good = {"kind": "command", "argv": ["true"]}
    with pytest.raises(DocumentError) as one:
        documents.check({**good, "prioritty": "high"})
    assert one.value.message == "prioritty: is not a field of this document; did you mean 'priority'?"
    with pytest.raises(DocumentError) as many:
        documents.check({"jobs": [good, {**good, "gpus": -1}]})
    assert many.value.message.startswith("jobs.1.gpus: ")


def test_local_data_is_found_in_jobs_bases_and_sweeps(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    sweep = {
        "base": {"kind": "finetune", "eval_data": "a.jsonl"},
        "sweep": {"data": ["a.jsonl", "b.jsonl"], "seed": [1]},
    }
    found = documents.local_files(sweep, [tmp_path])
    assert [(key, path.name) for _, key, path in found] == [("eval_data", "a.jsonl"), (0, "a.jsonl"), (1, "b.jsonl")]
    jobs = {"jobs": [{"data": "a.jsonl"}, {"data": "job:3"}, {"data": "sha256:" + "0" * 64}]}
    assert len(documents.local_files(jobs, [tmp_path])) == 1


def test_data_that_is_nowhere_is_refused_and_a_path_on_the_rig_is_kept(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"'no\.jsonl' is not a file below"):
        documents.local_files({"kind": "finetune", "data": "no.jsonl"}, [tmp_path])
    assert documents.local_files({"kind": "finetune", "data": "/data/on/the/rig.jsonl"}, [tmp_path]) == []


@pytest.mark.parametrize(("kind", "field"), [("command", {"retries": 2}), ("finetune", {"max_attempts": 3})])
def test_retries_are_said_in_the_words_of_the_kind(kind: str, field: dict[str, int]):
    document = {"kind": kind}
    fields.allow_retries(document, 2)
    assert document == {"kind": kind, **field}


def test_submit_says_what_is_neither_file_nor_command():
    assert "did you mean 'finetune'?" in call(submit, "finetun").output
    assert "Flags come after the command" in call(submit, "--follow", "finetune").output
    assert call(submit, "no.toml").exit_code == 2


# -- fate -------------------------------------------------------------------------------------------------------------


def job(state: str, cause: str | None = None) -> dict[str, object]:
    return {"state": state, "outcome": {"cause": cause}}


@pytest.mark.parametrize(
    ("jobs", "code"),
    [
        ([job("succeeded")], 0),
        ([job("failed", "oom_gpu")], 1),
        ([job("failed", "timeout")], 6),
        ([job("cancelled")], 3),
        ([{"state": "failed", "outcome": None}], 1),
        ([job("succeeded"), job("cancelled")], 3),
        ([job("cancelled"), job("failed", "timeout")], 6),
        ([job("failed", "timeout"), job("failed", "nan")], 1),
    ],
)
def test_the_exit_code_is_the_jobs_fate(jobs: list[dict[str, object]], code: int):
    assert fate(jobs) == code


@pytest.mark.parametrize(("status", "code"), [(400, 2), (401, 4), (403, 4), (404, 5), (409, 2), (413, 2), (422, 2), (500, 1), (503, 69)])  # fmt: skip
def test_a_refusal_has_its_exit_code(status: int, code: int):
    assert exit_code_of(ApiProblem(status)) == code


def test_a_refusal_is_told_field_by_field():
    problem = ApiProblem(422, title="Invalid", errors=[{"field": "gpus", "message": "this rig has 2"}, {"field": "", "message": "no"}])  # fmt: skip
    assert problem_words(problem) == "gpus: this rig has 2\nno"
    assert problem_words(ApiProblem(409, title="Conflict", detail="job 1 runs")) == "job 1 runs"


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A machine without configuration and without a rig."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "OVERNIGHT_HOME": str(tmp_path / "home")}


def configure(environment: dict[str, str], text: str, mode: int = 0o600) -> Path:
    path = config.config_path(environment)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def rig_on_this_machine(environment: dict[str, str], url: str = "http://127.0.0.1:2300") -> Path:
    folder = config.home_of(environment)
    folder.mkdir(parents=True)
    (folder / "api.json").write_text(json.dumps({"url": url}))
    (folder / "token").write_text("rig-token\n")
    (folder / "token").chmod(0o600)
    return folder


def test_a_flag_wins_over_the_environment_over_the_file_over_the_rig(environment: dict[str, str]):
    assert config.resolve(environment).url.text == "http://127.0.0.1:2200"
    rig_on_this_machine(environment)
    assert config.resolve(environment).url.text == "http://127.0.0.1:2300"
    assert config.resolve(environment).token.text == "rig-token"
    configure(environment, 'url = "https://file"\ntoken = "of-the-file"')
    access = config.resolve(environment)
    assert (access.url.text, access.token.text) == ("https://file", "of-the-file")
    environment |= {"OVERNIGHT_URL": "http://variable:1", "OVERNIGHT_TOKEN": "of-the-variable"}
    access = config.resolve(environment)
    assert (access.url.text, access.token.text) == ("http://variable:1", "of-the-variable")
    access = config.resolve(environment, server="flag:9", token="of-the-flag")
    assert (access.url.text, access.token.text, access.url.origin) == ("http://flag:9", "of-the-flag", "--server")


def test_a_token_goes_only_to_the_rig_that_it_belongs_to(environment: dict[str, str]):
    rig_on_this_machine(environment)
    configure(environment, 'url = "https://mine"\ntoken = "of-mine"')
    assert config.resolve(environment, server="http://evil:2300").token.text == ""
    assert config.resolve(environment, server="http://mine").token.text == ""  # not over plain HTTP either
    assert config.resolve(environment, server="https://mine:443/").token.text == "of-mine"
    assert config.resolve(environment, server="http://localhost:2300").token.text == "rig-token"


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ('token = "x"', 0o644, "chmod 600"),
        ('tokn = "x"', 0o600, "'tokn' is not a key"),
        ("url = 3", 0o600, "texts in quotes"),
        ("url =", 0o600, "cannot be read"),
        ('url = "ftp://x"', 0o600, "not the address of a rig"),
        ('url = "http://user:password@x"', 0o600, "not the address of a rig"),
        ('token = "a b"', 0o600, "characters that no token has"),
    ],
)
def test_a_bad_configuration_is_told_with_its_fix(environment: dict[str, str], text: str, mode: int, says: str):
    configure(environment, text, mode)
    with pytest.raises(config.ConfigError, match=says):
        config.resolve(environment)


def test_config_tells_origins_and_never_the_token(environment: dict[str, str]):
    configure(environment, 'url = "https://mine"\ntoken = "secret-secret"')
    result = CliRunner(env=environment).invoke(overnight, ["config", "--explain"])
    assert "https://mine" in result.output
    assert str(config.config_path(environment)) in result.output
    assert "secret-secret" not in result.output


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.2 s"), (59, "59 s"), (250, "4 min 10 s"), (11520, "3 h 12 min"), (200_000, "2 d 7 h"), (None, "")],
)
def test_durations_are_read_at_a_glance(seconds: float | None, text: str):
    assert output.duration(seconds) == text


def test_columns_line_up_whatever_the_alphabet():
    lines = output.table(("ID", "NAME", "X"), [("1", "夜间", "a"), ("22", "é", "b")]).splitlines()
    assert [output.width(line[: line.index(mark)]) for line, mark in zip(lines, "Xab", strict=True)] == [10, 10, 10]


def test_a_job_tells_what_matters_in_its_state():
    queued = {"state": "queued", "waiting_because": "needs 2 GPUs"}
    running = {"state": "running", "progress": {"phase": "train", "step": 4, "total": 9, "metrics": {"loss": 1.23456}}}
    failed = {"state": "failed", "outcome": {"cause": "nan", "message": "The loss was not finite."}}
    assert output.what(queued) == "needs 2 GPUs"
    assert output.what(running) == "train, step 4 of 9, loss 1.235"
    assert output.what(failed) == "nan: The loss was not finite."


# -- the wire ---------------------------------------------------------------------------------------------------------


def test_events_are_read_however_they_are_cut():
    stream = b': hello\n\nid: 0-1\n\nid: 1-0\nevent: log\ndata: {"text": "a\\u2028b"}\n\nevent: state\r\ndata: [1,\r\ndata: 2]\r\n\r\nid: 3\ndata: torn'  # fmt: skip
    for size in (1, 2, 7, len(stream)):
        events = list(parse_events(stream[at : at + size] for at in range(0, len(stream), size)))
        told = [(e.id, e.type, e.data) for e in events]
        assert told == [("0-1", "open", {}), ("1-0", "log", {"text": "a\u2028b"}), ("1-0", "state", [1, 2])]


def test_an_id_can_never_be_a_path():
    with pytest.raises(ValueError, match="not an id"):
        Client("http://nobody").job("..")


# -- this machine -----------------------------------------------------------------------------------------------------


def test_the_commands_load_nothing_heavy():
    code = "import sys, api.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["httpx", "rich", "pydantic", "torch", "yaml", "redis", "rq", "fastapi", "uvicorn", "daemon", "workers"]
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, cwd=root, check=True)
    assert child.stdout.strip() == "[]"


def test_the_demo_moves_when_its_socket_would_not_fit(tmp_path: Path):
    assert demo_home({}, Path("/w")) == Path("/w/.demo")
    deep = Path("/w" + "/long" * 20)
    assert len(str(demo_home({}, deep) / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES
    assert demo_home({"OVERNIGHT_HOME": str(tmp_path)}, deep) == tmp_path


def test_the_demo_names_a_busy_port_and_the_way_out(tmp_path: Path, busy_port: int):
    model = tmp_path / "models" / "SmolLM2-135M-Instruct"
    model.mkdir(parents=True)
    assert f"Port {busy_port} is in use: choose another with --port" in str(missing(tmp_path, busy_port))
    assert missing(tmp_path, None) is None


@pytest.fixture
def busy_port():
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_the_demo_shows_losses_and_answers(tmp_path: Path):
    folder = tmp_path / "runs" / "2"
    (folder / "output").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.25}\n')
    (folder / "output" / "generations.jsonl").write_text('{"prompt": "Why?", "text": "So."}\n')
    ended = {"id": "2", "state": "succeeded", "name": "n", "outcome": None}
    text = "\n".join(results([ended], tmp_path))
    assert "loss 2.500 at first, 1.250 at last" in text
    assert "Why?" in text
    assert "→ So." in text


def machine(folder: Path) -> Machine:
    value = config.Value("", "")
    return Machine(config.Access(value, value, folder), is_rig=True)


def test_doctor_tells_open_folders_and_their_fix(tmp_path: Path):
    tmp_path.chmod(0o755)
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o644)
    for check in (home(machine(tmp_path)), token_file(machine(tmp_path))):
        assert check.level == FAIL
        assert "chmod" in check.fix
    tmp_path.chmod(0o700)
    assert home(machine(tmp_path)).level == OK


def test_doctor_tells_an_old_python_a_long_path_and_the_disk(tmp_path: Path):
    assert python((3, 10, 1)).level == FAIL
    assert python((3, 13, 0)).level == OK
    assert socket_path(machine(Path("/x" * 60))).level == FAIL
    assert "free" in disk(machine(tmp_path / "not" / "there")).message
