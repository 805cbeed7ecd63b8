"""Warm start: a worker imports torch and its family before a job needs them, so that a forked child computes at once.

The preloaded process only imports. It runs no tensor operation (one OpenMP region here makes every forked child hang for
ever in libgomp) and never touches CUDA (a forked child could not use it: "Cannot re-initialize CUDA in forked subprocess").
"""

import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.spec.finetune import NEEDS_BITSANDBYTES

log = logging.getLogger(__name__)

#: What the recipes use. The names behind lazy modules are touched, so that they are really imported.
MODULES = {
    "torch": (),
    "transformers": ("AutoModelForCausalLM", "AutoTokenizer", "Trainer", "TrainerCallback", "LlamaForCausalLM"),
    "accelerate": (),
    "peft": ("LoraConfig", "PeftModel", "get_peft_model"),
    "datasets": ("Dataset",),
    "trl": ("SFTTrainer", "SFTConfig"),
    "jobs.finetune": (),
    "jobs.generate": (),
    "jobs.evaluate": (),
    "jobs.benchmark": (),
}
SELF_TEST_S = 60.0
#: madvise(2); MADV_COLLAPSE since Linux 6.1. The size is x86-64's and ARM's with 4 KiB pages.
MADV_HUGEPAGE, MADV_COLLAPSE, HUGE_PAGE_BYTES = 14, 25, 2**21


def needs_cold_start(spec: Mapping[str, Any]) -> bool:
    """Whether a document's job needs bitsandbytes, which a preloaded process must not have imported."""
    few_bits = any(name != "none" for name in spec.get("quantizations") or ())
    return few_bits or spec.get("method") == "qlora" or spec.get("optim") in NEEDS_BITSANDBYTES


class WarmStart:
    """Whether children may be forked from this process, and the preloading that makes it worth it."""

    def __init__(self, *, wanted: bool):
        self.wanted = wanted
        self.ready = False

    def preload(self) -> None:
        """Import everything, then prove with a forked child that it computes. When it does not, jobs start cold."""
        if not self.wanted or self.ready:
            return
        self.wanted = False  # one try only: what failed once would fail before every job
        began = time.monotonic()
        try:
            import_recipes()
        except ImportError as error:
            log.warning("warm start is off: %s cannot be imported (%s)", error.name, error)
            return
        problem = unsafe_to_fork() or self_test()
        collapse_pages()
        self.ready = problem is None
        seconds = time.monotonic() - began
        if problem:
            log.warning("warm start is off, jobs start cold: %s", problem)
        else:
            log.info("warm start is ready after %.1f s", seconds)


def import_recipes() -> None:
    """Load the recipes' packages into this process."""
    # With bitsandbytes, `import peft` initialises CUDA in this process (peft/helpers.py); 4-bit jobs start cold instead.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    # Arrow's allocator would start a thread in this process; children could not see it work.
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    for name, attributes in MODULES.items():
        module = importlib.import_module(name)
        for attribute in attributes:
            getattr(module, attribute)
    gc.collect()
    gc.freeze()  # a child's collector would copy every page that it visits


def collapse_pages() -> None:
    """Gather this process's memory in huge pages, so that a fork copies 200 page table entries instead of 80,000.

    A request only: an older kernel says no, and forks take 10 ms instead of 2.
    """
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, mode, *rest = line.split()
        if mode != "rw-p" or (len(rest) > 3 and rest[3] != "[heap]"):
            continue
        first, last = (int(address, 16) for address in bounds.split("-"))
        first, last = -(-first // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, last // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if last > first:
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def unsafe_to_fork() -> str | None:
    """Why children must not be forked from here; None when they may be."""
    import torch

    if torch.cuda.is_initialized():
        return "an import initialised CUDA in the worker"
    if threads := [t for t in Path("/proc/self/task").iterdir() if int(t.name) != os.getpid()]:
        return f"an import started {len(threads)} thread(s)"
    return None


def self_test() -> str | None:
    """A forked child computes, on the GPU when it has one. Returns what went wrong, or None."""
    child = os.fork()
    if child == 0:
        os._exit(_compute())
    handle = os.pidfd_open(child)
    try:
        if not select.select([handle], [], [], SELF_TEST_S)[0]:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(handle)
    code = os.waitstatus_to_exitcode(status)
    return None if code == 0 else f"a forked child could not compute (status {code})"


def _compute() -> int:
    try:
        import torch

        device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
        value = torch.ones(256, 256, device=device)
        return 0 if float((value @ value).sum()) == 256.0**3 else 3
    except Exception as error:  # the child's last words: its parent only sees the status
        print(f"warm start self-test: {error}", file=sys.stderr)
        return 4
