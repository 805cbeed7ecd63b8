"""Recipes of other tools: what they say is what is trained, and nothing is changed without a word."""

from typing import Any

import pytest

from jobs.aliases import LEFT_OUT, MEANINGS, translate
from jobs.spec import FinetuneSpec, InvalidSpec, dump, parse
from jobs.spec.finetune import LoraSpec

AXOLOTL = {
    "base_model": "m", "datasets": [{"path": "rows.jsonl", "type": "chat_template"}], "val_set_size": 0.05,
    "output_dir": "./out", "adapter": "lora", "load_in_4bit": True, "sequence_len": 2048, "sample_packing": True,
    "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_linear": True, "peft_use_rslora": True,
    "gradient_accumulation_steps": 4, "micro_batch_size": 2, "num_epochs": 4, "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine", "learning_rate": "2e-4", "bf16": "auto", "tf32": False, "gradient_checkpointing": True,
    "train_on_inputs": False, "warmup_steps": 10, "weight_decay": 0.0, "wandb_project": None, "flash_attention": True,
    "special_tokens": None,
}  # fmt: skip
LLAMA_FACTORY = {
    "model_name_or_path": "m", "stage": "dpo", "finetuning_type": "lora", "lora_rank": 8, "lora_target": "q_proj,v_proj",
    "pref_beta": 0.2, "pref_loss": "sigmoid", "dataset": "rows.jsonl", "template": "llama3", "cutoff_len": 4096,
    "output_dir": "saves", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 5.0e-6,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "val_size": 0.1,
    "eval_strategy": "steps", "eval_steps": 500,
}  # fmt: skip
TORCHTUNE = {
    "model": {"_component_": "torchtune.models.llama3_1.qlora_llama3_1_8b", "lora_rank": 8, "lora_alpha": 16,
              "lora_attn_modules": ["q_proj", "v_proj"]},
    "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "path": "/m/t", "max_seq_len": 1024},
    "checkpointer": {"_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": "/models/m"},
    "dataset": {"_component_": "torchtune.datasets.chat_dataset", "data_files": "rows.jsonl", "packed": False},
    "seed": None, "batch_size": 2, "epochs": 1, "max_steps_per_epoch": None, "gradient_accumulation_steps": 8,
    "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.01, "lr": 3e-4},
    "lr_scheduler": {"_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup", "num_warmup_steps": 100},
    "enable_activation_checkpointing": True, "compile": False, "dtype": "bf16", "device": "cuda", "clip_grad_norm": 1.0,
}  # fmt: skip
UNSLOTH = {
    "kind": "finetune", "model_name": "m", "dataset": "rows.jsonl", "max_seq_length": 2048, "load_in_4bit": True, "r": 16,
    "target_modules": ["q_proj"], "lora_alpha": 16, "lora_dropout": 0, "bias": "none", "use_gradient_checkpointing": "unsloth",
    "random_state": 3407, "use_rslora": False, "loftq_config": None, "optim": "adamw_8bit",
}  # fmt: skip


def trained(recipe: dict[str, Any]) -> dict[str, Any]:
    return dump(parse(translate(recipe)[0]))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        pytest.param(AXOLOTL, {
            "model": "m", "data": "rows.jsonl", "eval_fraction": 0.05, "method": "qlora", "adapter": None, "max_length": 2048,
            "packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 4,
            "optim": "adamw_8bit", "lr_scheduler_type": "cosine", "learning_rate": 2e-4, "assistant_only_loss": True,
            "warmup_steps": 10, "gradient_checkpointing": True, "dtype": "auto",
        }, id="axolotl"),
        pytest.param(LLAMA_FACTORY, {
            "objective": "dpo", "method": "lora", "beta": 0.2, "loss_type": "sigmoid", "data": "rows.jsonl", "max_length": 4096,
            "dtype": "bfloat16", "eval_fraction": 0.1, "eval_steps": 500, "learning_rate": 5e-6, "warmup_ratio": 0.1,
        }, id="llama-factory"),
        pytest.param(TORCHTUNE, {
            "model": "/models/m", "method": "qlora", "max_length": 1024, "data": "rows.jsonl", "packing": False,
            "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 3e-4, "weight_decay": 0.01,
            "optim": "adamw_torch_fused", "lr_scheduler_type": "cosine", "warmup_steps": 100, "gradient_checkpointing": True,
            "torch_compile": False, "dtype": "bfloat16", "max_grad_norm": 1.0, "seed": 42,
        }, id="torchtune"),
        pytest.param(UNSLOTH, {
            "method": "qlora", "max_length": 2048, "gradient_checkpointing": True, "seed": 3407, "optim": "adamw_8bit",
        }, id="unsloth"),
    ],
)  # fmt: skip
def test_a_recipe_means_what_it_meant(recipe: dict[str, Any], expected: dict[str, Any]) -> None:
    found = trained(recipe)
    assert {name: found[name] for name in expected} == expected


def test_the_adapters_settings_are_carried_over() -> None:
    assert trained(AXOLOTL)["lora"] | {"r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "use_rslora": True} == trained(AXOLOTL)["lora"]  # fmt: skip
    assert trained(LLAMA_FACTORY)["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert trained(TORCHTUNE)["lora"]["r"] == 8


def test_every_change_is_told() -> None:
    _, notes = translate(AXOLOTL)
    assert {
        "kind = finetune",
        "base_model -> model",
        "micro_batch_size -> per_device_train_batch_size",
        "datasets[0] -> data = rows.jsonl",
        "adapter -> method",
        "load_in_4bit -> method = qlora",
        "optimizer -> optim = adamw_8bit",
        "train_on_inputs -> assistant_only_loss = true",
        "output_dir: not used, results are in the run folder",
    } <= set(notes)
    assert not [note for note in notes if note.startswith(("learning_rate", "wandb_project", "warmup_steps"))]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"micro_batch_size": 2, "per_device_train_batch_size": 4}, "micro_batch_size", "per_device_train_batch_size says 4"),
        ({"lora_r": 8, "lora": {"r": 16}}, "lora_r", "lora.r says 16"),
        ({"num_epochs": 2, "epochs": 3}, "epochs", "num_epochs says 2"),
        ({"stage": "ppo"}, "stage", "not offered"),
        ({"quantization_bit": 8}, "quantization_bit", "4 bits"),
        ({"datasets": [{"path": "a"}, {"path": "b"}]}, "datasets", "put them together"),
        ({"val_set_size": 500}, "val_set_size", "eval_fraction"),
        ({"max_steps_per_epoch": 10}, "max_steps_per_epoch", "max_steps"),
    ],
)  # fmt: skip
def test_names_that_contradict_each_other_or_mean_nothing_here_are_errors(
    fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        translate({"kind": "finetune", "model": "m", **fields})
    [error] = refused.value.errors
    assert error.field == field and words in error.message


def test_the_same_said_twice_is_no_contradiction() -> None:
    found, _ = translate({"kind": "finetune", "micro_batch_size": 2, "per_device_train_batch_size": 2})
    assert found == {"kind": "finetune", "per_device_train_batch_size": 2}


def test_an_unknown_name_stays_and_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InvalidSpec, match="did you mean 'learning_rate'"):
        parse(translate({**UNSLOTH, "learning_rates": 1})[0])


def test_our_own_documents_are_left_alone() -> None:
    ours = dump(parse({"kind": "finetune", "model": "m", "data": "/d", "adapter": "job:3", "lora": {"r": 4}}))
    assert translate(ours) == (ours, [])
    for other in ({"kind": "command", "argv": ["batch_size"]}, {"argv": ["x"]}, {"kind": "generate", "batch_size": 3}):
        assert translate(other) == (other, [])


def test_no_alias_is_a_field_of_ours() -> None:
    assert not (set(MEANINGS) | set(LEFT_OUT)) & set(FinetuneSpec.model_fields)
    assert "r" in LoraSpec.model_fields  # inside `lora` our own names count


def test_a_generation_takes_the_names_of_other_tools() -> None:
    document = {"kind": "generate", "data": "d", "max_tokens": 64, "stop_strings": "END", "do_sample": False}
    ours, notes = translate(document)
    assert ours == {"kind": "generate", "data": "d", "max_new_tokens": 64, "stop": "END", "temperature": 0.0}
    assert notes == ["max_tokens -> max_new_tokens", "stop_strings -> stop", "do_sample -> temperature = 0.0"]
    with pytest.raises(InvalidSpec, match="max_tokens: means max_new_tokens = 64, and max_new_tokens says 32"):
        translate({**document, "max_new_tokens": 32})
