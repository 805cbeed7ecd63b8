"""Exports of real weights: a merged model that says what model and adapter say, one file for llama.cpp, and nothing made twice."""

import json
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from attempts import curve, ended, finish, log, run_folder, start
from huggingface_hub import ModelCard
from model_folders import copy_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from until import until

from jobs import exports
from jobs.run import Order, Run
from jobs.rundir import RunDir, read_json

ROWS = [{"prompt": f"Where is bolt {n}?", "completion": f"On shelf {n % 7}."} for n in range(24)]
MOST_DIFFERENCE = 1e-3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def train(path: Path, model: Path, data: Path, number: int = 1, **fields: Any) -> RunDir:
    document = {"kind": "finetune", "model": "tiny", "data": "rows", "max_steps": 3, "per_device_train_batch_size": 2}
    document |= {"gradient_accumulation_steps": 1, "learning_rate": 5e-3, "lora": {"r": 4}}
    places = {"model": model, "data": data}
    return run_folder(path, {**document, **fields}, places, resume=number > 1, attempt=number)


def export(path: Path, document: dict[str, Any], places: dict[str, object], number: int = 1) -> RunDir:
    return run_folder(path, {"kind": "export", **document}, places, resume=number > 1, attempt=number)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: Path) -> RunDir:
    """A fine-tune that leaves both."""
    folder = train(tmp_path_factory.mktemp("trained"), tiny_model, data, export=["merged", "gguf"])
    assert finish(folder) == 0, log(folder)
    return folder


def scores(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(**tokenizer("Where is bolt 3?", return_tensors="pt")).logits
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt() / one.std())


def metrics(folder: RunDir) -> dict[str, Any]:
    return dict((read_json(folder.result) or {})["metrics"])


def test_the_merged_model_says_what_model_and_adapter_say(trained: RunDir, tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained.merged)
    plain = scores(base, tokenizer)
    both = scores(PeftModel.from_pretrained(base, str(trained.adapter)), tokenizer)
    merged = scores(AutoModelForCausalLM.from_pretrained(trained.merged, dtype=torch.float32), tokenizer)
    assert apart(both, plain) > 0.2, "the adapter must have learnt something for this to mean anything"
    assert apart(both, merged) < 0.05 < apart(plain, merged)  # it is stored in bfloat16, as its base is
    assert metrics(trained)["merge_difference"] < 0.05


def test_what_belongs_to_the_model_comes_along_and_can_be_read_by_all(trained: RunDir, tiny_model: Path) -> None:
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (trained.merged / name).read_text() == (tiny_model / name).read_text()
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in trained.merged.iterdir())
    assert json.loads((trained.merged / "config.json").read_text())["dtype"] == "bfloat16"
    card = ModelCard.load(trained.merged / "README.md")
    assert card.data.base_model == tiny_model.name and "the adapter of sha256" in card.text


def test_the_gguf_file_is_whole_and_of_the_merged_model(trained: RunDir) -> None:
    reader = gguf.GGUFReader(trained.gguf)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"Q8_0", "F32"}
    assert reader.fields["general.architecture"].contents() == "llama"
    tokenizer = AutoTokenizer.from_pretrained(trained.merged)
    assert reader.fields["tokenizer.ggml.tokens"].contents() == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    [norm] = [tensor.data for tensor in reader.tensors if tensor.name == "output_norm.weight"]
    with safe_open(trained.merged / "model.safetensors", "pt") as opened:
        assert torch.equal(torch.tensor(norm), opened.get_tensor("model.norm.weight").float())


def test_an_export_that_was_killed_goes_on_without_training_again(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = train(tmp_path, tiny_model, data, export=["merged", "gguf"])
    process = start(folder)
    until(lambda: folder.exports.exists(), within_s=120, evidence=lambda: log(folder))
    process.kill()  # merged is made, and its GGUF is being written
    assert ended(process) in (-signal.SIGKILL, 0)
    before, made = curve(folder), folder.merged.stat().st_ino
    folder.gguf.unlink(missing_ok=True)
    assert finish(train(tmp_path, tiny_model, data, 2, export=["merged", "gguf"])) == 0, log(folder)
    assert curve(folder) == before
    assert folder.merged.stat().st_ino == made and "output/merged is there already" in log(folder)
    assert folder.gguf.is_file() and not list(folder.output.glob(".export*"))


def test_a_finished_job_is_exported_by_a_job_of_its_own(tmp_path: Path, trained: RunDir, tiny_model: Path) -> None:
    document = {"adapter": "job:12", "to": ["merged", "gguf"], "dtype": "float32"}
    folder = export(tmp_path, document, {"model": tiny_model, "adapter": trained.adapter})
    assert finish(folder) == 0, log(folder)
    found = metrics(folder)
    assert found["merge_difference"] < MOST_DIFFERENCE and found["gguf_bytes"] == folder.gguf.stat().st_size
    with safe_open(folder.merged / "model.safetensors", "pt") as opened:
        assert opened.get_tensor("model.norm.weight").dtype == torch.float32


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}])
def test_layers_that_were_learnt_otherwise_are_merged_too(
    tmp_path: Path, tiny_model: Path, lora: dict[str, Any]
) -> None:
    """A base of random weights whose output layer is its embedding; what was learnt is chance, and much."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 49152,
    }
    config = AutoConfig.for_model("llama", **shape, num_key_value_heads=1, tie_word_embeddings=True)
    base = copy_tokenizer(tiny_model, tmp_path / "base")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = scores(model, tokenizer)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora))
    for parameter in adapted.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter) if parameter.requires_grad else 0
    adapted.save_pretrained(tmp_path / "adapter")

    folder = export(
        tmp_path / "run", {"model": "base", "adapter": "/adapter"}, {"model": base, "adapter": tmp_path / "adapter"}
    )
    run = Run(folder, Order.read(folder))
    assert exports.run(run)["merge_difference"] < 1e-5
    merged = scores(AutoModelForCausalLM.from_pretrained(folder.merged), tokenizer)
    assert apart(merged, plain) > 0.05
    assert json.loads((folder.merged / "config.json").read_text())["tie_word_embeddings"] is ("use_dora" in lora)


CONVERTER = """
import sys, pathlib
model, output, outtype = sys.argv[1:]
pathlib.Path(output).write_text(outtype + " of " + str(sorted(p.name for p in pathlib.Path(model).iterdir())))
print("converted")
"""


def other_shape(path: Path) -> Path:
    """A model that is not written as GGUF here."""
    path.mkdir()
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 16}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


def test_what_is_not_written_here_goes_to_the_converter_of_the_rig(tmp_path: Path) -> None:
    model = other_shape(tmp_path / "model")
    folder = export(tmp_path / "1", {"model": "other", "to": ["gguf"]}, {"model": model})
    assert finish(folder) == 1
    result = read_json(folder.result) or {}
    assert result["cause"] == "bad_input" and "a gpt2 model" in result["message"] and "gguf_converter" in result["hint"]

    (script := tmp_path / "convert.py").write_text(CONVERTER)
    folder = export(tmp_path / "2", {"model": "other", "to": ["gguf"]}, {"model": model})
    order = read_json(folder.spec) or {}
    order["rig"] = {"gguf_converter": [sys.executable, str(script), "{model}", "{output}", "{outtype}"]}
    folder.spec.write_text(json.dumps(order))
    assert finish(folder) == 0, log(folder)
    assert folder.gguf.read_text() == "q8_0 of ['config.json', 'model.safetensors']" and "converted" in log(folder)
