"""vLLM behind the same document: our driver in another Python, with a stand-in for vLLM; real tokenizer, real files, real kills."""

import json
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attempts import ended, finish, log, run_folder, start
from until import until

from jobs.generation.sampling import Sampling
from jobs.generation.vllm_engine import SHARD, parameters
from jobs.rundir import RunDir, read_json, read_json_lines

FAKE = Path(__file__).parents[1] / "fake_vllm"
ROWS = 600


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], Path]:
    """A Python that finds the stand-in, which fails as it is told."""

    def made(fails: str = "") -> Path:
        path = tmp_path / f"python-{fails}"
        path.write_text(f'#!/bin/sh\nexec env PYTHONPATH="{FAKE}" FAKE_VLLM="{fails}" "{sys.executable}" "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return made


def attempt(path: Path, model: Path, rows: Sequence[object], python: Path, number: int = 1, **fields: Any) -> RunDir:
    data = path.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {"kind": "generate", "model": "m", "data": "d", **fields}
    adapters = {f"adapters.{name}": place for name, place in fields.get("adapters", {}).items() if place}
    paths = {"model": model, "data": data, "vllm_python": python, **adapters}
    return run_folder(path, document, paths, resume=number > 1, attempt=number)


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{n}", "prompt": "bolt " * (1 + n % 5)} for n in range(count)]


def answers(folder: RunDir) -> list[dict[str, Any]]:
    return list(read_json_lines(folder.generations))


def test_many_rows_go_to_vllm_in_shards(tmp_path: Path, tiny_model: Path, python: Callable[..., Path]) -> None:
    folder = attempt(tmp_path / "run", tiny_model, prompts(ROWS), python(), max_new_tokens=5)
    assert finish(folder) == 0, log(folder)
    found = answers(folder)
    assert [answer["id"] for answer in found] == [f"q{n}" for n in range(ROWS)]
    assert found[0]["text"] == f"base {found[0]['prompt_tokens']} 5 None #0"  # greedy has no seed
    assert found[0]["completion_tokens"] == 1  # without the token that ends it
    metrics = (read_json(folder.result) or {})["metrics"]
    assert (metrics["engine"], metrics["rows"], metrics["failed_rows"]) == ("vLLM 0.33.0", ROWS, 0)


def test_a_kill_and_a_stop_lose_at_most_a_shard(tmp_path: Path, tiny_model: Path, python: Callable[..., Path]) -> None:
    # a shard that is on its way when the stop comes is still waited for, and must not be the last one
    asked, rows = {"temperature": 0.9, "n": 2}, 4 * SHARD
    folder = attempt(tmp_path / "run", tiny_model, prompts(rows), python("slow"), **asked)
    for number, sign in ((2, signal.SIGKILL), (3, signal.SIGTERM)):
        before = len(answers(folder))
        process = start(folder)
        until(lambda: len(answers(folder)) > before or process.exitcode is not None, within_s=60, evidence=lambda: log(folder))  # noqa: B023  # fmt: skip
        if sign == signal.SIGKILL:
            process.kill()
        else:
            process.terminate()
        assert ended(process) == (-signal.SIGKILL if sign == signal.SIGKILL else 75), log(folder)
        folder = attempt(tmp_path / "run", tiny_model, prompts(rows), python("slow"), number, **asked)
    kept = len(answers(folder))
    assert kept in (2 * SHARD, 3 * SHARD)
    assert finish(folder) == 0, log(folder)
    found = answers(folder)
    assert [answer["id"] for answer in found] == [f"q{n}" for n in range(rows)]
    assert (read_json(folder.result) or {})["metrics"]["resumed_rows"] == kept
    # each row draws from a seed of its own
    assert len({answer["text"].split()[3] for answer in found}) == rows
    assert all(len(answer["texts"]) == 2 for answer in found)


def test_a_request_that_it_refuses_has_its_error_and_adapters_are_named(
    tmp_path: Path, tiny_model: Path, python: Callable[..., Path]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 24}')
    body = {"model": "tuned", "max_tokens": 3}
    rows = [
        {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {**body, "prompt": text}}
        for name, text in (("good", "bolt"), ("long", " bolt" * 13))
    ]
    adapters = {"tuned": str(adapter), "plain": ""}
    folder = attempt(tmp_path / "run", tiny_model, rows, python(), engine="vllm", adapters=adapters)
    assert finish(folder) == 0, log(folder)
    good, long = answers(folder)
    assert good["response"]["body"]["choices"][0]["text"].startswith("tuned 1 3 ")
    assert good["response"]["body"]["model"] == "tuned"
    assert "longer than the maximum model length" in long["error"]["message"]


def test_what_cannot_load_is_said_and_transformers_answers_where_it_may(
    tmp_path: Path, tiny_model: Path, python: Callable[..., Path]
) -> None:
    folder = attempt(tmp_path / "asked", tiny_model, prompts(2), python("load"), engine="vllm", max_new_tokens=1)
    assert finish(folder) == 1
    assert "No available memory for the cache blocks" in (read_json(folder.result) or {})["message"]
    folder = attempt(tmp_path / "auto", tiny_model, prompts(501), python("load"), max_new_tokens=1, batch_size=64)
    assert finish(folder) == 0, log(folder)
    assert "vLLM cannot be used (ValueError: No available memory" in log(folder)
    assert len(answers(folder)) == 501


def test_out_of_memory_on_the_way_keeps_what_is_done(
    tmp_path: Path, tiny_model: Path, python: Callable[..., Path]
) -> None:
    folder = attempt(tmp_path / "run", tiny_model, prompts(ROWS), python("memory"))
    assert finish(folder) == 1
    assert (read_json(folder.result) or {})["cause"] == "oom_gpu"
    assert len(answers(folder)) == SHARD


def test_a_program_that_dies_is_noticed_though_its_own_processes_hold_the_pipe(
    tmp_path: Path, tiny_model: Path, python: Callable[..., Path]
) -> None:
    folder = attempt(tmp_path / "run", tiny_model, prompts(ROWS), python("dies"))
    assert finish(folder) == 1
    result = read_json(folder.result) or {}
    assert (result["cause"], result["message"]) == (
        "signal",
        "vLLM was killed by SIGKILL, which Overnight did not send.",
    )
    assert len(answers(folder)) == SHARD


def test_a_model_that_is_too_large_for_the_gpu_is_told_as_that(
    tmp_path: Path, tiny_model: Path, python: Callable[..., Path]
) -> None:
    folder = attempt(tmp_path / "run", tiny_model, prompts(2), python("large"), engine="vllm", max_new_tokens=1)
    assert finish(folder) == 1
    assert (read_json(folder.result) or {})["cause"] == "oom_gpu"


def test_parameters_have_vllms_names() -> None:
    asked = parameters(Sampling(max_new_tokens=9, temperature=0.5, top_k=3, stop=("a",), n=2, stream="42/0"))
    assert (asked["max_tokens"], asked["top_k"], asked["stop"], asked["n"]) == (9, 3, ["a"], 2)
    assert asked["seed"] == Sampling(stream="42/0").seed_of(0)
    assert parameters(Sampling())["seed"] is None
