"""A preflight on a whole rig: what would fail at three fails in the evening, and what passes runs with what was learned."""

import json
import os
import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attempts import ended, finish, log, run_folder, start
from click.testing import CliRunner
from until import until

from api.cli import overnight, submit
from daemon.process_tree import children
from jobs.estimate import Outlook
from jobs.model import Cause, End, Job, State
from jobs.rundir import RunDir, read_json, read_json_lines
from jobs.spec import parse

STEPS = 4
#: Refuses a word, as real templates refuse roles in a wrong order: nobody knows before the row is rendered.
TEMPLATE = "{% for m in messages %}{% if m.content == 'poison' %}{{ raise_exception('no poison here') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"  # fmt: skip


def rows(count: int, *, poison_at: int = -1) -> str:
    """Chats of growing length."""
    texts = ["poison" if n == poison_at else f"Say {n}" + " so" * n for n in range(count)]
    chats = [[{"role": "user", "content": t}, {"role": "assistant", "content": f"It is {n}."}] for n, t in enumerate(texts)]  # fmt: skip
    return "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)


@pytest.fixture
def closed(make_rig: Any, tiny_model: Path, home: Path) -> Any:
    """A rig whose window opens in six hours, with one warm slot."""
    shutil.copytree(tiny_model, home / "models" / "tiny")
    opens = datetime.now(UTC) + timedelta(hours=6)
    window = f"{opens:%H:%M}-{opens + timedelta(hours=2):%H:%M}"
    rig = make_rig(slots="cpu:1", warm_start=True, window=window, allowed_paths=str(home / "data"))
    worker = rig.settings.logs / "worker-cpu-0.log"
    until(lambda: worker.exists() and "warm start is ready" in worker.read_text(), within_s=120, evidence=rig.evidence)
    return rig


def at_the_terminal(rig: Any, command: Any, *words: object) -> str:
    address = until(lambda: read_json(rig.settings.home / "api.json"), within_s=30.0, evidence=rig.evidence)
    assert address is not None
    environment = {
        "OVERNIGHT_URL": address["url"],
        "OVERNIGHT_TOKEN": rig.token,
        "XDG_CONFIG_HOME": str(rig.settings.home),
    }
    found = CliRunner(env=environment).invoke(command, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.output


def test_a_bad_job_fails_before_the_window_opens_and_a_good_one_is_wiser_when_it_starts(
    closed: Any, tmp_path: Path
) -> None:
    rig = closed
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    ids = []
    for name, poison_at in (("good", -1), ("bad", 97)):
        (tmp_path / f"{name}.jsonl").write_text(rows(100, poison_at=poison_at))
        flags = ["--max-steps", STEPS, "--per-device-train-batch-size", 1, "--gradient-accumulation-steps", 1, "--max-length", 24]  # fmt: skip
        files = ["--data", tmp_path / f"{name}.jsonl", "--chat-template", tmp_path / "template.jinja"]
        said = at_the_terminal(rig, submit, "finetune", "--model", "tiny", *files, *flags, "--eval-fraction", 0.05, "--preflight", "--json")  # fmt: skip
        ids.append(json.loads(said)["id"])
    good, bad = ids

    over = rig.until_ended(bad, within_s=90)
    assert (over.state, over.outcome.cause) == (State.FAILED, Cause.BAD_INPUT)
    assert over.outcome.message.startswith("In its preflight: ") and "98" in over.outcome.message
    assert "preflight bad_input" in at_the_terminal(rig, overnight, "show", bad)

    checked: Job = until(lambda: (job := rig.job(good)).measured and job, within_s=60, evidence=rig.evidence)
    assert (checked.state, checked.attempt, checked.started_at) == (State.QUEUED, 0, None)
    assert checked.measured["steps"] == STEPS and checked.measured["expected_s"] > 0
    assert "outside the window" in at_the_terminal(rig, overnight, "ls")
    assert "It passed" in at_the_terminal(rig, overnight, "show", good)
    folder: RunDir = rig.folder(good)
    assert not folder.scratch.exists() and not folder.metrics.exists() and not list(folder.checkpoints.iterdir())
    assert (read_json(folder.preflight) or {})["sample"]["answer"] is not None

    at_the_terminal(rig, overnight, "edit", good, "--window", "any")
    done = rig.until_ended(good, within_s=90)
    assert done.state is State.SUCCEEDED, rig.evidence()
    assert [run.end for run in done.attempts] == [End.CHECKED, End.SUCCEEDED]
    assert [line["step"] for line in read_json_lines(folder.metrics) if "loss" in line] == list(range(1, STEPS + 1))


def attempt(path: Path, model: Path, **fields: Any) -> RunDir:
    """The folder of a job that is to be checked."""
    data = path / "rows"
    data.write_text(rows(8))
    document = {"kind": "finetune", "model": "tiny", "data": "rows", **fields}
    return run_folder(path / "run", document, {"model": model, "data": data}, preflight=True)


def test_on_a_disk_that_is_too_small_for_the_whole_job_not_even_the_few_steps_are_taken(tmp_path: Path, tiny_model: Path) -> None:  # fmt: skip
    folder = attempt(tmp_path, tiny_model)
    assert ended(start(folder, free_bytes=20_000_000)) == 1
    result = read_json(folder.result) or {}
    assert result["cause"] == Cause.DISK_FULL, log(folder)
    assert result["learned"]["disk_bytes"] > 20_000_000
    assert not list(read_json_lines(folder.aside.metrics))


def test_the_longest_rows_come_first_and_their_memory_running_out_halves_the_batch(tmp_path: Path, tiny_model: Path) -> None:  # fmt: skip
    folder = attempt(tmp_path, tiny_model, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    assert ended(start(folder, starves_above=2)) == 1
    result = read_json(folder.result) or {}
    assert result["cause"] == Cause.OOM_GPU
    assert result["next_fields"] == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def test_a_generation_answers_its_longest_prompts(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "prompts"
    data.write_text("".join(json.dumps({"prompt": "so " * n + "?"}) + "\n" for n in range(1, 8)))
    document = {"kind": "generate", "model": "tiny", "data": "prompts", "max_new_tokens": 4, "batch_size": 2}
    folder = run_folder(tmp_path / "run", document, {"model": tiny_model, "data": data}, preflight=True)
    assert finish(folder) == 0, log(folder)
    learned = (read_json(folder.result) or {})["learned"]
    assert learned["steps"] == 4 and learned["expected_s"] >= 4 * learned["step_s"]
    assert [answer["index"] for answer in read_json_lines(folder.aside.generations)] == [5, 6]
    assert not folder.generations.exists()


def test_one_on_two_slots_that_is_killed_comes_again_until_it_is_cancelled_and_leaves_nobody(
    make_rig: Any, tiny_model: Path, home: Path
) -> None:
    """First its worker dies, then the daemon."""
    shutil.copytree(tiny_model, home / "models" / "tiny")
    (home / "rows").write_text(rows(8))
    rig = make_rig(slots="cpu:2", allowed_paths=str(home))
    document = {"kind": "finetune", "model": "tiny", "data": str(home / "rows"), "max_steps": STEPS, "gpus": 2}  # fmt: skip
    [job], _ = rig.store.submit([parse(document)], now=1.0, outlooks=[Outlook(preflight=True)])

    def ranks() -> set[int]:
        leader = rig.child("cpu:0")

        def marked() -> list[int]:  # one that is just being started cannot be read for a moment
            found = children(leader)
            return found if found[1:] and set(found) <= set(rig.processes()) else []

        found = until(marked, within_s=60, evidence=rig.evidence)
        assert rig.job(job.id).in_preflight
        return {leader, *found}

    def are_gone(pids: set[int]) -> None:
        until(lambda: not pids & set(rig.processes()), evidence=rig.evidence)

    first = ranks()
    os.kill(rig.worker("cpu:0"), signal.SIGKILL)
    are_gone(first)
    second = ranks()
    rig.daemon.kill()
    are_gone(second)
    rig.daemon.wait()
    rig.start()
    third = ranks()
    rig.cancel(job.id)
    over = rig.until_ended(job.id, within_s=60)
    are_gone(third)
    assert [run.end for run in over.attempts] == [End.FAILED, End.FAILED, End.CANCELLED]
    assert [run.cause for run in over.attempts] == [Cause.LOST, Cause.LOST, None]
    assert all(run.preflight for run in over.attempts) and not rig.folder(job.id).scratch.exists()
