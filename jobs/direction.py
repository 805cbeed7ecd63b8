"""Which way a metric gets better, by its name. Pure.

Names are jobs' own, so this is a guess from their words, and where no word is known there is no judgement.
"""

import re
from typing import Literal

Direction = Literal["lower", "higher"]

#: The last known word of a name decides: `eval_loss` is a loss, `loss_reduction` is not known.
LOWER = frozenset({"loss", "perplexity", "ppl", "error", "errors", "wer", "cer", "mae", "mse", "rmse", "nll", "bpb", "ece", "brier", "latency", "duration", "ttft", "toxicity", "regret"})  # fmt: skip
HIGHER = frozenset({"accuracy", "acc", "score", "f1", "bleu", "rouge", "chrf", "auc", "precision", "recall", "reward", "rewards", "match", "exact", "win", "throughput", "mfu", "pass", "passed", "correct", "agreement", "similarity", "speedup"})  # fmt: skip
#: Rates, whatever is counted.
PER_TIME = re.compile(r"(^|_)per_s(econd)?$")
#: What it costs.
JOULES_PER = re.compile(r"(^|_)(joules|j)_per_")
#: Suffixes that say in what unit or over what a number is, not what it is.
SUFFIXES = frozenset({"mean", "avg", "average", "norm", "macro", "micro", "weighted", "strict", "flexible", "rate", "ratio", "at", "k", "1", "5", "10", "s", "ms", "p50", "p95", "p99", "none"})  # fmt: skip


def direction(metric: str) -> Direction | None:
    """Whether less or more of it is better; None when the name does not tell."""
    name = metric.lower()
    if PER_TIME.search(name):
        return "higher"
    if JOULES_PER.search(name):
        return "lower"
    for word in reversed([part for part in re.split(r"[^a-z0-9]+", name) if part]):
        if word in LOWER:
            return "lower"
        if word in HIGHER:
            return "higher"
        if word not in SUFFIXES:
            return None
    return None
