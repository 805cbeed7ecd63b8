"""Export: an adapter merged into its model, and a model as one GGUF file. The kind `export`, and the end of a fine-tune.

What is made is checked: a merged model is loaded again and must say what model and adapter say together. Nothing is made twice of
the same weights, so an export that was interrupted goes on where it stopped.
"""

import gc
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # noqa: TID253

from jobs import checkpoints, environment, gguf_file, weights
from jobs.log import say
from jobs.model import Cause
from jobs.model_card import exported_card
from jobs.process import die_with_parent, for_other_programs
from jobs.run import Interrupted, JobError, Order, Run
from jobs.rundir import read_json, write_json

#: What a model says to this is compared before and after.
SENTENCE = "The quick brown fox jumps over the lazy dog, and the night shift writes it down: 1 + 1 = 2."
#: How far scores may be apart, as a share of their spread (root mean square): rounding, by what is computed in.
ROUNDING = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
#: One file of a large model; what loaders and file systems are used to.
SHARD = "5GB"
#: Terms under which the base model is given on.
TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
#: GPU memory that must be free for weights of one byte, and what a pass of one sentence needs besides.
ROOM, ROOM_BYTES = 1.1, 1 << 30
STOP_GRACE_S = 10.0
#: How a converter of the rig's is to write.
OUTTYPE = "q8_0"
DRAFT = ".export"


def run(run: Run) -> dict[str, Any]:
    """The kind `export`. Returns the sizes of what was made."""
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    return _make(run, run.order, run.order.spec["to"])


def after_training(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a fine-tune's `export` asks for, of the result that it has just left. Returns its metrics with those of the export."""
    wanted = [name for name in run.order.spec["export"] if not (name == "merged" and run.folder.model.exists())]
    if not wanted:  # a model of which all weights were learnt is whole as it is
        return dict(metrics)
    gc.collect()  # the trainer, its optimizer and its graph: circles that hold the GPU's memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    order = run.order
    if run.folder.model.exists():
        paths = {name: path for name, path in order.paths.items() if name != "adapter"} | {
            "model": str(run.folder.model)
        }
    else:
        paths = {**order.paths, "adapter": str(run.folder.adapter)}
    made = _make(run, replace(order, paths=paths), wanted, steps=int(metrics["steps"]))
    return {**metrics, **made}


def _make(run: Run, order: Order, wanted: Sequence[str], *, steps: int = 0) -> dict[str, Any]:
    """Every format that is wanted and not there yet. `order`: whose model and adapter it is made of."""
    facts = _facts(order)
    metrics: dict[str, Any] = {}
    draft = run.folder.output / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    try:
        run.phase("exporting", step=steps, total=steps)
        whole = run.folder.merged
        if "merged" in wanted:
            if _is_made(run, "merged", facts, whole):
                say(f"{_name(run, whole)} is there already.")
            else:
                metrics["merge_difference"] = _merge(run, order, facts, draft)
                _leave(run, "merged", facts, draft, whole)
            metrics["merged_bytes"] = _size_bytes(whole)
        if "gguf" in wanted:
            if _is_made(run, "gguf", facts, run.folder.gguf):
                say(f"{_name(run, run.folder.gguf)} is there already.")
            else:
                _gguf(run, order, facts, draft)
            metrics["gguf_bytes"] = run.folder.gguf.stat().st_size
        return metrics
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _facts(order: Order) -> dict[str, Any]:
    """What decides the bytes that come out."""
    source = weights.sources(order)
    adapter = None
    if source.adapter:
        with (Path(source.adapter) / weights.ADAPTER_WEIGHTS).open("rb") as file:
            adapter = hashlib.file_digest(file, "sha256").hexdigest()
    return {"model": f"{source.model}@{source.revision or ''}", "adapter_sha256": adapter, "dtype": _dtype(order)}


def _dtype(order: Order) -> str:
    """As asked for, else as the model is stored; what was learnt over 4 bits goes into bfloat16."""
    if order.spec["dtype"] != "auto":
        return str(order.spec["dtype"])
    if order.spec.get("method") == "qlora":
        return "bfloat16"
    source = weights.sources(order)
    remote_code = weights.remote_code(order)
    stored = AutoConfig.from_pretrained(source.model, revision=source.revision, trust_remote_code=remote_code).dtype
    return str(stored or torch.float32).removeprefix("torch.")


def _is_made(run: Run, name: str, facts: Mapping[str, Any], target: Path) -> bool:
    return target.exists() and (read_json(run.folder.exports) or {}).get(name) == facts


def _leave(run: Run, name: str, facts: Mapping[str, Any], draft: Path, target: Path) -> None:
    """It appears whole or not at all; what it was made of is noted last."""
    checkpoints.make_durable(draft)
    checkpoints.put_in_place(draft, target)
    write_json(run.folder.exports, {**(read_json(run.folder.exports) or {}), name: facts})
    say(f"{_name(run, target)} is made: {_size_bytes(target) / 1e9:.2f} GB.")


def _name(run: Run, path: Path) -> str:
    return str(path.relative_to(run.folder.path))


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _beat(run: Run) -> None:
    run.beat()
    if run.stop_requested:
        raise Interrupted


# -- merged -------------------------------------------------------------------------------------------------------------


def _merge(run: Run, order: Order, facts: Mapping[str, Any], draft: Path) -> float:
    """A model with its adapter in it, and all that belongs to it. Returns how far its scores are from those of both together."""
    to = _device(order, facts["dtype"])
    tokenizer = _tokenizer(order)
    model = weights.load_model(order, to, trainable=True).eval()
    _beat(run)
    expected = _scores(model, tokenizer)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    _beat(run)
    model.generation_config, generation = GenerationConfig(), model.generation_config
    _untie_what_differs(model)
    model.save_pretrained(draft, max_shard_size=SHARD)
    tokenizer.save_pretrained(draft)
    _keep(order, draft, generation)
    del model
    gc.collect()
    _beat(run)
    again = weights.load_model(
        replace(order, paths={**order.paths, "model": str(draft), "adapter": ""}), to, trainable=False
    )
    difference = _apart(expected, _scores(again, tokenizer))
    if not difference <= ROUNDING[facts["dtype"]]:  # not a number is wrong, too
        message = f"The merged model does not say what model and adapter say together: {difference:.2g} of their spread apart."
        raise JobError(Cause.BAD_INPUT, message, 'Load them together, or export with dtype = "float32".')
    (draft / "README.md").write_text(exported_card(order, facts, difference))
    return round(difference, 6)


def _device(order: Order, dtype: str) -> weights.Device:
    """The GPU when the weights fit into what is free of it, else the machine's memory: what was learnt in 4 bits is larger now."""
    on_cpu = weights.Device(name="cpu", dtype=dtype)
    if not torch.cuda.is_available():
        return on_cpu
    free_bytes, _ = torch.cuda.mem_get_info()
    width = getattr(torch, dtype).itemsize
    config = weights.folder(order)
    needed = sum(file.stat().st_size for file in config.glob("*.safetensors")) * max(1.0, width / 2) * ROOM + ROOM_BYTES
    return weights.Device(name="cuda", dtype=dtype) if needed <= free_bytes else on_cpu


def _tokenizer(order: Order) -> Any:
    """As it was learnt with: the adapter's own when it brought one, with its chat template."""
    source = weights.sources(order)
    if source.adapter and (Path(source.adapter) / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(source.adapter)
    return weights.load_tokenizer(order)


def _scores(model: Any, tokenizer: Any) -> torch.Tensor:
    """What the model says to one sentence: scores of all words at all places, float32 on the CPU."""
    tokens = tokenizer(SENTENCE, return_tensors="pt")["input_ids"].to(model.device)
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=tokens).logits
    return found.float().cpu()


def _apart(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of the spread of what was expected."""
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


def _untie_what_differs(model: Any) -> None:
    """An embedding that was learnt whole is no longer the output layer, whatever the base's configuration says."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if not torch.equal(inputs.weight, outputs.weight):
        model.config.tie_word_embeddings = False


def _keep(order: Order, draft: Path, generation: Any) -> None:
    """How the base is to be sampled, as its authors wrote it, and the terms under which it is given on."""
    base = weights.folder(order)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", draft / "generation_config.json")
    elif generation is not None:
        generation.to_json_file(draft / "generation_config.json")
    for pattern in TERMS:
        for file in base.glob(pattern):
            shutil.copyfile(file, draft / file.name)


# -- GGUF ---------------------------------------------------------------------------------------------------------------


def _gguf(run: Run, order: Order, facts: Mapping[str, Any], draft: Path) -> None:
    """One file, written here when the model's shape is known, else by the rig's converter."""
    source = weights.sources(order)
    if _is_made(run, "merged", facts, run.folder.merged):
        model = run.folder.merged
    elif source.is_local and not source.adapter:
        model = Path(source.model)
    else:
        model = draft / "merged"
        _merge(run, order, facts, model)
    target = draft / run.folder.gguf.name
    draft.mkdir(exist_ok=True)
    name = run.order.spec["name"] or str(order.spec["model"]).rpartition("/")[2]
    try:
        gguf_file.write(model, target, name=name, beat=lambda: _beat(run))
    except gguf_file.CannotConvert as why:
        _convert(run, model, target, str(why))
    target.chmod(0o644)
    checkpoints.sync_file(target)
    target.replace(run.folder.gguf)
    write_json(run.folder.exports, {**(read_json(run.folder.exports) or {}), "gguf": dict(facts)})
    say(f"{_name(run, run.folder.gguf)} is made: {run.folder.gguf.stat().st_size / 1e9:.2f} GB.")


def _convert(run: Run, model: Path, target: Path, why: str) -> None:
    """By the converter of the rig's owner; its output goes into the log."""
    argv = run.order.rig.get("gguf_converter") or ()
    if not argv:
        hint = (
            "The rig's owner can name llama.cpp's convert_hf_to_gguf.py in the setting gguf_converter (docs/export.md)."
        )
        raise JobError(Cause.BAD_INPUT, f"It is not written as GGUF here: {why}.", hint)
    say(f"Not written here: {why}. The rig's converter does it.")
    words = [
        word.replace("{model}", str(model)).replace("{output}", str(target)).replace("{outtype}", OUTTYPE)
        for word in argv
    ]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            env=for_other_programs(os.environ),
            preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
        )
    except OSError as error:
        hint = "Look at gguf_converter in the rig's config.toml."
        raise JobError(Cause.BAD_INPUT, f"The converter {words[0]!r} cannot be run: {error.strerror}.", hint) from None
    try:
        while (code := _ended(process)) is None:
            _beat(run)
    finally:
        _end(process)
    if code != 0 or not target.is_file():
        what = f"exited with status {code}" if code else f"left no {target.name}"
        raise JobError(Cause.BAD_INPUT, f"The rig's converter {what}.", "Its output is in the log.")


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
