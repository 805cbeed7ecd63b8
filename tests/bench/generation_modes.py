"""Answer the same prompts one by one with plain `generate`, and with each of our engines: one line of JSON for each way.

Run by the benchmark `generation`, in a process of its own: `python generation_modes.py MODEL PROMPTS NEW_TOKENS`.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from jobs import weights
from jobs.generate import widths_of
from jobs.generation import memory
from jobs.generation.answers import Answer
from jobs.generation.batches import Batches
from jobs.generation.continuous import Continuous
from jobs.generation.drawing import Drawing
from jobs.generation.engine import Engine, Loaded
from jobs.generation.requests import Request
from jobs.generation.sampling import Sampling
from jobs.run import Order, Run
from jobs.rundir import RunDir

SUBJECTS = ("the sea", "rust on steel", "a night train", "how bread rises", "sorting numbers", "the moon", "a lost key")
#: Sentences before the question: most prompts are short, some are long, as in real files.
SENTENCES = (0, 0, 1, 2, 4, 8, 14, 18)


def main(model_path: str, count: int, new_tokens: int) -> None:
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    ends = [tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    drawing = Drawing(ends, lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)))
    requests = _requests(tokenizer, count, new_tokens)
    loaded = Loaded(model=model, tokenizer=tokenizer, device="cpu", ends=ends)
    widths = widths_of(AutoConfig.from_pretrained(model_path), weights.Device(name="cpu", dtype="float32"))
    lengths = [request.longest for request in requests]
    size = memory.continuous(widths, memory.room(24 * 2**30, on_gpu=False, most=None), lengths, drawn=False)
    assert size is not None
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RunDir(Path(folder)), Order(job_id="1", attempt=1, fence=1, resume=False, spec={}))
        engines: dict[str, Engine] = {
            "padded batches of 8": Batches(run, loaded, drawing, 8),
            "padded batches of 16": Batches(run, loaded, drawing, 16),
            "continuous, 16 at once": Continuous(run, loaded, drawing, size),
        }
        plain(model, drawing, requests[:1])  # warm up
        prompts = [len(request.tokens) for request in requests]
        print(json.dumps({"prompts": [min(prompts), sorted(prompts)[len(prompts) // 2], max(prompts), sum(prompts)]}))
        alone = _measured("one by one", lambda: plain(model, drawing, requests), None)
        for name, engine in engines.items():
            _measured(name, lambda engine=engine: _answered(engine, requests), alone)  # type: ignore[misc]


def plain(model: torch.nn.Module, drawing: Drawing, requests: Sequence[Request]) -> dict[int, str]:
    """What a script does: `generate` for each prompt."""
    found = {}
    for request in requests:
        ids = torch.tensor([list(request.tokens)])
        with torch.inference_mode():
            output = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.sampling.max_new_tokens,
                do_sample=False,
            )
        found[request.index] = drawing.sample(request, output[0, ids.shape[1] :].tolist())
    return found


def _answered(engine: Engine, requests: Sequence[Request]) -> dict[int, object]:
    answers: list[Answer] = []
    engine.answer(requests, answers.extend)
    return {answer.request.index: answer.samples[0] for answer in answers}


def _measured(name: str, work: Callable[[], dict], alone: dict | None) -> dict:
    began, cpu = time.monotonic(), time.process_time()
    found = work()
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    tokens = sum(sample.tokens for sample in found.values())
    same = alone is None or found == alone
    print(json.dumps({"name": name, "tokens": tokens, "wall_s": wall_s, "cpu_s": cpu_s, "same": same}), flush=True)
    return found


def _requests(tokenizer: object, count: int, new_tokens: int) -> list[Request]:
    source = random.Random(3)
    made = []
    for index in range(count):
        notes = [
            f"Note {n}: the workshop logged item {source.randrange(1000)} on shelf {source.choice('ABCDEF')}{source.randrange(40)}."
            for n in range(SENTENCES[source.randrange(len(SENTENCES))])
        ]
        text = " ".join([*notes, f"Write a short text about {SUBJECTS[index % len(SUBJECTS)]}."])
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)  # type: ignore[attr-defined]
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        made.append(Request(index, {"prompt": text}, tokens, Sampling(max_new_tokens=new_tokens)))
    return made


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
