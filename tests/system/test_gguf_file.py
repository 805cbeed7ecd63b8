"""GGUF files of every shape that is written, read back: what transformers makes of them says nearly the same as the model."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from jobs import demo_model, gguf_file
from jobs.spec.export import GGUF_MODEL_TYPES

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}  # fmt: skip
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS: dict[str, Any] = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(gguf_file.DIGITS_BY_THREE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
}  # fmt: skip


def model(folder: Path, kind: str, cut: str = "gpt-2", **changes: Any) -> Path:
    """A model of random weights with a tokenizer that was learnt from a sentence."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()  # they begin as zeros, and zeros prove nothing
    made.save_pretrained(folder)
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer, learnt.decoder = CUTS[cut], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=BYTES.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False
    )
    learnt.train_from_iterator(["The night shift writes down 12345 bolts."] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    return folder


def scores(of: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = of(torch.arange(3, 43).reshape(2, 20)).logits
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt() / one.std())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_every_shape_comes_back_nearly_the_same(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder = model(tmp_path / kind, kind, **changes)
    gguf_file.write(folder, tmp_path / "m.gguf", name="model")
    expected = scores(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert read.config.model_type == ("llama" if kind == "mistral" else kind)  # the file has one name for both
    assert apart(expected, scores(read)) < 0.05


def test_all_shapes_are_tried_here() -> None:
    assert tuple(gguf_file.SHAPES) == GGUF_MODEL_TYPES


@pytest.mark.parametrize("cut", CUTS)
def test_tokens_merges_and_special_ids_are_those_of_the_tokenizer(tmp_path: Path, cut: str) -> None:
    folder = model(tmp_path / "model", "llama", cut)
    gguf_file.write(folder, tmp_path / "m.gguf", name="n", license="apache-2.0")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    told = {name.removeprefix("tokenizer."): field.contents() for name, field in fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (told["ggml.model"], told["ggml.pre"], told["general.license"]) == ("gpt2", cut, "apache-2.0")
    known = len(tokenizer)
    assert told["ggml.tokens"][:known] == tokenizer.convert_ids_to_tokens(range(known))
    assert told["ggml.tokens"][known:] == [f"[PAD{number}]" for number in range(known, SMALL["vocab_size"])]
    kinds = told["ggml.token_type"]
    assert (kinds[0], kinds[1], kinds[2], kinds[known - 1], kinds[known]) == (3, 3, 1, 4, 5)
    assert (told["ggml.bos_token_id"], told["ggml.eos_token_id"], told["ggml.add_bos_token"]) == (0, 1, False)
    assert told["chat_template"] == tokenizer.chat_template
    assert len(told["ggml.merges"]) == known - 1 - 256 - 2


def test_llama_3_brings_the_factors_of_its_long_context(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "llama", head_dim=64, rope_parameters=LLAMA_3)
    gguf_file.write(folder, tmp_path / "m.gguf", name="n")
    [factors] = [t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight"]
    assert factors.shape == (32,)
    # meta's rule: what turns often stays, what turns seldom is eight times slower, and between them it goes over smoothly
    assert factors[0] == pytest.approx(1.0) and factors[-1] == pytest.approx(8.0)
    assert all(1.0 <= one <= other <= 8.0 + 1e-4 for one, other in pairwise(factors))


def test_what_is_not_known_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = model(
        tmp_path / "model", "llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    )
    with pytest.raises(gguf_file.CannotConvert, match="a rotary embedding of type linear"):
        gguf_file.write(folder, tmp_path / "m.gguf", name="n")
    strange = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), BYTES])
    CUTS["strange"] = strange
    try:
        folder = model(tmp_path / "other", "llama", "strange")
    finally:
        del CUTS["strange"]
    with pytest.raises(gguf_file.CannotConvert, match="a tokenizer that cuts text in a way of its own"):
        gguf_file.write(folder, tmp_path / "m.gguf", name="n")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.slow
def test_a_real_model_answers_the_same_from_its_gguf_file(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    try:
        folder = demo_model.prepare(pytestconfig.cache.mkdir("models"))
    except demo_model.DemoModelMissing as error:
        pytest.skip(str(error))
    gguf_file.write(folder, tmp_path / "m.gguf", name="SmolLM2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answers = []
    for source in ({}, {"gguf_file": "m.gguf"}):
        read = AutoModelForCausalLM.from_pretrained(tmp_path if source else folder, dtype=torch.float32, **source)
        answers.append(
            tokenizer.decode(read.generate(**asked, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True)
        )
    assert answers[0] == answers[1] and "The capital of France is Paris." in answers[1]
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert theirs("12 bolts, won't fit.")["input_ids"] == tokenizer("12 bolts, won't fit.")["input_ids"]
