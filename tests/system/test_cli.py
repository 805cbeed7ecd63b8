"""`submit` and `overnight` against a real API process and a real queue. A cable between them can be cut at will."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from model_folders import LLAMA_3_8B, copy_tokenizer, write_model
from until import until

from api.cli import demo, overnight, submit
from daemon.rig import Slot, cpu_slots
from daemon.store import Store
from jobs.model import Cause, End, Outcome, Progress, State
from jobs.rundir import run_dir
from jobs.spec import parse

ROOT = Path(__file__).parents[2]
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ROWS = '{"prompt": "Is it night?", "completion": "Yes."}\n'


class Api:
    """A running API, and somebody at a terminal beside it."""

    def __init__(self, home: Path, store: Store, url: str):
        self.home, self.store, self.url = home, store, url
        self.environment = {
            "OVERNIGHT_URL": url,
            "OVERNIGHT_TOKEN": (home / "token").read_text().strip(),
            "OVERNIGHT_HOME": str(home / "nobody"),
            "XDG_CONFIG_HOME": str(home / "config"),
        }

    def submit(self, *args: str, **environment: str) -> Result:
        return CliRunner(env={**self.environment, **environment}).invoke(submit, list(args))

    def overnight(self, *args: str, **environment: str) -> Result:
        return CliRunner(env={**self.environment, **environment}).invoke(overnight, list(args))

    def start(self, program: str, *args: str, **environment: str) -> "subprocess.Popen[str]":
        """A command as a process of its own."""
        code = f"from api.cli import {program}; {program}()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **self.environment, **environment, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def queue(self, **fields: object) -> str:
        """A waiting job."""
        document = {"kind": "command", "argv": ["true"], **fields}
        return self.store.submit([parse(document)], now=time.time())[0][0].id

    def run(self, job_id: str) -> int:
        """What the daemon and a worker do; returns the fence."""
        epoch = self.store.new_epoch("rig")
        job = self.store.offer(job_id, rig="rig", slots=("cpu:0",), epoch=epoch, now=time.time())
        self.store.claim(job_id, fence=job.fence, owner="worker", now=time.time(), lease_s=60.0)
        return job.fence

    def end(self, job_id: str, end: End = End.SUCCEEDED, cause: Cause | None = None) -> None:
        """The job runs and ends like this."""
        outcome = Outcome(end=end, cause=cause, message="so it was" if cause else "")
        self.store.finish(job_id, fence=self.run(job_id), outcome=outcome, now=time.time())

    def print(self, job_id: str, text: str) -> None:
        """The job writes to its log."""
        folder = run_dir(self.home / "runs", job_id)
        folder.create()
        with folder.log.open("a", newline="", errors="surrogateescape") as file:
            file.write(text)


@pytest.fixture(scope="module")
def api_process(redis_address: str) -> Iterator[tuple[Path, str]]:
    """`python -m api` on a queue of its own; its home and its address."""
    home = Path(tempfile.mkdtemp(prefix="on-"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OVERNIGHT_")}
    environment |= {"OVERNIGHT_HOME": str(home), "OVERNIGHT_PORT": "0", "OVERNIGHT_REDIS_URL": redis_address, "OVERNIGHT_RIG": "rig"}  # fmt: skip
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api"], stdout=log, stderr=log, env=environment, cwd=ROOT)
    try:
        until((home / "api.json").exists, within_s=30.0, evidence=(home / "api.log").read_text)
        yield home, json.loads((home / "api.json").read_text())["url"]
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def api(api_process: tuple[Path, str], store: Store) -> Iterator[Api]:
    """The API with an empty queue and no files."""
    home, url = api_process
    yield Api(home, store, url)
    for name in ("runs", "inputs"):
        shutil.rmtree(home / name, ignore_errors=True)


@pytest.fixture
def big_model(api: Api) -> Iterator[str]:
    """An 8B model's folder without its weights, on a rig with one GPU of 24 GiB."""
    gpu = Slot(id="GPU-0", name="NVIDIA 24", index=0, memory_bytes=24 * 2**30)
    api.store.describe_rig("rig", {"slots": [gpu.to_json()]})
    write_model(api.home / "models" / "big", LLAMA_3_8B)
    yield "big"
    shutil.rmtree(api.home / "models")


class Cable:
    """A TCP connection to the API that can be cut after a request has arrived and before its answer is back."""

    def __init__(self, url: str):
        self._target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.cut_next: str = ""
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def cut(self) -> None:
        """Cut what is connected now."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            unheard = threading.Event()
            threading.Thread(target=self._there, args=(near, far, unheard), daemon=True).start()
            threading.Thread(target=self._back, args=(near, far, unheard), daemon=True).start()

    def _there(self, near: socket.socket, far: socket.socket, unheard: threading.Event) -> None:
        with contextlib.suppress(OSError), far:
            while chunk := near.recv(65536):
                for line in chunk.decode("latin-1").split("\r\n"):
                    if line.endswith(" HTTP/1.1"):
                        self.requests.append(line.removesuffix(" HTTP/1.1"))
                        if self.cut_next and line.startswith(self.cut_next):
                            self.cut_next = ""
                            unheard.set()
                far.sendall(chunk)

    def _back(self, near: socket.socket, far: socket.socket, unheard: threading.Event) -> None:
        with contextlib.suppress(OSError), near:
            # once unheard: the API has answered, so the work is done, and nobody hears of it
            while (chunk := far.recv(65536)) and not unheard.is_set():
                near.sendall(chunk)
            near.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cable(api: Api) -> Iterator[Cable]:
    cable = Cable(api.url)
    yield cable
    cable.close()


def stored(api: Api) -> int:
    """How many jobs there are."""
    return len(api.store.page(limit=200).jobs)


# -- submit -----------------------------------------------------------------------------------------------------------


def test_a_job_is_queued_and_the_way_on_is_told(api: Api):
    result = api.submit("run", "--name", "tonight", "--tag", "a", "--", "echo", "--loud")
    assert result.exit_code == 0, result.output
    assert re.match(r"Job \d+ queued: tonight\. waits: .+\nFollow: overnight logs -f \d+   http://", result.stdout)
    [job] = api.store.page(limit=5).jobs
    assert job.spec["argv"] == ["echo", "--loud"]
    assert job.tags == ("a",)


def test_submit_says_when_the_job_is_expected_to_start_and_the_plan_draws_it(api: Api):
    api.store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(1)]})
    result = api.submit("run", "--", "sleep", "1")
    assert "Expected: starts now; when it ends is not known (nothing like it has run yet)." in result.stdout
    before = stored(api)
    drawn = api.overnight("plan", "--what-if", str(ROOT / "deploy/examples/command.toml")).stdout
    assert re.search(r"^0 CPU slot 0 +┃1", drawn, re.MULTILINE), drawn
    assert "what if" in drawn and stored(api) == before


def test_a_submission_succeeds_although_nobody_says_when_it_will_start(api: Api, cable: Cable):
    cable.cut_next = "GET /api/v1/jobs/"
    result = api.submit("run", "true", OVERNIGHT_URL=cable.url)
    assert result.exit_code == 0 and "Expected" not in result.output
    assert stored(api) == 1 and sum("/plan" in request for request in cable.requests) == 1


def test_json_is_one_object_on_stdout_and_nothing_else(api: Api):
    result = api.submit("run", "--json", "true")
    job = json.loads(result.stdout)
    assert {"id", "kind", "state", "spec", "attempts", "waiting_because"} <= set(job)
    assert result.stdout.count("\n") == 1
    page = json.loads(api.overnight("ls", "--json").stdout)
    assert [j["id"] for j in page["jobs"]] == [job["id"]]
    assert page["next"] is None


def test_a_dry_run_stores_nothing(api: Api, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    flags = ("--model", "org/model", "--data", str(tmp_path / "rows.jsonl"), "--dry-run")
    result = api.submit("finetune", *flags)
    assert result.exit_code == 0, result.output
    assert "Nothing was stored." in result.stdout
    assert "rows.jsonl (49 B) would be uploaded" in result.stdout
    assert json.loads(api.submit("finetune", *flags, "--json").stdout)["valid"] is True
    assert stored(api) == 0
    assert not (api.home / "inputs").exists()
    assert api.submit("finetune", *flags, "--after", "77").exit_code == 2


def test_a_recipe_of_another_tool_is_submitted_with_a_printed_translation(api: Api, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "axolotl.yaml").write_text(
        "base_model: org/model\nadapter: lora\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\n"
        "micro_batch_size: 2\nlearning_rate: 1e-4\nwandb_project:\n"
    )
    flags = (
        str(tmp_path / "axolotl.yaml"),
        "--set",
        "num_epochs=2",
        "--set",
        "micro_batch_size=3",
        "--dry-run",
        "--json",
    )
    result = api.submit(*flags)
    assert result.exit_code == 0, result.output
    told = result.stderr.splitlines()
    assert {"base_model -> model", "datasets[0] -> data = rows.jsonl", "num_epochs -> num_train_epochs"} <= set(told)
    [trial] = json.loads(result.stdout)["jobs"]
    assert (trial["job"]["num_train_epochs"], float(trial["job"]["learning_rate"])) == (2, 1e-4)
    assert trial["job"]["data"].startswith("sha256:")
    # what --set says counts more than the file, in whichever name
    assert trial["job"]["per_device_train_batch_size"] == 3


def test_a_dry_run_tells_what_the_job_would_need(api: Api, big_model: str, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS * 40)
    flags = ("--model", big_model, "--data", str(tmp_path / "rows.jsonl"), "--dry-run")
    result = api.submit("finetune", *flags)
    assert result.exit_code == 0, result.output
    assert "Work: 3 steps, 40 rows" in result.stdout
    assert re.search(r"weights +14\.96 GiB", result.stdout)
    assert "NVIDIA 24 of rig (24.0 GiB): fits" in result.stdout
    estimate = json.loads(api.submit("finetune", *flags, "--json").stdout)["estimate"]
    assert (estimate["fits"], estimate["steps"]) == (True, 3)


def test_a_dry_run_of_a_fine_tune_shows_what_is_learnt(api: Api, tiny_model: Path, tmp_path: Path):
    copy_tokenizer(tiny_model, api.home / "models" / "tiny")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    row = {"question": "Where is \x1b[31mbolt 7?", "answer": "Shelf A1."}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 40)
    flags = ("--model", "tiny", "--data", str(tmp_path / "rows.jsonl"), "--dry-run")
    names = ("--data-fields", "question=instruction", "--data-fields", "answer=output")
    result = api.submit("finetune", *flags, *names, "--max-length", "24")
    assert result.exit_code == 0, result.output
    assert "Data: JSONL of Alpaca, 40 rows" in result.stdout
    assert "Alpaca's `instruction`, `input` and `output` read as `messages`" in result.stdout
    assert "max_length 24: 40 rows are longer and cut" in result.stdout
    assert "Where is bolt 7?" in result.stdout
    assert not CONTROLS.search(result.stdout)
    own = api.submit("finetune", *flags, *names, "--chat-template", str(tmp_path / "chat.jinja"))
    assert "assistant:[[ Shelf A1.<|im_end|>]]" in own.stdout
    view = json.loads(api.submit("finetune", *flags, *names, "--json").stdout)["preview"]
    assert (view["rows"], view["trained_tokens"] > 0, view["shape"]) == (40, True, "messages")
    assert not (api.home / "inputs").exists()
    shutil.rmtree(api.home / "models")


def test_wrong_lines_are_told_before_anything_is_sent(api: Api, cable: Cable, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS + "{\n" + ROWS + '{"prompt": "x"}\n')
    flags = ("--model", "tiny", "--data", str(tmp_path / "rows.jsonl"))
    result = api.submit("finetune", *flags, OVERNIGHT_URL=cable.url)
    assert result.exit_code == 2
    assert "data: rows.jsonl, line 2: not valid JSON" in result.stderr
    assert "data: rows.jsonl, line 4: `completion` is missing" in result.stderr
    assert cable.requests == []


def test_what_fits_is_told_before_anything_is_sent(api: Api, cable: Cable, big_model: str, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "word " * 9_000}) + "\n")
    (tmp_path / "ft.toml").write_text(
        f'kind = "finetune"\nmodel = "{big_model}"\ndata = "rows.jsonl"\nmax_length = 4096'
    )
    result = api.overnight("fit", str(tmp_path / "ft.toml"), OVERNIGHT_URL=cable.url)
    assert result.exit_code == 1, result.output
    assert "NVIDIA 24 of rig (24.0 GiB): does not fit" in result.stdout
    assert "It would be refused: needs about" in result.stdout
    assert "gradient_checkpointing = true" in result.stdout
    [request] = cable.requests
    assert request.startswith("POST /api/v1/estimate?")
    what_if = api.overnight("fit", str(tmp_path / "ft.toml"), "--set", "gradient_checkpointing=true", "--json")
    assert (what_if.exit_code, json.loads(what_if.stdout)["fits"]) == (0, True)
    assert api.submit(str(tmp_path / "ft.toml"), "--dry-run").exit_code == 2
    assert stored(api) == 0
    assert not (api.home / "inputs").exists()


def test_every_job_of_a_file_is_asked_about_but_those_that_need_another_ones_result(
    api: Api, big_model: str, tmp_path: Path
):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    train = {"id": "train", "kind": "finetune", "model": big_model, "data": "rows.jsonl"}
    answer = {"id": "ask", "kind": "generate", "model": "job:train", "data": "rows.jsonl", "after": ["train"]}
    (tmp_path / "night.json").write_text(
        json.dumps({"jobs": [train, answer, {**train, "id": "again", "after": ["ask"]}]})
    )
    result = api.overnight("fit", str(tmp_path / "night.json"), "--json")
    assert result.exit_code == 0, result.output
    assert [view["fits"] for view in json.loads(result.stdout)["estimates"]] == [True, True]
    assert "ask: its model is still to come from job:train." in result.stderr


def test_a_job_that_waits_can_be_asked_about_too(api: Api):
    job_id = api.queue(vram_gib=2)
    result = api.overnight("fit", job_id)
    assert result.exit_code == 0
    assert "Memory: 2.0 GiB on each GPU (as declared)" in result.stdout
    assert api.overnight("fit", "nowhere.toml").exit_code == 2
    assert api.overnight("fit", "999").exit_code == 5


def test_data_is_sent_once(api: Api, cable: Cable, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(ROWS)
    (tmp_path / "b.jsonl").write_text(ROWS)
    for name in ("a.jsonl", "b.jsonl"):
        result = api.submit("finetune", "--model", "org/model", "--data", str(tmp_path / name), OVERNIGHT_URL=cable.url)
        assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in cable.requests if "/inputs/" in line] == ["HEAD", "PUT", "HEAD"]
    newest, older = api.store.page(limit=5).jobs
    assert newest.spec["data"] == older.spec["data"]
    [upload] = (api.home / "inputs").iterdir()
    assert upload.read_text() == ROWS
    assert newest.spec["data"] == f"sha256:{upload.name}"


def test_a_broken_line_is_named_before_anything_is_sent(api: Api, cable: Cable, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS * 36 + "{\n")
    flags = ("--model", "org/model", "--data", str(tmp_path / "rows.jsonl"))
    result = api.submit("finetune", *flags, OVERNIGHT_URL=cable.url)
    assert result.exit_code == 2
    assert "data: rows.jsonl, line 37: " in result.stderr
    assert cable.requests == []


def test_a_file_with_its_data_beside_it_is_one_job(api: Api, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "ft.toml").write_text('kind = "finetune"\nmodel = "org/model"\ndata = "rows.jsonl"\n[lora]\nr = 4')
    result = api.submit("--tag", "x", str(tmp_path / "ft.toml"), "--set", "lora.lora_alpha=8", "--retries", "1")
    assert result.exit_code == 0, result.output
    [job] = api.store.page(limit=5).jobs
    assert job.spec["lora"]["r"] == 4
    assert job.spec["lora"]["lora_alpha"] == 8
    assert (job.tags, job.max_attempts) == (("x",), 2)


def test_a_list_and_a_sweep_are_stored_whole_or_not_at_all(api: Api, tmp_path: Path):
    sweep, jobs = tmp_path / "sweep.json", tmp_path / "jobs.json"
    base = {"kind": "command", "argv": ["true"]}
    sweep.write_text(json.dumps({"base": base, "sweep": {"gpus": [1, 2], "priority": ["high", "backlog"]}}))
    jobs.write_text(json.dumps({"jobs": [base, {**base, "after": ["99"]}]}))
    refused = api.submit(str(jobs))
    assert refused.exit_code == 2
    assert "jobs.1.after: there is no job 99" in refused.stderr
    assert stored(api) == 0
    accepted = api.submit(str(sweep), "--json")
    assert len(json.loads(accepted.stdout)["jobs"]) == 4
    assert stored(api) == 4


def test_an_unknown_field_is_refused_here_with_the_nearest_one(api: Api, tmp_path: Path):
    (tmp_path / "job.toml").write_text('kind = "command"\nargv = ["true"]\npriorty = "high"')
    result = api.submit(str(tmp_path / "job.toml"))
    assert result.exit_code == 2
    assert result.stderr == "priorty: is not a field of this document; did you mean 'priority'?\n"
    assert result.stdout == ""


# -- the connection ---------------------------------------------------------------------------------------------------


def test_a_lost_answer_makes_no_second_job(api: Api, cable: Cable):
    cable.cut_next = "POST /api/v1/jobs"
    result = api.submit("run", "true", OVERNIGHT_URL=cable.url)
    assert result.exit_code == 0, result.output
    assert [line for line in cable.requests if line.startswith("POST")] == ["POST /api/v1/jobs"] * 2
    assert stored(api) == 1


def test_the_same_key_never_submits_twice(api: Api):
    first, second = (json.loads(api.submit("run", "--key", "k1", "--json", "true").stdout) for _ in range(2))
    assert first["id"] == second["id"]
    assert api.submit("run", "--key", "k1", "false").exit_code == 2
    assert stored(api) == 1


def test_no_rig_is_one_sentence_and_69():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for command, args in ((submit, ["run", "true"]), (overnight, ["ls"]), (overnight, ["wait", "1"])):
            result = CliRunner(env={"OVERNIGHT_URL": url}).invoke(command, args)
            assert result.exit_code == 69
            assert result.stdout == ""
            assert len(result.stderr.splitlines()) == 1
            assert "No rig answers at" in result.stderr


def test_another_program_on_that_port_is_no_rig():
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = CliRunner(env={"OVERNIGHT_URL": f"http://127.0.0.1:{server.server_port}"}).invoke(overnight, ["ls"])
        server.shutdown()
    assert result.exit_code == 69
    assert "is not Overnight" in result.stderr


def test_what_is_not_allowed_or_not_there_has_its_code(api: Api):
    assert api.overnight("ls", OVERNIGHT_TOKEN="wrong").exit_code == 4
    assert api.submit("run", "true", OVERNIGHT_TOKEN="").exit_code == 4
    assert api.overnight("show", "4711").exit_code == 5
    assert api.overnight("wait", "4711").exit_code == 5
    assert api.overnight("logs", "-f", "4711").exit_code == 5
    assert api.overnight("show", "../x").exit_code == 2
    assert api.overnight("show", "@last").exit_code == 5


# -- fate -------------------------------------------------------------------------------------------------------------

FATES = [
    (End.SUCCEEDED, None, 0),
    (End.FAILED, Cause.USER_ERROR, 1),
    (End.CANCELLED, None, 3),
    (End.FAILED, Cause.TIMEOUT, 6),
]


@pytest.mark.parametrize(("end", "cause", "code"), FATES)
def test_wait_exits_with_the_jobs_fate(api: Api, end: End, cause: Cause | None, code: int):
    job_id = api.queue()
    api.end(job_id, end, cause)
    assert api.overnight("wait", job_id).exit_code == code


def test_wait_for_several_sees_each_one_end(api: Api):
    ids = [api.queue() for _ in range(3)]
    waiting = api.start("overnight", "wait", "--json", *ids)
    for job_id in reversed(ids):
        api.end(job_id, End.CANCELLED if job_id == ids[1] else End.SUCCEEDED)
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 3, err
    assert [job["state"] for job in json.loads(out)["jobs"]] == ["succeeded", "cancelled", "succeeded"]


def test_submit_wait_is_silent_until_the_end(api: Api):
    waiting = api.start("submit", "run", "--wait", "--json", "true")
    until(lambda: stored(api) == 1)
    api.end("1", End.FAILED, Cause.TIMEOUT)
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 6, err
    assert json.loads(out)["outcome"]["cause"] == "timeout"


def test_follow_shows_the_log_and_ends_with_the_job(api: Api):
    following = api.start("submit", "run", "--follow", "true")
    until(lambda: stored(api) == 1)
    fence = api.run("1")
    api.print("1", "first line\nsecond ")
    api.store.renew("1", fence=fence, progress=Progress(phase="train", step=1, total=2), lease_s=60.0)
    api.print("1", "line\nno end")
    api.store.finish("1", fence=fence, outcome=Outcome(end=End.SUCCEEDED), now=time.time())
    out, err = following.communicate(timeout=30)
    assert following.returncode == 0, err
    assert out.splitlines()[-3:] == ["first line", "second line", "no end"]
    assert "Job 1 succeeded" in err


def test_follow_as_json_is_a_line_for_each_event(api: Api):
    job_id = api.queue()
    api.print(job_id, "a line\n")
    api.end(job_id)
    result = api.overnight("logs", "-f", "--json", job_id)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["type"] for event in events] == ["log", "state", "end"]
    assert events[0]["data"]["text"] == "a line\n"
    assert events[-1]["data"]["state"] == "succeeded"


def test_ctrl_c_detaches_and_the_job_goes_on(api: Api):
    following = api.start("submit", "run", "--follow", "true")
    until(lambda: stored(api) == 1)
    api.run("1")
    api.print("1", "it runs\n")
    assert following.stdout is not None
    until(lambda: "it runs" in following.stdout.readline())
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=30)
    assert following.returncode == 130
    assert "Detached. Job 1 goes on" in err
    assert api.store.get("1").state is State.RUNNING
    assert api.store.get("1").wish is None


def test_a_cut_connection_is_taken_up_where_it_broke(api: Api, cable: Cable):
    job_id = api.queue()
    fence = api.run(job_id)
    api.print(job_id, "one\n")
    following = api.start("overnight", "logs", "-f", "--all", job_id, OVERNIGHT_URL=cable.url)
    assert following.stdout is not None
    until(lambda: "one" in following.stdout.readline())
    cable.cut()
    api.print(job_id, "two\n")
    api.store.finish(job_id, fence=fence, outcome=Outcome(end=End.SUCCEEDED), now=time.time())
    out, err = following.communicate(timeout=30)
    assert following.returncode == 0, err
    assert out == "two\n"
    assert "The job is not affected; trying again." in err


# -- what can be done with jobs ---------------------------------------------------------------------------------------


def test_jobs_are_held_changed_cancelled_and_tried_again(api: Api):
    job_id = api.queue()
    assert "held" in api.overnight("hold", job_id).stdout
    assert api.store.get(job_id).held
    assert api.overnight("release", job_id).exit_code == 0
    assert api.overnight("edit", job_id, "--set", "priority=high", "--set", 'tags=["x"]').exit_code == 0
    assert (api.store.get(job_id).priority, api.store.get(job_id).tags) == ("high", ("x",))
    assert "cancelled" in api.overnight("cancel", job_id).stdout
    assert "queued" in api.overnight("retry", job_id).stdout
    assert api.overnight("rm", job_id).exit_code == 2
    api.overnight("cancel", job_id)
    assert api.overnight("rm", job_id).exit_code == 0
    assert stored(api) == 0


def test_one_refusal_does_not_stop_the_others(api: Api):
    first, second = api.queue(), api.queue()
    result = api.overnight("cancel", first, "4711", second)
    assert result.exit_code == 5
    assert [api.store.get(i).state for i in (first, second)] == [State.CANCELLED] * 2
    assert api.overnight("cancel", "@last").exit_code == 2


def test_a_change_inside_lora_keeps_the_rest(api: Api, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    api.submit("finetune", "--model", "org/m", "--data", str(tmp_path / "rows.jsonl"), "--lora-alpha", "99")
    result = api.overnight("edit", "@last", "--set", "lora.r=2")
    assert result.exit_code == 0, result.output
    assert api.store.page(limit=1).jobs[0].spec["lora"]["lora_alpha"] == 99
    assert api.store.page(limit=1).jobs[0].spec["lora"]["r"] == 2


def test_ls_filters_and_show_tells_everything(api: Api):
    failed, waiting = api.queue(name="bad one", tags=["t"]), api.queue(name="patient")
    api.end(failed, End.FAILED, Cause.NAN)
    listing = api.overnight("ls", "--failed").stdout
    assert "bad one" in listing
    assert "patient" not in listing
    assert "nan: so it was" in listing
    assert "patient" in api.overnight("ls", "--queued").stdout
    assert "patient" not in api.overnight("ls", "--tag", "t").stdout
    shown = api.overnight("show", failed).stdout
    assert "cause      nan" in shown
    assert "attempt 1: " in shown
    assert 'argv = ["true"]' in shown
    assert api.overnight("show", "@last").stdout.startswith(f"job        {waiting} patient")


def test_logs_show_the_last_lines_or_all(api: Api):
    job_id = api.queue()
    api.print(job_id, "".join(f"line {n}\n" for n in range(300)))
    assert api.overnight("logs", job_id).stdout.splitlines() == [f"line {n}" for n in range(100, 300)]
    assert api.overnight("logs", "-n", "2", job_id).stdout == "line 298\nline 299\n"
    assert len(api.overnight("logs", "--all", job_id).stdout.splitlines()) == 300
    api.end(job_id)
    assert api.overnight("logs", "-f", "-n", "1", job_id).stdout == "line 299\n"


def test_s17_a_hostile_job_cannot_steer_the_terminal(api: Api):
    hostile = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m honest\rforged [/b] [link=http://evil]x[/link]\x1b]8;;http://evil\x1b\\y\n"  # fmt: skip
    job_id = api.queue(name="loss [/b] [red]", argv=["true", hostile])
    api.print(job_id, hostile)
    api.store.finish(
        job_id, fence=api.run(job_id), now=time.time(),
        outcome=Outcome(end=End.FAILED, cause=Cause.USER_ERROR, message=hostile, hint=hostile),
    )  # fmt: skip
    for command in (["ls"], ["show", job_id], ["logs", job_id], ["logs", "--all", job_id], ["logs", "-f", job_id], ["wait", job_id]):  # fmt: skip
        result = api.overnight(*command)
        assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
        assert not CONTROLS.search(result.output), command
    assert "forged [/b] [link=http://evil]x[/link]y" in api.overnight("logs", job_id).stdout
    assert "loss [/b] [red]" in api.overnight("ls").stdout


def test_results_are_pulled_without_the_checkpoints(api: Api, tmp_path: Path):
    job_id = api.queue()
    folder = run_dir(api.home / "runs", job_id)
    folder.create()
    (folder.output / "adapter").mkdir()
    (folder.output / "adapter" / "weights").write_bytes(b"w" * 300_000)
    (folder.checkpoints / "state").write_text("large")
    folder.log.write_text("log\n")
    result = api.overnight("pull", job_id, "-o", str(tmp_path / "all"), "--json")
    assert result.exit_code == 0, result.output
    found = {str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").rglob("*") if p.is_file()}
    assert found == {"log.txt", "output/adapter/weights"}
    assert (tmp_path / "all/output/adapter/weights").read_bytes() == b"w" * 300_000
    assert api.overnight("pull", job_id, "output/adapter", "-o", str(tmp_path / "part")).exit_code == 0
    assert not (tmp_path / "part" / "log.txt").exists()
    assert api.overnight("pull", job_id, "no/such", "-o", str(tmp_path / "none")).exit_code == 5
    assert not (tmp_path / "none").exists()


def test_slots_are_shown_and_paused(api: Api):
    slots = [{"id": f"GPU-{n}", "name": "RTX [bold]", "index": n, "memory_bytes": 24 * 10**9} for n in range(2)]
    api.store.describe_rig("rig", {"slots": slots, "problem": None})
    assert "24.0 GB" in api.overnight("gpus").stdout
    assert "GPU 1 (RTX [bold]) takes no new job" in api.overnight("pause", "1").stdout
    assert api.store.paused() == {"rig:GPU-1"}
    assert api.overnight("resume", "GPU-1").exit_code == 0
    assert api.overnight("pause").exit_code == 0
    assert api.store.paused() == {"rig"}
    assert "no GPU of this rig" in api.overnight("pause", "7").stderr
    assert "paused = True" in api.overnight("rig").stdout


def test_the_token_command_gives_a_link_that_works_on_the_rig_only(api: Api):
    on_the_rig = api.overnight("token", OVERNIGHT_HOME=str(api.home), OVERNIGHT_TOKEN="", OVERNIGHT_URL="")
    assert on_the_rig.exit_code == 0, on_the_rig.output
    assert str(api.home / "token") in on_the_rig.stdout
    assert f"{api.url}/login#code=" in on_the_rig.stdout
    assert api.environment["OVERNIGHT_TOKEN"] not in on_the_rig.output
    assert api.overnight("token").exit_code == 5


def test_doctor_looks_at_the_rig_and_at_the_token(api: Api):
    api.store.beat("rig", {"at": time.time()})
    good = json.loads(api.overnight("doctor", "--json").stdout)["checks"]
    found = {check["name"]: check["level"] for check in good}
    assert (found["api"], found["login"], found["clock"], found["redis"]) == ("ok", "ok", "ok", "ok")
    bad = api.overnight("doctor", OVERNIGHT_TOKEN="wrong")
    assert bad.exit_code == 1
    assert re.search(r"^fail +login .*\n +On the rig", bad.stdout, re.MULTILINE)


# -- a whole rig ------------------------------------------------------------------------------------------------------


def test_overnight_up_runs_a_rig_that_submit_follows(home: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OVERNIGHT_")}
    environment |= {"OVERNIGHT_WARM_START": "false", "XDG_CONFIG_HOME": str(home / "config")}
    code = "from api.cli import overnight; overnight()"
    argv = [sys.executable, "-c", code, "up", "--home", str(home), "--port", "0", "--slots", "cpu:1"]
    with (home / "up.log").open("wb") as log:
        rig = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT, env=environment)
    try:
        until((home / "api.json").exists, within_s=30.0, evidence=(home / "up.log").read_text)
        here = CliRunner(env={"OVERNIGHT_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")})
        result = here.invoke(submit, ["run", "--follow", "--", "bash", "-c", "echo hello; exit 3"])
        assert result.exit_code == 1, result.output
        assert "hello" in result.stdout
        assert "Job 1 failed (user_error)" in result.stderr
    finally:
        rig.terminate()
        code_of_rig = rig.wait(60)
    assert code_of_rig == 0
    assert not (home / "api.json").exists()


def test_the_demo_uses_a_rig_that_runs_already_and_leaves_it_running(api: Api):
    api.store.beat("rig", {"at": time.time()})
    with demo.rig(api.home, demo.running(api.home), None) as (client, daemon):
        assert daemon is None
        assert client.url == api.url
        assert client.rig()["name"] == "rig"
    assert demo.running(api.home) == api.url


@pytest.mark.slow
def test_the_demo_trains_answers_and_ends_with_everything(home: Path, tiny_model: Path):
    """With the demo's model cut to two layers."""
    shutil.copytree(tiny_model, home / "models" / "SmolLM2-135M-Instruct", copy_function=os.link)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OVERNIGHT_")}
    environment |= {"OVERNIGHT_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "PYTHONUNBUFFERED": "1"}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = "from api.cli import overnight; overnight()"
    argv = [sys.executable, "-c", code, "demo", "--port", str(port)]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )
    try:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if "goes on until Ctrl-C" in line:
                break
        text = "".join(told)
        assert f"The page: http://127.0.0.1:{port}/login#code=" in text, text
        for job in ("Job 1", "Job 2", "Job 3"):
            assert re.search(rf"^{job} succeeded after", text, re.MULTILINE), text
        first, last = map(float, re.findall(r"loss (\S+) at first, (\S+) at last", text)[0])
        assert last < first
        assert text.count("→") == 3
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (home / "api.json").exists()
    with socket.create_server(("127.0.0.1", port)):
        pass  # nobody listens any more
