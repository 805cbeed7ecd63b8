"""Batch generation: a file of prompts in, their answers out, appended as they come and resumed by row.

The parts are in `jobs.generation`. Loads transformers, and torch for the engines that run here.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch  # noqa: TID253
import transformers  # noqa: TID253

from jobs import environment, preflight, weights
from jobs.data import InvalidData, Reading, scan, sha256_of
from jobs.data.openai_batch import is_request
from jobs.generation import memory, sampling
from jobs.generation.answers import Answer, Format, OpenAI, Plain
from jobs.generation.batches import Batches
from jobs.generation.continuous import Continuous, has_flash_attention
from jobs.generation.drawing import Drawing
from jobs.generation.engine import Deliver, Engine, Loaded, Unsupported
from jobs.generation.memory import Widths
from jobs.generation.requests import Request, longest_first, read_requests
from jobs.generation.results import Results
from jobs.generation.vllm_engine import Vllm
from jobs.log import clock_time, say
from jobs.model import Cause
from jobs.run import JobError, Run

LOG_EVERY_S = 10.0
#: vLLM takes a minute or more to start: not worth it for less.
ROWS_FOR_VLLM = 500
#: Of a preflight, where the job finds by itself how many go at once.
PREFLIGHT_ROWS = 64
#: What the answers depend on beside data, model and engine; a change makes them another job's.
IDENTITY = ("dtype", "chat_template", "data_fields", *sampling.FIELDS)


def run(run: Run) -> dict[str, Any]:
    """Answer every prompt that has no answer yet. Returns counts and speed."""
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    run.phase("loading")
    tokenizer = weights.load_tokenizer(run.order)
    config = weights.load_config(run.order)
    context = _context(config, tokenizer)
    requests = list(read_requests(run, tokenizer, context))
    if not requests:
        raise JobError(Cause.BAD_INPUT, "data: the file has no rows.")
    with ExitStack() as stack:
        engine = _open_engine(run, tokenizer, config, context, requests, stack)
        results = _open_results(run, requests, engine)
        resumed = results.resume() if run.order.resume else set()
        if not resumed:
            results.start_over()
        if run.order.preflight:
            return _preflight(run, engine, requests, results)
        left = [request for request in requests if request.key not in resumed]
        say(f"{len(requests)} prompts, {len(resumed)} of them answered before.")
        teller = Teller(run, len(resumed), len(requests))

        def deliver(answers: Sequence[Answer]) -> None:
            results.append(answers)
            teller.more(len(answers), sum(answer.tokens for answer in answers))

        if hopeless := [Answer(request) for request in left if request.problem]:
            deliver(hopeless)
        began = time.monotonic()
        engine.answer([request for request in left if not request.problem], deliver)
        took_s = time.monotonic() - began
    results.finish()
    return _metrics(results, resumed, took_s, engine.name)


def _preflight(run: Run, engine: Engine, requests: Sequence[Request], results: Results) -> dict[str, Any]:
    """The longest prompts that go at once, into a file aside (jobs.preflight). Returns what was measured."""
    answerable = longest_first(request for request in requests if not request.problem)
    if not answerable:
        problem = requests[0].problem
        raise JobError(Cause.BAD_INPUT, f"No prompt could be answered. The first: {problem.message if problem else ''}")
    first = answerable[: run.order.spec["batch_size"] or PREFLIGHT_ROWS]
    seconds = {"loading": time.monotonic() - run.began}
    said: list[str] = []

    def deliver(answers: Sequence[Answer]) -> None:
        results.append(answers)
        said.extend(sample.text for answer in answers for sample in answer.samples)

    run.phase("generating", total=len(first))
    began = time.monotonic()
    engine.answer(first, deliver)
    seconds["batch"] = time.monotonic() - began
    results.finish()
    measured = preflight.of_generation(math.ceil(len(answerable) / len(first)), seconds)
    if isinstance(engine, Transformers):  # vLLM's memory is another process's, and always the same
        measured |= preflight.peak(weights.device(run.order.spec))
    return preflight.passed(run, measured, sample={"answer": said[0] if said else ""})


# -- engines ------------------------------------------------------------------------------------------------------------


def _open_engine(
    run: Run, tokenizer: Any, config: Any, context: int, requests: Sequence[Request], stack: ExitStack
) -> Engine:
    wanted, python = run.order.spec["engine"], run.order.paths.get("vllm_python")
    if python and (wanted == "vllm" or (wanted == "auto" and len(requests) > ROWS_FOR_VLLM)):
        try:
            return stack.enter_context(Vllm(run, python, _vllm_order(run, tokenizer, context)))
        except Unsupported as error:
            if wanted == "vllm":
                cause = Cause.OOM_GPU if "out of memory" in str(error).lower() else Cause.BAD_INPUT
                raise JobError(cause, f"vLLM cannot be used: {error}.", "The log has more.") from error
            say(f"vLLM cannot be used ({error}); transformers answers instead.")
    if wanted == "vllm" and not python:
        raise JobError(Cause.BAD_INPUT, "This rig has no vLLM.", "Set vllm_python in its config.toml, or leave engine out.")  # fmt: skip
    return Transformers(run, tokenizer, config)


def _vllm_order(run: Run, tokenizer: Any, context: int) -> dict[str, Any]:
    source = weights.sources(run.order)
    adapters = dict(source.adapters) or ({"": source.adapter} if source.adapter else {})
    return {
        "model": source.model,
        "revision": source.revision,
        "tokenizer": source.model,
        "dtype": run.order.spec["dtype"],
        "adapters": adapters,
        "gpus": run.order.spec["gpus"],
        "max_model_len": context,
        "trust_remote_code": bool(run.order.spec["trust_remote_code"]) and run.order.allow_remote_code,
        "ends": _ends(weights.load_generation_config(run.order), tokenizer),
    }


class Transformers:
    """Engine: continuous batching, and padded batches for what it cannot do. One load for all adapters."""

    def __init__(self, run: Run, tokenizer: Any, config: Any):
        self._run = run
        device = weights.device(run.order.spec)
        model = weights.load_model(run.order, device, trainable=False)
        ends = _ends(model.generation_config, tokenizer)
        # a model's own habits (temperature, penalties) are not the job's parameters
        model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        adapters = weights.sources(run.order).adapters
        self._adapted = weights.put_on(model, {name: place for name, place in adapters.items() if place})
        self._loaded = Loaded(model=model, tokenizer=tokenizer, device=device.name, ends=ends)
        self._drawing = Drawing(ends, lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)))
        self._widths = widths_of(config, device)
        self._padded = False

    @property
    def name(self) -> str:
        way = "padded batches" if self._padded else "continuous batching"
        return f"transformers {transformers.__version__}, {way}"

    def answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        for adapter in dict.fromkeys(request.adapter for request in requests):
            chosen = [request for request in requests if request.adapter == adapter]
            if adapter is not None:
                say(f"The adapter {adapter} answers {len(chosen)} prompts.")
            with self._switched_to(adapter):
                self._answer(chosen, deliver)

    def _answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """By continuous batching while it works; what it leaves goes into padded batches."""
        done: set[str] = set()

        def note(answers: Sequence[Answer]) -> None:
            deliver(answers)
            done.update(answer.request.key for answer in answers)

        if not self._padded:
            try:
                self._continuous(requests).answer(requests, note)
                return
            except Unsupported as error:
                self._padded = True
                say(f"Continuous batching cannot be used here ({error}); padded batches do it.")
        left = [request for request in requests if request.key not in done]
        self._batches(left).answer(left, deliver)

    def _continuous(self, requests: Sequence[Request]) -> Engine:
        lengths = [request.longest for request in requests for _ in range(request.sampling.n)]
        if not lengths:
            raise Unsupported("there is nothing to answer")
        room, drawn = self._room(), _is_drawn(requests)
        size = memory.continuous(self._widths, room, lengths, drawn=drawn)
        if size is None:
            raise Unsupported("the longest prompt and its answer do not fit into the cache")
        say(f"Continuous batching: {size.sequences} at once, {size.pages * size.page_tokens} tokens of cache.")
        return Continuous(self._run, self._loaded, self._drawing, size)

    def _batches(self, requests: Sequence[Request]) -> Engine:
        prompt = max((len(request.tokens) for request in requests), default=1)
        longest = max((request.longest for request in requests), default=1)
        rows = memory.padded(self._widths, self._room(), prompt, longest, drawn=_is_drawn(requests))
        return Batches(self._run, self._loaded, self._drawing, rows)

    def _room(self) -> memory.Room:
        on_gpu = self._loaded.device == "cuda"
        free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
        return memory.room(free, on_gpu=on_gpu, most=self._run.order.spec["batch_size"])

    @contextmanager
    def _switched_to(self, adapter: str | None) -> Iterator[None]:
        if adapter is None or self._adapted is self._loaded.model:
            yield
        elif not weights.sources(self._run.order).adapters[adapter]:
            with self._adapted.disable_adapter():
                yield
        else:
            self._adapted.set_adapter(adapter)
            yield


def _is_drawn(requests: Sequence[Request]) -> bool:
    return not all(request.sampling.is_plain for request in requests)


def widths_of(config: Any, device: weights.Device) -> Widths:
    """The numbers of a model that memory depends on, from its configuration."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    head = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return Widths(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        attention=heads * head,
        key_value=int(getattr(text, "num_key_value_heads", None) or heads) * head,
        feed_forward=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocabulary=int(text.vocab_size),
        width=4 if device.dtype == "float32" else 2,
        flash=device.dtype != "float32" and has_flash_attention(),
    )


def _context(config: Any, tokenizer: Any) -> int:
    """How many tokens the model takes, prompt and answer together."""
    limits = (getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    return min(int(limit) for limit in limits if limit)


def _ends(generation_config: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: chat models often have several."""
    configured = generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (*several, tokenizer.eos_token_id) if token is not None})


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


def _open_results(run: Run, requests: Sequence[Request], engine: Engine) -> Results:
    source, spec = weights.sources(run.order), run.order.spec
    adapters = {name: _fingerprint(place, None) if place else None for name, place in source.adapters.items()}
    output_format = _format(run)
    order = {
        "data_sha256": sha256_of(Path(run.order.paths["data"])),
        "model": _fingerprint(source.model, source.revision),
        "adapter": _fingerprint(source.adapter, None) if source.adapter else None,
        "adapters": adapters,
        "engine": engine.name.split()[0],
        "output_format": output_format.name,
        **{key: spec[key] for key in IDENTITY},
    }
    keys = [request.key for request in requests]
    return Results(run.folder.generations, run.folder.checkpoints / "generations.json", order, keys, output_format)


def _format(run: Run) -> Format:
    wanted = run.order.spec["output_format"]
    if wanted == "auto":
        wanted = "openai" if _is_openai_batch(run) else "jsonl"
    return OpenAI(str(run.order.spec["model"]), int(time.time())) if wanted == "openai" else Plain()


def _is_openai_batch(run: Run) -> bool:
    """Whether the first row that can be read is a batch request."""
    reading = Reading.of(run.order.spec)
    try:
        for _, row in scan(Path(run.order.paths["data"])):
            if isinstance(row, dict):
                return is_request(reading.named(row))
    except InvalidData:
        pass  # told by whoever reads it all
    return False


def _fingerprint(name: str, revision: str | None) -> dict[str, Any]:
    """What tells one model from another: a hub id with its revision, or a folder's weight files."""
    if not name.startswith("/"):
        return {"name": name, "revision": revision}
    files = sorted(Path(name).glob("*.safetensors")) + sorted(Path(name).glob("*config.json"))
    small = {file.name: sha256_of(file) for file in files if file.stat().st_size < 2**28}
    return {"name": name, "files": {file.name: file.stat().st_size for file in files}, "sha256": small}


def _metrics(results: Results, resumed: set[str], took_s: float, engine: str) -> dict[str, Any]:
    rows = failed = prompt_tokens = completion_tokens = fresh = 0
    first_error = ""
    for key, tally in results.tallies():
        rows, failed = rows + 1, failed + tally.failed
        first_error = first_error or tally.error
        prompt_tokens, completion_tokens = prompt_tokens + tally.prompt_tokens, completion_tokens + tally.completion_tokens  # fmt: skip
        fresh += tally.completion_tokens if key not in resumed else 0
    if failed == rows:
        raise JobError(Cause.BAD_INPUT, f"No prompt could be answered. The first: {first_error}")
    say(f"{rows} answers are in output/generations.jsonl, {failed} of them with an error.")
    return {
        "rows": rows,
        "failed_rows": failed,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "tokens_per_s": round(fresh / took_s, 1) if fresh else None,
        "resumed_rows": len(resumed),
        "engine": engine,
    }
