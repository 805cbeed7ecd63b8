"""The card beside a result: valid for a model hub, true, and enough to repeat the work."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from jobs.model_card import Base, DataFile, exported_card, trained_card
from jobs.run import Order
from jobs.spec import dump, parse
from jobs.spent import Spent

METRICS = {"train_loss": 0.5, "eval_loss": 0.6, "rows": 9, "tokens": 99, "trained_tokens": 44, "cut_rows": 1, "dropped_rows": 2, "best_step": None}  # fmt: skip
FILES = [DataFile(field="data", sha256="a" * 64, rows=9), DataFile(field="eval_data", sha256="b" * 64, rows=3)]
SPENT = Spent(time_s=5400.0, energy_j=7.2e6)


def order(paths: dict[str, str] | None = None, **fields: Any) -> Order:
    document = {"kind": "finetune", "model": "org/base@abc", "data": "sha256:" + "a" * 64, **fields}
    return Order(job_id="12", attempt=1, fence=1, resume=False, spec=dump(parse(document)), paths=paths or {})


def base_with_card(folder: Path, front: str) -> dict[str, str]:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    return {"model": str(folder)}


def test_a_hub_can_read_it(tmp_path: Path) -> None:
    paths = base_with_card(tmp_path / "base-7b", "license: other\nlicense_name: llama3\nlicense_link: LICENSE")
    card = ModelCard(trained_card(order(paths, model="base-7b", name='say "hi": #1'), FILES, METRICS, SPENT))
    told = card.data.to_dict()
    assert told == {
        "base_model": "base-7b", "base_model_relation": "adapter", "license": "other", "license_name": "llama3",
        "license_link": "LICENSE", "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "sft", "overnight"],
    }  # fmt: skip
    assert card.text.startswith('\n# say "hi": #1') and str(tmp_path) not in card.content


def test_what_was_chosen_comes_before_what_comes_by_itself() -> None:
    text = trained_card(order(learning_rate=1e-3, lora={"r": 64}, tags=["x"], priority="high"), FILES, METRICS, SPENT)
    chosen, rest = text.partition("## Parameters")[2].partition("<details>")[::2]
    assert "| learning_rate | 0.001 |" in chosen and "| lora.r | 64 |" in chosen and "max_length" not in chosen
    assert "| max_length | 1024 |" in rest and "learning_rate |" not in rest and "priority" not in chosen + rest


def test_data_results_time_and_energy_are_told() -> None:
    text = trained_card(order(), FILES, METRICS, SPENT)
    assert (
        f"| data | uploaded | 9 | `{'a' * 64}` |" in text
        and f"| eval_data | a part of `data` | 3 | `{'b' * 64}` |" in text
    )
    assert "| eval_loss | 0.6 |" in text and "best_step" not in text
    assert "| time | 90.0 min |" in text and "| energy of its GPUs | 2 kWh |" in text


def test_the_document_in_it_is_the_same_work_again() -> None:
    made = order(
        learning_rate=1e-3, lora={"r": 64, "use_dora": True}, effective_batch_size=8, name="x", window="any", seed=7
    )
    text = trained_card(made, FILES, METRICS, SPENT)
    again = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert {**dump(parse(again)), "name": "x", "window": "any"} == made.spec
    assert "overnight rerun 12 --exact" in text


def test_a_base_without_a_licence_is_said_and_a_stranger_card_does_no_harm(tmp_path: Path) -> None:
    assert "names no licence" in trained_card(order(), FILES, METRICS, SPENT)
    paths = base_with_card(tmp_path / "m", "license: [\nbase_model: ]")
    assert Base.of(order(paths, model="m")) == Base(name="m", terms={})


def test_no_licence_of_a_stranger_can_spoil_the_card(tmp_path: Path) -> None:
    paths = base_with_card(
        tmp_path / "m", 'license: "\\ud800mit\\x7f"\nlicense_name: "a\\nmodel-index: []\\x85"\nlicense_link: [1]'
    )
    text = trained_card(order(paths, model="m"), FILES, METRICS, SPENT)
    text.encode()
    told = ModelCard(text).data.to_dict()
    assert (told["license"], told["license_name"]) == ("mit", "amodel-index: []")
    assert "license_link" not in told and "model-index" not in told


def test_no_folder_of_the_rig_is_named(tmp_path: Path) -> None:
    model = base_with_card(tmp_path / "base", "license: mit")
    files = {
        "data": "/home/ada/secret/rows.jsonl",
        "eval_data": "/home/ada/e.jsonl",
        "chat_template": "/home/ada/own.jinja",
    }
    made = order(model, model=model["model"], adapter="/home/ada/first/", **files)
    text = trained_card(made, FILES, METRICS, SPENT)
    assert "/home" not in text and str(tmp_path) not in text
    again = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert (again["model"], again["data"], again["adapter"]) == ("base", "rows.jsonl", "first")
    assert "own.jinja" in text


def test_a_chain_of_jobs_names_the_model_at_its_beginning(tmp_path: Path) -> None:
    paths = base_with_card(tmp_path / "model", "license: mit\nbase_model: org/first")
    assert Base.of(order(paths, model="job:3")) == Base(name="org/first", terms={"license": "mit"})


def test_a_merged_model_says_what_was_merged() -> None:
    facts = {"adapter_sha256": "c" * 64, "dtype": "bfloat16"}
    card = ModelCard(exported_card(order(), facts, 0.0123))
    assert card.data.base_model == "org/base" and card.data.library_name == "transformers"
    assert "c" * 64 in card.text and "in bfloat16" in card.text and "0.012 of their spread" in card.text
