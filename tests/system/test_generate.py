"""Generation on real weights, in real processes that are killed: every prompt has its answer once, and the same one."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import ended, finish, log, run_folder, start
from until import until

from jobs.generate import OUT_OF_MEMORY, work
from jobs.generations import Answer, Generations
from jobs.prompts import Prompt
from jobs.run import Interrupted, JobError, Order, Run
from jobs.rundir import RunDir, read_json, read_json_lines

ROWS = 14


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts"
    rows = [{"id": f"q{n}", "prompt": "Where is the bolt? " * (1 + n * 5 % 7)} for n in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def attempt(path: Path, model: Path, data: Path, number: int = 1, **fields: Any) -> RunDir:
    document = {"kind": "generate", "model": "tiny", "data": "prompts", "max_new_tokens": 24, "batch_size": 2, **fields}
    places: dict[str, object] = {"model": model, "data": data}
    if "adapter" in fields:
        places["adapter"] = fields["adapter"]
    return run_folder(path, document, places, resume=number > 1, attempt=number)


def answers(folder: RunDir) -> list[dict[str, Any]]:
    return list(read_json_lines(folder.generations))


def result(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: Path) -> RunDir:
    """An undisturbed run that draws its answers at random."""
    folder = attempt(tmp_path_factory.mktemp("sampled"), tiny_model, data, temperature=0.8, top_p=0.9)
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


def killed_on_the_way(folder: RunDir, sign: signal.Signals) -> int | None:
    process = start(folder)
    until(lambda: len(answers(folder)) >= 4 or process.exitcode is not None, within_s=60, evidence=lambda: log(folder))
    if sign == signal.SIGKILL:
        process.kill()
    else:
        process.terminate()
    return ended(process)


def test_a_kill_and_a_torn_write_leave_each_row_once_and_the_same(
    tmp_path: Path, tiny_model: Path, data: Path, sampled: RunDir
) -> None:
    drawn = {"temperature": 0.8, "top_p": 0.9}
    folder = attempt(tmp_path, tiny_model, data, **drawn)
    assert killed_on_the_way(folder, signal.SIGKILL) == -signal.SIGKILL
    written = folder.generations.read_bytes()
    folder.generations.write_bytes(written[: len(written) - 30])  # the last line is torn
    kept = len(answers(folder))
    assert finish(attempt(tmp_path, tiny_model, data, 2, **drawn)) == 0, log(folder)
    assert answers(folder) == answers(sampled)
    assert 0 < result(folder)["metrics"]["resumed_rows"] <= kept


def test_a_stop_ends_it_between_two_batches(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data)
    assert killed_on_the_way(folder, signal.SIGTERM) == 75, log(folder)
    assert result(folder)["end"] == "interrupted"
    assert 4 <= len(answers(folder)) < ROWS
    assert finish(attempt(tmp_path, tiny_model, data, 2)) == 0, log(folder)
    assert [answer["index"] for answer in answers(folder)] == list(range(ROWS))


def test_other_parameters_start_over_and_are_never_mixed(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data, max_new_tokens=2)
    assert finish(folder) == 0, log(folder)
    assert finish(attempt(tmp_path, tiny_model, data, 2, max_new_tokens=4)) == 0, log(folder)
    assert result(folder)["metrics"]["resumed_rows"] == 0
    assert max(answer["completion_tokens"] for answer in answers(folder)) == 4


def test_a_prompt_that_is_too_long_has_an_error_and_the_rest_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    rows = tmp_path / "prompts"
    long = {"messages": [{"role": "user", "content": "bolt " * 9000}]}
    short = {"messages": [{"role": "user", "content": "Where?"}]}
    rows.write_text("".join(json.dumps(row) + "\n" for row in (short, long, short)))
    folder = attempt(tmp_path / "run", tiny_model, rows, max_new_tokens=2)
    assert finish(folder) == 0, log(folder)
    first, second, third = answers(folder)
    assert "the model takes 8192 with its answer" in second["error"]
    assert (second["finish_reason"], second["text"]) == ("error", "")
    assert first["text"] == third["text"]
    assert first["messages"] == short["messages"]
    assert result(folder)["metrics"]["failed_rows"] == 1


def test_batching_does_not_change_an_answer(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    alone = attempt(tmp_path / "alone", tiny_model, data, batch_size=1, max_new_tokens=6)
    together = attempt(tmp_path / "together", tiny_model, data, batch_size=ROWS, max_new_tokens=6)
    assert (finish(alone), finish(together)) == (0, 0), log(together)
    assert answers(alone) == answers(together)


# -- memory: torch's own error, raised by a model that fits only small batches ------------------------------------------


class SmallGpu:
    """Answers at most `fits` prompts at a time."""

    def __init__(self, fits: int):
        self.fits = fits
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[Prompt]) -> list[Answer]:
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [{"index": prompt.index, "completion_tokens": 1} for prompt in batch]


def answered_by(model: SmallGpu, folder: Path, batches: list[list[int]], *, stop: bool = False) -> list[Answer]:
    run = Run(RunDir(folder), Order(job_id="1", attempt=1, fence=1, resume=False, spec={}))
    run.stop_requested = stop
    prompts = [Prompt(index, {"prompt": "x"}, [1]) for index in range(sum(map(len, batches)))]
    file = Generations(folder / "answers.jsonl", folder / "order.json", {})
    file.start_over()
    work(run, model, prompts, batches, file, done=0, batch_size=8)
    return file.finish()


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path: Path) -> None:
    gpu = SmallGpu(3)
    found = answered_by(gpu, tmp_path, [list(range(8)), [8, 9, 10, 11]])
    assert [answer["index"] for answer in found] == list(range(12))
    assert gpu.sizes == [8, 4, 2, 2, 2, 2, 2, 2]


def test_a_gpu_without_room_for_one_prompt_fails_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="even one prompt at a time") as caught:
        answered_by(SmallGpu(0), tmp_path, [list(range(8))])
    assert caught.value.cause == "oom_gpu"
    assert not caught.value.next_fields
    assert OUT_OF_MEMORY not in (tmp_path / "answers.jsonl").read_text()


def test_a_stop_is_seen_before_the_next_batch(tmp_path: Path) -> None:
    gpu = SmallGpu(8)
    with pytest.raises(Interrupted):
        answered_by(gpu, tmp_path, [[0]], stop=True)
    assert gpu.sizes == []
