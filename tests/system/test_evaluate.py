"""Evaluation on real weights, in real processes that are killed: every row measured once, and the same as transformers measures it."""

import importlib.util
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import ended, finish, log, run_folder, start
from until import until

from jobs import snapshot
from jobs.encoding import encode
from jobs.evaluate import work
from jobs.evaluation import scoring
from jobs.evaluation.questions import Item, in_batches
from jobs.evaluation.scoring import Scorer
from jobs.rows_file import Row, RowsFile
from jobs.run import JobError, Order, Run
from jobs.rundir import RunDir, read_json, read_json_lines
from jobs.weights import Device

ROWS = 9


def question(number: int) -> dict[str, Any]:
    asked = "Where is the bolt? " * (1 + number * 5 % 7)
    return {"id": f"q{number}", "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"On shelf {number}."}]}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows"
    path.write_text("".join(json.dumps(question(number)) + "\n" for number in range(ROWS)))
    return path


def attempt(path: Path, model: Path, number: int = 1, **fields: Any) -> RunDir:
    places: dict[str, object] = {"model": model, **{name: fields.pop(name) for name in ("data", "task_path") if name in fields}}  # fmt: skip
    named = {name: "/x" for name in places if name != "model"}
    document = {"kind": "evaluate", "model": "tiny", "batch_size": 2, "max_new_tokens": 6, **named, **fields}
    return run_folder(path, document, places, resume=number > 1, attempt=number)


def rows(folder: RunDir) -> list[dict[str, Any]]:
    return list(read_json_lines(folder.rows))


def metrics(folder: RunDir) -> dict[str, Any]:
    return (read_json(folder.result) or {})["metrics"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: Path) -> RunDir:
    folder = attempt(tmp_path_factory.mktemp("undisturbed"), tiny_model, data=data)
    assert finish(folder) == 0, log(folder)
    return folder


def test_the_loss_of_each_row_is_the_one_of_transformers(undisturbed: RunDir, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found = rows(undisturbed)
    assert [row["id"] for row in found] == [f"q{number}" for number in range(ROWS)]
    for number, row in enumerate(found):
        encoded = encode(question(number), tokenizer, 1024)
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
        with torch.inference_mode():
            own = model(input_ids=ids, labels=labels)
        assert row["loss"] == pytest.approx(own.loss.item(), rel=1e-5)
        assert row["tokens"] == encoded.trained
        hits = (own.logits[0, :-1].argmax(-1) == ids[0, 1:])[labels[0, 1:] != -100]
        assert row["correct"] == int(hits.sum())


def test_the_result_says_what_was_measured_with_errors(undisturbed: RunDir) -> None:
    found, kept = metrics(undisturbed), read_json(undisturbed.results) or {}
    on = found["measured_on"]
    assert (on["rows"], on["asked_rows"], on["definition"], on["max_length"]) == (ROWS, ROWS, 1, 1024)
    assert {len(on[name]) for name in ("data_sha256", "template_sha256", "tokens_sha256")} == {64}
    assert found["eval_loss_stderr"] > 0
    assert kept["metrics"] == found
    assert kept["worst"][0]["loss"] == max(row["loss"] for row in rows(undisturbed))
    assert [line["eval_loss"] for line in read_json_lines(undisturbed.metrics)] == [found["eval_loss"]]


def test_a_kill_and_a_torn_write_leave_each_row_once_and_the_same(
    tmp_path: Path, tiny_model: Path, data: Path, undisturbed: RunDir
) -> None:
    folder = attempt(tmp_path, tiny_model, data=data)
    process = start(folder)
    until(lambda: len(rows(folder)) >= 2 or process.exitcode is not None, within_s=60, evidence=lambda: log(folder))
    process.kill()
    assert ended(process) == -signal.SIGKILL
    folder.rows.write_bytes(folder.rows.read_bytes() + b'{"index": 8, "id"')  # a torn tail
    assert finish(attempt(tmp_path, tiny_model, 2, data=data)) == 0, log(folder)
    assert rows(folder) == rows(undisturbed)
    assert 2 <= metrics(folder)["resumed_rows"] < ROWS
    same = ("resumed_rows",)
    assert {k: v for k, v in metrics(folder).items() if k not in same} == {
        k: v for k, v in metrics(undisturbed).items() if k not in same
    }


def test_a_limit_measures_the_first_rows_and_other_orders_start_over(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    folder = attempt(tmp_path, tiny_model, data=data, limit=3, max_new_tokens=0)
    assert finish(folder) == 0, log(folder)
    assert (len(rows(folder)), metrics(folder)["measured_on"]["asked_rows"]) == (3, 0)
    assert finish(attempt(tmp_path, tiny_model, 2, data=data, limit=2, max_new_tokens=0)) == 0, log(folder)
    assert (len(rows(folder)), metrics(folder)["resumed_rows"]) == (2, 0)


def test_a_row_that_cannot_be_used_names_its_line(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(json.dumps(question(1)) + "\n" + json.dumps({"prompt": "only this"}) + "\n")
    folder = attempt(tmp_path / "run", tiny_model, data=path)
    assert finish(folder) == 1
    found = read_json(folder.result) or {}
    assert found["cause"] == "bad_input" and "line 2" in found["message"]


# -- memory: torch's own error, raised by a model that fits only small batches ------------------------------------------


def measured_by(fits: int, folder: Path, count: int) -> tuple[list[Row], list[int]]:
    sizes: list[int] = []

    def measure(items: Sequence[Item]) -> list[Row]:
        sizes.append(len(items))
        if len(items) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [{"index": one.index} for one in items]

    run = Run(RunDir(folder), Order(job_id="1", attempt=1, fence=1, resume=False, spec={"batch_size": 8}))
    items = [Item(index=at, id=at, tokens=[1, 2], labels=[1, 2]) for at in range(count)]
    file = RowsFile(folder / "rows.jsonl", folder / "order.json", {})
    file.start_over()
    work(run, measure, items, in_batches(items, 8), file, done=0)
    file.finish()
    return list(file), sizes


def test_a_batch_that_does_not_fit_is_halved_and_no_row_is_lost(tmp_path: Path) -> None:
    found, sizes = measured_by(3, tmp_path, 12)
    assert [row["index"] for row in found] == list(range(12))
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]


def test_a_row_that_does_not_fit_alone_fails_the_job_instead_of_being_left_out(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="one row alone") as caught:
        measured_by(0, tmp_path, 4)
    assert caught.value.cause == "oom_gpu"


# -- bounded logits -----------------------------------------------------------------------------------------------------


def test_the_head_sees_a_few_positions_at_a_time_and_the_sums_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    items = [Item(index=n, id=n, tokens=[3 + n, *range(5, 5 + 9 * n)], labels=[-100, *range(5, 5 + 9 * n)]) for n in range(1, 4)]  # fmt: skip
    device = Device(name="cpu", dtype="float32")
    whole = Scorer(model, device, 0)(items)
    seen: list[int] = []
    scorer = Scorer(model, device, 0)
    model.lm_head.register_forward_hook(lambda module, given, output: seen.append(output.numel()))
    monkeypatch.setattr(scoring, "SCORING_TILE", 7 * 40)
    tiled = scorer(items)
    assert max(seen[2:]) == 7 * 40 and sum(seen[2:]) == 40 * sum(len(one.tokens) - 1 for one in items)
    for one, other in zip(whole, tiled, strict=True):
        assert one.loss == pytest.approx(other.loss) and (one.tokens, one.correct) == (other.tokens, other.correct)


# -- models that go on after their head ---------------------------------------------------------------------------------


def test_a_model_that_caps_its_logits_is_measured_by_its_own_way() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5)  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    model.lm_head.weight.data *= 100
    tokens = [3, 7, 11, 5, 9]
    [score] = Scorer(model, Device(name="cpu", dtype="float32"), 0)([Item(index=0, id=0, tokens=tokens, labels=tokens)])
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss.item()
    assert score.all_loss / score.all_tokens == pytest.approx(own, rel=1e-5)


# -- tasks of lm-eval ---------------------------------------------------------------------------------------------------

TASK = """
task: shelves
dataset_path: json
dataset_kwargs: {data_files: {test: shelves.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: ["left", "right"]
metric_list:
  - metric: acc
metadata: {version: 1.0}
"""


NEEDS_LM_EVAL = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'overnight[eval]'")  # fmt: skip


def own_tasks(folder: Path) -> Path:
    """A folder with a task and its data."""
    folder.mkdir(parents=True)
    (folder / "shelves.yaml").write_text(TASK)
    asked = [{"question": f"Shelf {n} is on the", "answer": n % 2} for n in range(6)]
    (folder / "shelves.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    return folder


@NEEDS_LM_EVAL
def test_a_task_of_ones_own_runs_without_a_network_and_goes_on_after_a_stop(tmp_path: Path, tiny_model: Path) -> None:
    tasks = own_tasks(tmp_path / "tasks")
    folder = attempt(tmp_path / "run", tiny_model, tasks=["shelves"], task_path=tasks, limit=4, num_fewshot=1)
    assert finish(folder, within_s=600) == 0, log(folder)
    found = metrics(folder)
    assert 0 <= found["shelves/acc"] <= 1 and found["shelves/acc_stderr"] > 0
    assert (read_json(folder.results) or {})["tasks"]["tasks"]["shelves"]["basis"]["n-samples"]["shelves"]["effective"] == 4  # fmt: skip
    again = attempt(tmp_path / "run", tiny_model, 2, tasks=["shelves"], task_path=tasks, limit=4, num_fewshot=1)
    assert finish(again, within_s=600) == 0, log(again)
    assert metrics(again) == found
    assert "1 task(s), 1 of them done before" in log(again)
    (tasks / "shelves.jsonl").write_text((tasks / "shelves.jsonl").read_text().replace("Shelf", "Drawer"))
    changed = attempt(tmp_path / "run", tiny_model, 3, tasks=["shelves"], task_path=tasks, limit=4, num_fewshot=1)
    assert finish(changed, within_s=600) == 0, log(changed)
    assert "1 task(s), 0 of them done before" in log(changed)
    missing = attempt(tmp_path / "missing", tiny_model, tasks=["shelfs"], task_path=tasks)
    assert finish(missing, within_s=600) == 1
    assert "lm-eval knows no 'shelfs'" in (read_json(missing.result) or {})["message"]


@NEEDS_LM_EVAL
def test_tasks_that_came_along_from_a_laptop_are_unpacked_and_found(tmp_path: Path, tiny_model: Path) -> None:
    own_tasks(tmp_path / "all/mine")
    with (tmp_path / "packed").open("wb") as file:
        snapshot.pack(tmp_path / "all", snapshot.listing(tmp_path / "all").names, file)
    digest = "sha256:" + "0" * 64
    spec = {
        "kind": "evaluate",
        "model": "tiny",
        "tasks": ["shelv*"],
        "workdir": digest,
        "task_path": "mine",
        "limit": 2,
    }
    folder = run_folder(tmp_path / "run", spec, {"model": tiny_model, "workdir": tmp_path / "packed"})
    assert finish(folder, within_s=600) == 0, log(folder)
    assert 0 <= metrics(folder)["shelves/acc"] <= 1
