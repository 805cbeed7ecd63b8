"""What a model's benchmark says beside a plain loop around the same model: forward, take the likeliest token, forward."""

import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from figures import Figures
from warm import MODELS

from jobs import demo_model
from jobs.cells import Cell
from jobs.run import Order, Run
from jobs.rundir import RunDir

BATCH, PROMPT, NEW_TOKENS = 4, 64, 48


def measuring(*, quick: bool) -> Iterator[Figures]:
    """Time to the first token and from one token to the next, both in turns."""
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.cells.measure import Meter
    from jobs.energy_counter import EnergyCounter
    from jobs.weights import Device

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(demo_model.prepare(MODELS, layers=2), dtype=torch.bfloat16).eval()
    cell = Cell(dtype="bfloat16", quantization="none", batch_size=BATCH, prompt_length=PROMPT)
    prompts = torch.randint(model.config.vocab_size, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    figures = Figures("ms")

    def loop() -> tuple[float, list[float]]:
        moments = [time.perf_counter()]
        with torch.inference_mode():
            out = model(prompts, use_cache=True, logits_to_keep=1)
            for _ in range(NEW_TOKENS - 1):
                tokens = out.logits[:, -1:].argmax(-1)
                moments.append(time.perf_counter())
                out = model(tokens, past_key_values=out.past_key_values, use_cache=True)
            moments.append(time.perf_counter())
        return moments[1] - moments[0], [b - a for a, b in pairwise(moments[1:])]

    with tempfile.TemporaryDirectory() as path:
        folder = RunDir(Path(path))
        folder.create()
        run = Run(folder, Order(job_id="1", attempt=1, fence=1, resume=False, spec={}))
        meter = Meter(run, model, Device(name="cpu", dtype="bfloat16"), EnergyCounter(""))
        for _ in range(2 if quick else 15):
            [timing], _, _ = meter.measure(cell, new_tokens=NEW_TOKENS, repeats=1, seed=1)
            first_s, between_s = loop()
            for name, first, between in (("benchmark", timing.first_token_s, timing.between_s), ("plain loop", first_s, between_s)):  # fmt: skip
                figures.add(f"{name}: first token", first)
                figures.add(f"{name}: token to token", sorted(between)[len(between) // 2])
    yield figures
