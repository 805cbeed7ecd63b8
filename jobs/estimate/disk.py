"""The room on disk that checkpoints and results take."""

import math
from collections.abc import Sequence

from jobs.estimate.facts import Json
from jobs.estimate.memory import WIDTH
from jobs.estimate.methods import method_of, optimizer_bytes
from jobs.model_facts import ModelFacts

#: Checkpoints per run where the document does not say how often.
CHECKPOINTS_PER_RUN = 10
#: Checkpoints that lie on the disk at once: the newest two, and one that is being written; the best, where it is evaluated.
CHECKPOINTS_KEPT = 3
#: State of scheduler, random numbers and trainer in a checkpoint.
CHECKPOINT_REST_BYTES = 1 << 20
#: A weight in GGUF's Q8_0: 8 bits, and one scale of 16 for 32 of them.
Q8_0_BYTES = 1 + 2 / 32
#: A tokenizer's files beside a result.
TOKENIZER_BYTES = 16 << 20


def save_every(spec: Json, steps: int) -> int:
    """Steps from one checkpoint to the next."""
    return int(spec["save_steps"] or max(1, math.ceil(steps / CHECKPOINTS_PER_RUN)))


def checkpoint_bytes(spec: Json, learned: int, model: ModelFacts, steps: int | None) -> int:
    """The most that a fine-tune's checkpoints and its result take at once. `learned`: parameters."""
    method = method_of(spec)
    result = learned * method.learned_bytes
    one = round(result + learned * optimizer_bytes(spec, method)) + CHECKPOINT_REST_BYTES
    kept = CHECKPOINTS_KEPT + bool(spec["eval_data"] or spec["eval_fraction"])
    if steps:
        kept = min(kept, math.ceil(steps / save_every(spec, steps)))
    return kept * one + result + TOKENIZER_BYTES


def merged_model_bytes(spec: Json, model: ModelFacts | None) -> int:
    """A merged model: in the type that is asked for, else in the one that its base is stored in."""
    if model is None:
        return 0
    if spec["dtype"] in WIDTH:
        return model.parameters * WIDTH[spec["dtype"]]
    return model.parameters * 2 if spec.get("method") == "qlora" else model.stored_bytes


def export_bytes(formats: Sequence[str], model: ModelFacts | None, merged_bytes: int) -> int | None:
    """Room for what an export leaves; a GGUF file is made from a merged model, whether that stays or not."""
    if model is None:
        return None
    return (merged_bytes if formats else 0) + (round(model.parameters * Q8_0_BYTES) if "gguf" in formats else 0)
