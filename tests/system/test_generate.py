"""Generation on real weights, in real processes that are killed: every prompt has its answer once, and the same one."""

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attempts import ended, finish, log, run_folder, start
from until import until

from jobs.rundir import RunDir, read_json, read_json_lines

ROWS = 10
DRAWN = {"temperature": 0.8, "top_p": 0.9}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"id": f"q{n}", "prompt": "Where is the bolt? " * (1 + n * 5 % 7)} for n in range(ROWS)]
    return written(tmp_path_factory.mktemp("data") / "prompts", rows)


def written(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def attempt(
    path: Path, model: Path, data: Path, number: int = 1, paths: Mapping[str, object] | None = None, **fields: Any
) -> RunDir:
    document = {"kind": "generate", "model": "tiny", "data": "prompts", "max_new_tokens": 24, **fields}
    places = {"model": model, "data": data, **(paths or {})}
    return run_folder(path, document, places, resume=number > 1, attempt=number)


def answers(folder: RunDir) -> list[dict[str, Any]]:
    return list(read_json_lines(folder.generations))


def result(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: Path) -> RunDir:
    """An undisturbed run that draws its answers at random."""
    folder = attempt(tmp_path_factory.mktemp("sampled"), tiny_model, data, **DRAWN)
    assert finish(folder) == 0, log(folder)
    return folder


def test_every_prompt_is_answered_in_order(sampled: RunDir) -> None:
    found = answers(sampled)
    assert [answer["id"] for answer in found] == [f"q{n}" for n in range(ROWS)]
    assert [answer["index"] for answer in found] == list(range(ROWS))
    assert all(answer["prompt"].startswith("Where is the bolt?") for answer in found)
    assert {answer["finish_reason"] for answer in found} <= {"stop", "length"}
    assert all(0 < answer["completion_tokens"] <= 24 for answer in found)
    metrics = result(sampled)["metrics"]
    assert (metrics["rows"], metrics["failed_rows"], metrics["resumed_rows"]) == (ROWS, 0, 0)
    assert metrics["completion_tokens"] == sum(answer["completion_tokens"] for answer in found)
    assert metrics["engine"].startswith("transformers 5")
    assert "Continuous batching: 10 at once" in log(sampled)


def killed_on_the_way(folder: RunDir, sign: signal.Signals) -> int | None:
    process = start(folder)
    until(lambda: len(answers(folder)) >= 2 or process.exitcode is not None, within_s=60, evidence=lambda: log(folder))
    if sign == signal.SIGKILL:
        process.kill()
    else:
        process.terminate()
    return ended(process)


def test_a_kill_and_a_torn_write_leave_each_row_once_and_the_same(
    tmp_path: Path, tiny_model: Path, data: Path, sampled: RunDir
) -> None:
    drawn = {**DRAWN, "batch_size": 1}  # another size, and the same draws
    folder = attempt(tmp_path, tiny_model, data, **drawn)
    assert killed_on_the_way(folder, signal.SIGKILL) == -signal.SIGKILL
    written = folder.generations.read_bytes()
    folder.generations.write_bytes(written[: len(written) - 30])  # the last line is torn
    kept = len(answers(folder))
    assert finish(attempt(tmp_path, tiny_model, data, 2, **drawn)) == 0, log(folder)
    assert answers(folder) == answers(sampled)
    assert 0 < result(folder)["metrics"]["resumed_rows"] <= kept


def test_a_stop_keeps_what_is_answered(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data, batch_size=1)
    assert killed_on_the_way(folder, signal.SIGTERM) == 75, log(folder)
    assert result(folder)["end"] == "interrupted"
    assert 2 <= len(answers(folder)) < ROWS
    assert finish(attempt(tmp_path, tiny_model, data, 2, batch_size=1)) == 0, log(folder)
    assert [answer["index"] for answer in answers(folder)] == list(range(ROWS))


def test_other_parameters_start_over_and_are_never_mixed(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data, max_new_tokens=2)
    assert finish(folder) == 0, log(folder)
    assert finish(attempt(tmp_path, tiny_model, data, 2, max_new_tokens=4)) == 0, log(folder)
    assert result(folder)["metrics"]["resumed_rows"] == 0
    assert max(answer["completion_tokens"] for answer in answers(folder)) == 4


def test_a_bad_row_has_its_error_and_the_rest_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    short, long = ({"messages": [{"role": "user", "content": text}]} for text in ("Where?", "bolt " * 9000))
    data = written(tmp_path / "prompts", [short, long, "{torn\n", {"messages": []}, short])
    folder = attempt(tmp_path / "run", tiny_model, data, max_new_tokens=2)
    assert finish(folder) == 0, log(folder)
    first, second, third, fourth, fifth = answers(folder)
    assert second["error"]["code"] == "context_length_exceeded"
    assert "the model takes 8192 with its answer" in second["error"]["message"]
    assert (second["finish_reason"], second["text"]) == ("error", "")
    assert "line 3: not valid JSON" in third["error"]["message"]
    assert "line 4: `messages` is empty" in fourth["error"]["message"]
    assert first["text"] == fifth["text"]
    assert first["messages"] == short["messages"]
    assert (result(folder)["metrics"]["rows"], result(folder)["metrics"]["failed_rows"]) == (5, 3)
    assert "5 answers are in output/generations.jsonl, 3 of them with an error" in log(folder)


def test_a_file_of_bad_rows_fails_the_job(tmp_path: Path, tiny_model: Path) -> None:
    folder = attempt(tmp_path / "run", tiny_model, written(tmp_path / "prompts", [{"prompt": ""}, {"prompt": ""}]))
    assert finish(folder) == 1, log(folder)
    assert (result(folder)["cause"], len(answers(folder))) == ("bad_input", 2)
    assert "No prompt could be answered. The first: line 1: `prompt` is empty" in result(folder)["message"]


def test_openai_batch_lines_are_answered_in_their_own_shape(tmp_path: Path, tiny_model: Path) -> None:
    def line(name: str, **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Where is the bolt?"}]
        body = {"model": "gpt", "messages": messages, "max_tokens": 6, **body}
        return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}

    asked = [
        line("greedy"),
        line("drawn", temperature=1.0, seed=7, n=2),
        line("refused", logprobs=True),
        line("again", temperature=1.0, seed=7, n=2),
        line("stopped", stop=[" "]),
    ]
    folder = attempt(tmp_path / "run", tiny_model, written(tmp_path / "batch", asked), max_new_tokens=200)
    assert finish(folder) == 0, log(folder)
    found = {answer["custom_id"]: answer for answer in answers(folder)}
    assert list(found) == ["greedy", "drawn", "refused", "again", "stopped"]
    body = found["greedy"]["response"]["body"]
    assert body["usage"]["completion_tokens"] <= 6
    drawn, again = (found[name]["response"]["body"]["choices"] for name in ("drawn", "again"))
    assert len({choice["message"]["content"] for choice in drawn}) == 2
    assert drawn == again  # a seed of its own draws the same anywhere
    assert found["refused"]["error"]["message"] == "`logprobs` is not offered here"
    (stopped,) = found["stopped"]["response"]["body"]["choices"]
    assert stopped["finish_reason"] == "stop"
    assert " " not in stopped["message"]["content"]
    assert result(folder)["metrics"]["failed_rows"] == 1


def test_several_adapters_answer_in_one_load(
    tmp_path: Path, tiny_model: Path, two_adapters: Sequence[Path], data: Path
) -> None:
    one, two = two_adapters
    paths = {"adapters.one": one, "adapters.two": two}
    rows = [
        {"prompt": "Where is the bolt?"},
        {"prompt": "Who has it?", "adapter": "two"},
        {"prompt": "x", "adapter": "no"},
    ]
    asked = {"adapters": {"one": "job:1", "plain": "", "two": "job:2"}, "max_new_tokens": 8}
    folder = attempt(tmp_path / "run", tiny_model, written(tmp_path / "rows", rows), paths=paths, **asked)
    assert finish(folder) == 0, log(folder)
    found = answers(folder)
    assert [(answer["index"], answer.get("adapter")) for answer in found] == [
        (0, "one"), (0, "plain"), (0, "two"), (1, "two"), (2, None),
    ]  # fmt: skip
    assert found[-1]["error"]["message"] == "`adapter` is 'no'; the job's adapters are one, plain, two"
    assert len({answer["text"] for answer in found[:3]}) == 3
    # each says what it says alone, merged into the weights
    alone = attempt(tmp_path / "alone", tiny_model, written(tmp_path / "row", rows[:1]), paths={"adapter": two}, adapter="job:2", max_new_tokens=8)  # fmt: skip
    assert finish(alone) == 0, log(alone)
    assert answers(alone)[0]["text"] == found[2]["text"]


@pytest.fixture(scope="module")
def two_adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Path]:
    """Adapters that change what the model says, each in its own way."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        folders.append(tmp_path_factory.mktemp(f"adapter-{seed}"))
        get_peft_model(model, config).save_pretrained(str(folders[-1]))
    return folders
