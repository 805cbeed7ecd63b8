"""Batch generation: a file of prompts in, their answers out, appended as they come and resumed by row.

Longest prompts first, so that a batch that does not fit into memory shows at the beginning. Loads torch and transformers.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from transformers import GenerationConfig, StoppingCriteria  # noqa: TID253

from jobs import environment, preflight, weights
from jobs.data import sha256_of
from jobs.generations import Answer, Generations
from jobs.log import clock_time, say
from jobs.model import Cause
from jobs.prompts import Prompt, in_batches, read_prompts
from jobs.run import Interrupted, JobError, Run

#: A batch that runs when the job is asked to stop may take that long to finish; then it is left for the next attempt.
STOP_PATIENCE_S = 20.0
BEAT_EVERY_S = 1.0
LOG_EVERY_S = 10.0
#: So many prompts in a row that do not fit by themselves: it is the GPU, not the prompts.
HOPELESS_ROWS = 3
#: What the answers depend on; a change makes them another job's.
IDENTITY = ("dtype", "seed", "max_new_tokens", "temperature", "top_p")
OUT_OF_MEMORY = "The GPU's memory ran out with this prompt alone."


#: Answers a batch of prompts, in their order. Raises torch's OutOfMemoryError when the batch is too large.
Model = Callable[[Sequence[Prompt]], list[Answer]]


def run(run: Run) -> dict[str, Any]:
    """Answer every prompt that has no answer yet. Returns counts and speed."""
    spec = run.order.spec
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    run.phase("loading")
    device = weights.device(spec)
    tokenizer = weights.load_tokenizer(run.order)
    model = weights.load_model(run.order, device, trainable=False)
    prompts = list(read_prompts(run, tokenizer, _context(model, tokenizer)))
    batches = in_batches(prompts, spec["batch_size"])
    answers = _open(run, batches)
    resumed = answers.resume(batches) if run.order.resume else set()
    if not resumed:
        answers.start_over()
    left = [batch for batch in batches if batch[0] not in resumed]
    say(
        f"{len(prompts)} prompts, {len(resumed)} of them answered before, {len(left)} batches to do on the {device.name}."
    )
    worker = Generator(run, model, tokenizer, device)
    if run.order.preflight:
        return _preflight(run, worker, prompts, batches, answers, device)
    began = time.monotonic()
    work(run, worker, prompts, left, answers, done=len(resumed), batch_size=spec["batch_size"])
    return _metrics(answers.finish(), prompts, resumed, time.monotonic() - began)


# -- answers ------------------------------------------------------------------------------------------------------------


def work(
    run: Run,
    model: Model,
    prompts: Sequence[Prompt],
    batches: Sequence[Sequence[int]],
    answers: Generations,
    *,
    done: int,
    batch_size: int,
) -> None:
    """Answer these batches one after the other. Raises Interrupted between two of them."""
    told = Teller(run, done, len(prompts))
    size, alone = batch_size, 0
    for rows in batches:
        _stop_if_asked(run)
        batch = [prompts[row] for row in rows]
        if batch[0].error:
            answers.append([_failed(prompt, prompt.error) for prompt in batch])
            told.more(len(batch), 0)
            continue
        made, size = _fitting(model, batch, size)
        alone = alone + len(made) if all(a.get("error") == OUT_OF_MEMORY for a in made) else 0
        if alone >= HOPELESS_ROWS:
            hint = "Use a smaller model, a smaller max_new_tokens, or a GPU with more free memory."
            raise JobError(Cause.OOM_GPU, "The GPU's memory ran out, even one prompt at a time.", hint)
        answers.append(made)
        told.more(len(made), sum(answer["completion_tokens"] for answer in made))


def _fitting(model: Model, batch: Sequence[Prompt], size: int) -> tuple[list[Answer], int]:
    """Answer a batch in parts of at most `size`; halve it as often as the GPU's memory asks for. Returns the size that fitted."""
    made: list[Answer] = []
    while len(made) < len(batch):
        part = batch[len(made) : len(made) + size]
        try:
            made += model(part)
            continue
        except torch.OutOfMemoryError:
            pass  # outside of the handler, so that the traceback lets go of the tensors
        torch.cuda.empty_cache()
        if size > 1:
            size = max(1, min(size, len(part)) // 2)
            say(f"The GPU's memory ran out; going on with {size} prompts at a time.")
        else:
            made.append(_failed(part[0], OUT_OF_MEMORY))
    return made, size


def _preflight(
    run: Run,
    model: Model,
    prompts: Sequence[Prompt],
    batches: Sequence[Sequence[int]],
    answers: Generations,
    device: weights.Device,
) -> dict[str, Any]:
    """The batch of the longest prompts, into a file aside (jobs.preflight). Returns what was measured."""
    answered = [batch for batch in batches if not prompts[batch[0]].error]
    if not answered:
        raise JobError(Cause.BAD_INPUT, f"No prompt could be answered. The first: {prompts[0].error}")
    seconds = {"loading": time.monotonic() - run.began}
    began = time.monotonic()
    work(run, model, prompts, answered[:1], answers, done=0, batch_size=run.order.spec["batch_size"])
    seconds["batch"] = time.monotonic() - began
    text = answers.finish()[0]["text"]
    measured = preflight.of_generation(len(answered), seconds) | preflight.peak(device)
    return preflight.passed(run, measured, sample={"answer": text})


class Generator:
    """The model as a function from prompts to answers."""

    def __init__(self, run: Run, model: Any, tokenizer: Any, device: weights.Device):
        self._run, self._model, self._tokenizer, self._device = run, model, tokenizer, device
        self._spec = run.order.spec
        self._context = _context(model, tokenizer)
        self._ends = _end_tokens(model, tokenizer)

    def __call__(self, batch: Sequence[Prompt]) -> list[Answer]:
        """Answers of one batch, in its order."""
        longest = max(len(prompt.tokens) for prompt in batch)
        pad = self._tokenizer.pad_token_id
        rows = [
            [pad] * (longest - len(p.tokens)) + list(p.tokens) for p in batch
        ]  # left: the answer follows the prompt
        mask = [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in batch]
        torch.manual_seed(self._spec["seed"] + batch[0].index)  # a batch draws the same, whenever it runs
        patience = Patience(self._run)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(rows, device=self._device.name),
                attention_mask=torch.tensor(mask, device=self._device.name),
                generation_config=self._config(longest),
                stopping_criteria=[patience],
            )
        if patience.lost:
            raise Interrupted
        answers = output[:, longest:].tolist()
        return [self._answer(prompt, tokens) for prompt, tokens in zip(batch, answers, strict=True)]

    def _config(self, longest: int) -> Any:
        sampling = {"temperature": self._spec["temperature"], "top_p": self._spec["top_p"], "top_k": 0}
        return GenerationConfig(
            max_new_tokens=min(self._spec["max_new_tokens"], self._context - longest),
            do_sample=self._spec["temperature"] > 0,
            eos_token_id=self._ends,
            pad_token_id=self._tokenizer.pad_token_id,
            **(sampling if self._spec["temperature"] > 0 else {}),
        )

    def _answer(self, prompt: Prompt, tokens: list[int]) -> Answer:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return {
            **_given(prompt),
            "text": text,
            "prompt_tokens": len(prompt.tokens),
            "completion_tokens": len(tokens[:end]),
            "finish_reason": "length" if end is None else "stop",
        }


class Patience(StoppingCriteria):  # type: ignore[misc]
    """Asked at every new token: beats for the watchdog, and gives a batch up when a stop has waited long enough."""

    def __init__(self, run: Run):
        self._run = run
        self._asked_at: float | None = None
        self._beat_at = time.monotonic()
        self.lost = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        now = time.monotonic()
        if now - self._beat_at > BEAT_EVERY_S:
            self._beat_at = now
            self._run.beat()
        if self._run.stop_requested:
            self._asked_at = self._asked_at or now
            self.lost = now - self._asked_at > STOP_PATIENCE_S
        return torch.full((input_ids.shape[0],), self.lost, device=input_ids.device, dtype=torch.bool)


def _context(model: Any, tokenizer: Any) -> int:
    """How many tokens the model takes, prompt and answer together."""
    limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min(int(limit) for limit in limits if limit)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: chat models often have several."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (*several, tokenizer.eos_token_id) if token is not None})


def _given(prompt: Prompt) -> Answer:
    field = "messages" if prompt.row.get("messages") is not None else "prompt"
    return {"id": prompt.row.get("id", prompt.index), "index": prompt.index, field: prompt.row[field]}


def _failed(prompt: Prompt, error: str) -> Answer:
    return {
        **_given(prompt),
        "text": "",
        "prompt_tokens": len(prompt.tokens),
        "completion_tokens": 0,
        "finish_reason": "error",
        "error": error,
    }


class Teller:
    """Tells how far it is."""

    def __init__(self, run: Run, done: int, total: int):
        self._run, self._done, self._total, self._tokens = run, done, total, 0
        self._before = done
        self._began = self._said_at = time.monotonic()
        run.phase("generating", step=done, total=total)

    def more(self, rows: int, tokens: int) -> None:
        """So many rows more are on disk."""
        self._done, self._tokens = self._done + rows, self._tokens + tokens
        now = time.monotonic()
        took = max(1e-6, now - self._began)
        left_s = took / (self._done - self._before) * (self._total - self._done)
        speed = round(self._tokens / took, 1)
        self._run.progress(
            step=self._done,
            total=self._total,
            phase="generating",
            eta_s=round(left_s, 1),
            metrics={"tokens_per_s": speed},
        )
        if now - self._said_at > LOG_EVERY_S or self._done == self._total:
            self._said_at = now
            say(f"{self._done} of {self._total} answered, {speed} tokens/s, about {clock_time(left_s)} left.")


# -- results ------------------------------------------------------------------------------------------------------------


def _open(run: Run, batches: Sequence[Sequence[int]]) -> Generations:
    source = weights.sources(run.order)
    order = {
        "data_sha256": sha256_of(Path(run.order.paths["data"])),
        "model": _fingerprint(source.model, source.revision),
        "adapter": _fingerprint(source.adapter, None) if source.adapter else None,
        **{key: run.order.spec[key] for key in IDENTITY},
    }
    return Generations(run.folder.generations, run.folder.checkpoints / "generations.json", order)


def _fingerprint(name: str, revision: str | None) -> dict[str, Any]:
    """What tells one model from another: a hub id with its revision, or a folder's weight files."""
    if not name.startswith("/"):
        return {"name": name, "revision": revision}
    files = sorted(Path(name).glob("*.safetensors")) + sorted(Path(name).glob("*config.json"))
    small = {file.name: sha256_of(file) for file in files if file.stat().st_size < 2**28}
    return {"name": name, "files": {file.name: file.stat().st_size for file in files}, "sha256": small}


def _metrics(answers: Sequence[Answer], prompts: Sequence[Prompt], resumed: set[int], took_s: float) -> dict[str, Any]:
    failed = [answer for answer in answers if "error" in answer]
    if len(failed) == len(prompts):
        raise JobError(Cause.BAD_INPUT, f"No prompt could be answered. The first: {failed[0]['error']}")
    fresh = sum(answer["completion_tokens"] for answer in answers if answer["index"] not in resumed)
    say(f"{len(answers)} answers are in output/generations.jsonl, {len(failed)} of them with an error.")
    return {
        "rows": len(answers),
        "failed_rows": len(failed),
        "prompt_tokens": sum(answer["prompt_tokens"] for answer in answers),
        "completion_tokens": sum(answer["completion_tokens"] for answer in answers),
        "tokens_per_s": round(fresh / took_s, 1) if fresh else None,
        "resumed_rows": len(resumed),
    }


def _stop_if_asked(run: Run) -> None:
    if run.stop_requested:
        raise Interrupted
