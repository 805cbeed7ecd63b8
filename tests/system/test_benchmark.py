"""Benchmarks on real weights in real processes, and every way in which a cell is not measured."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attempts import ended, finish, log, run_folder, start
from fake_nvml.fakenvml import FakeNvml
from until import until

from jobs import benchmark, weights
from jobs.cells import Cell, Timing, cell_of
from jobs.energy_counter import spent_j
from jobs.model import Cause
from jobs.run import Interrupted, JobError, Order, Run
from jobs.rundir import RunDir, read_json, read_json_lines

SMALL = {"batch_sizes": [1, 3], "prompt_lengths": [5, 40], "new_tokens": 4, "repeats": 2}


def attempt(path: Path, model: Path, number: int = 1, **fields: Any) -> RunDir:
    document = {"kind": "benchmark", "model": "tiny", **SMALL, **fields}
    return run_folder(path, document, {"model": model}, resume=number > 1, attempt=number)


def rows(folder: RunDir) -> list[dict[str, Any]]:
    return list(read_json_lines(folder.cells))


def result(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


def test_every_cell_of_every_precision_is_measured_or_has_its_reason(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    precisions = {"dtypes": ["float32", "float16"], "quantizations": ["none", "nf4"], "prompt_lengths": [5, 8190]}
    folder = attempt(tmp_path, tiny_model, **precisions)

    assert finish(folder) == 0, log(folder)
    found = {cell_of(row): row for row in rows(folder)}
    ran = [row for row in found.values() if row["state"] == "measured"]
    assert len(found) == 16
    assert {(row["quantization"], row["batch_size"]) for row in ran} == {("none", 1), ("none", 3), ("nf4", 1), ("nf4", 3)}  # fmt: skip
    assert all(row["decode_tokens_per_s"] > 0 and row["ttft_s"] > 0 and row["peak_rss_bytes"] > 2**28 for row in ran)
    assert all((row["new_tokens"], row["repeats"]) == (4, 2) for row in ran)
    assert all(row["started_at"] < row["ended_at"] for row in ran)
    reasons = {row["reason"] for row in found.values() if row["state"] == "not_run"}
    assert reasons == {"8194 tokens are more than the model's 8192", "A CPU cannot compute in float16. Set dtype to auto or float32."}  # fmt: skip
    told = result(folder)["metrics"]
    assert told["decode_tokens_per_s"] == pytest.approx(max(row["decode_tokens_per_s"] for row in ran), rel=1e-3)
    assert (told["cells"], told["cells_measured"]) == (16, 4)
    assert "## nf4 in float32" in folder.table.read_text()
    progress = read_json(folder.progress) or {}
    assert (progress["step"], progress["total"]) == (16, 16)


def test_a_killed_benchmark_goes_on_with_the_cell_that_it_was_at(tmp_path: Path, tiny_model: Path) -> None:
    long = {"new_tokens": 16, "prompt_lengths": [5, 40, 80], "batch_sizes": [1]}
    folder = attempt(tmp_path, tiny_model, **long)
    process = start(folder)
    until(lambda: len(rows(folder)) >= 2 or process.exitcode is not None, within_s=60, evidence=lambda: log(folder))
    process.kill()
    assert ended(process) == -signal.SIGKILL
    kept = rows(folder)[:-1]
    written = folder.cells.read_bytes()
    folder.cells.write_bytes(written[: len(written) - 30])  # the last line is torn

    assert finish(attempt(tmp_path, tiny_model, 2, **long)) == 0, log(folder)
    after = rows(folder)
    assert after[: len(kept)] == kept
    assert [cell_of(row) for row in after] == list(dict.fromkeys(cell_of(row) for row in after))
    assert len(after) == 3


def test_a_stop_ends_it_within_a_token(tmp_path: Path, tiny_model: Path) -> None:
    folder = attempt(tmp_path, tiny_model, new_tokens=4000)
    process = start(folder)
    until(lambda: (read_json(folder.progress) or {}).get("phase") == "loading" and "Loading the model" in log(folder), within_s=60)  # fmt: skip
    process.terminate()
    assert ended(process) == 75, log(folder)
    assert result(folder)["end"] == "interrupted"


def test_the_energy_counter_is_that_of_the_card_that_the_job_has(fake_nvml: Callable[..., FakeNvml]) -> None:
    fake = fake_nvml(["3090", "3090"])
    fake.gpu[1].energy_mj = 5_000_000
    fake.power(1, 0)
    code = (
        "import json; from jobs.energy_counter import EnergyCounter, uuid_of_this_process\n"
        "mine, nobodys = EnergyCounter(uuid_of_this_process()), EnergyCounter('GPU-none')\n"
        "print(json.dumps([mine.read_j(), mine.memory_used_bytes(), nobodys.read_j(), nobodys.memory_used_bytes()]))\n"
    )

    def read(**environment: str) -> list[float | None]:
        done = subprocess.run([sys.executable, "-c", code], env=fake.env() | environment, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: list[float | None] = json.loads(done.stdout)
        return found

    joules, used_bytes, *nothing = read(OVERNIGHT_GPU_UUID=fake.uuid(1))
    assert joules == pytest.approx(5000, abs=25)
    assert used_bytes
    assert nothing == [None, None]
    fake.fail(1, "Energy", 3)  # as a card without the counter says
    assert read(OVERNIGHT_GPU_UUID=fake.uuid(1))[0] is None
    assert read(OVERNIGHT_GPU_UUID=f"{fake.uuid(0)},{fake.uuid(1)}")[0] is None


def test_a_counter_that_began_anew_says_nothing() -> None:
    assert (spent_j(10.0, 12.5), spent_j(10.0, 2.5), spent_j(None, 2.5), spent_j(2.5, None)) == (2.5, None, None, None)


# -- without weights: what each failure means -----------------------------------------------------------------------------


class Bench:
    """A benchmark whose model is made of air: it takes as long, and needs as much, as a test says."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch, **fields: Any):
        document = {"kind": "benchmark", "model": "air", **SMALL, **fields}
        self.folder = run_folder(path, document, {"model": path})
        self.run = Run(self.folder, Order.read(self.folder))
        self.tried: list[Cell] = []
        self.largest, self.first_s, self.context, self.card = 10**9, 0.1, 8192, "a card"
        patch.setattr(benchmark, "Meter", lambda *_: self)
        patch.setattr(benchmark, "_card", lambda: self.card)
        patch.setattr(weights, "load_model", lambda *_, **__: self._load())
        patch.setattr(benchmark, "_facts", lambda run: None)

    def _load(self) -> Any:
        return SimpleNamespace(config=SimpleNamespace(max_position_embeddings=self.context))

    def measure(self, cell: Cell, *, new_tokens: int, repeats: int, seed: int) -> Any:
        self.tried.append(cell)
        if cell.prompt_tokens > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [Timing(first_token_s=self.first_s, between_s=[0.01] * (new_tokens - 1))] * repeats, {}, None

    def release(self) -> None:
        pass

    def __call__(self) -> dict[str, Any]:
        return benchmark.Benchmark(self.run).work()

    def states(self) -> dict[tuple[int, int], str]:
        return {(r["batch_size"], r["prompt_length"]): r["state"] for r in rows(self.folder)}

    def reasons(self) -> set[str]:
        return {row["reason"] for row in rows(self.folder) if "reason" in row}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    return lambda **fields: Bench(tmp_path, monkeypatch, **fields)


def test_after_a_cell_that_does_not_fit_no_larger_one_is_tried(bench: Callable[..., Bench]) -> None:
    made = bench(batch_sizes=[1, 4, 16], prompt_lengths=[10, 100])
    made.largest = 150
    told = made()

    assert made.states() == {
        (1, 10): "measured", (4, 10): "measured", (1, 100): "measured",
        (16, 10): "does_not_fit", (4, 100): "does_not_fit", (16, 100): "does_not_fit",
    }  # fmt: skip
    assert [(c.batch_size, c.prompt_length) for c in made.tried if c.prompt_tokens > 150] == [(16, 10), (4, 100)]
    assert made.reasons() == {"the memory ran out", "a smaller one did not"}
    assert told["cells_not_fitting"] == 3


def test_a_cell_that_would_take_too_long_is_left_out(bench: Callable[..., Bench]) -> None:
    made = bench(prompt_lengths=[10, 10_000], batch_sizes=[1], max_cell_s=60)
    made.context = 10**6
    made()

    assert made.states() == {(1, 10): "measured", (1, 10_000): "not_run"}
    assert made.reasons() == {"would take about 5:00, and max_cell_s is 60"}


def test_a_precision_that_cannot_run_leaves_the_others_alone(bench: Callable[..., Bench]) -> None:
    made = bench(dtypes=["float16", "float32"])
    made()
    assert {(row["dtype"], row["state"]) for row in rows(made.folder)} == {("float16", "not_run"), ("float32", "measured")}  # fmt: skip


def test_when_nothing_could_run_the_job_fails_for_that_reason(bench: Callable[..., Bench]) -> None:
    made = bench(dtypes=["float16"])
    with pytest.raises(JobError, match="A CPU cannot compute in float16") as failed:
        made()
    assert failed.value.cause is Cause.BAD_INPUT
    assert "not run: A CPU cannot" in made.folder.table.read_text()


def test_a_network_that_fails_is_no_answer(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench()

    def refuse(*_: Any, **__: Any) -> None:
        raise JobError(Cause.FETCH, "no route")

    monkeypatch.setattr(weights, "load_model", refuse)
    with pytest.raises(JobError, match="no route"):
        made()
    assert rows(made.folder) == []


def test_what_another_card_measured_is_measured_again(bench: Callable[..., Bench]) -> None:
    made = bench()
    made()
    first = len(made.tried)
    made.run = Run(made.folder, Order(**{**vars(made.run.order), "resume": True}))
    made()
    assert len(made.tried) == first, "all was there"
    made.card = "another card"
    made()
    assert len(made.tried) == 2 * first
    assert {row["card"] for row in rows(made.folder)} == {"another card"}


def test_on_a_cpu_what_would_swap_is_not_tried(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(batch_sizes=[1, 64], prompt_lengths=[40])
    monkeypatch.setattr(benchmark, "_facts", lambda run: SimpleNamespace())
    monkeypatch.setattr(benchmark, "inference_bytes", lambda facts, size, *_, **__: size << 34)
    monkeypatch.setattr(benchmark.psutil, "virtual_memory", lambda: SimpleNamespace(available=20 << 30))
    made()
    assert made.states() == {(1, 40): "measured", (64, 40): "does_not_fit"}
    assert "needs about 1024.0 GiB of memory" in next(iter(made.reasons()))


def test_a_stop_between_two_cells_is_obeyed(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.run.stop_requested = True
    with pytest.raises(Interrupted):
        made()
    assert made.tried == []
