"""Batch generation beside one prompt at a time, on prompts of mixed lengths."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from figures import Figures
from rig import ROOT, BenchFailed
from warm import MODELS

from jobs import demo_model

PROMPTS, NEW_TOKENS = 64, 24
RUN_S = 3600.0


def generation(*, quick: bool) -> Iterator[Figures]:
    """SmolLM2-135M, 64 prompts of 38 to 367 tokens, greedy: one by one, padded batches, continuous batching; tokens/s."""
    model = demo_model.prepare(MODELS, layers=2 if quick else None)
    argv = [sys.executable, Path(__file__).with_name("generation_modes.py"), model, 16 if quick else PROMPTS, 8 if quick else NEW_TOKENS]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run([str(word) for word in argv], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_S, check=False)  # fmt: skip
    if done.returncode:
        raise BenchFailed(done.stderr[-500:])
    prompts, *modes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if different := [mode["name"] for mode in modes if not mode["same"]]:
        raise BenchFailed(f"other answers than one by one: {', '.join(different)}")
    print("  prompts: shortest {} tokens, median {}, longest {}, together {}; every way gave the same answers".format(*prompts["prompts"]))  # fmt: skip
    wall, cpu = Figures("tokens/s"), Figures("tokens per CPU second")
    for mode in modes:
        wall.add(mode["name"], mode["tokens"] / mode["wall_s"])
        cpu.add(mode["name"], mode["tokens"] / mode["cpu_s"])
    yield wall
    yield cpu
