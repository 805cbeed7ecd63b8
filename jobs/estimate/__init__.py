"""What a job will need, before it runs: steps, memory on its GPU, room for checkpoints. Pure arithmetic; knows no torch.

facts       what is known and what is told: Facts, Estimate, Outlook
training    fine-tunes; dry_run: the same from a dry run's step
inference   generations and benchmarks; evaluation adds what scoring holds
disk        checkpoints, results, exports
memory      the closed form that all kinds share: weights, a pass forward, overheads; methods: bytes of one parameter
"""

from jobs.estimate import evaluation, inference, training
from jobs.estimate.disk import export_bytes, merged_model_bytes, save_every
from jobs.estimate.dry_run import longest_batch, of_step
from jobs.estimate.evaluation import SCORING_TILE
from jobs.estimate.facts import UNKNOWN, Estimate, Facts, Json, Outlook, Part
from jobs.estimate.inference import inference_bytes
from jobs.estimate.memory import VRAM_RESERVE_BYTES
from jobs.estimate.training import optimizer_steps

__all__ = [
    "SCORING_TILE",
    "UNKNOWN",
    "VRAM_RESERVE_BYTES",
    "Estimate",
    "Facts",
    "Json",
    "Outlook",
    "Part",
    "estimate",
    "inference_bytes",
    "longest_batch",
    "of_step",
    "optimizer_steps",
    "save_every",
]


def estimate(spec: Json, facts: Facts, *, on_gpu: bool = True) -> Estimate:
    """What a document (jobs.spec.dump) will need. Without facts about its model or data, what can be told without them."""
    match spec["kind"]:
        case "finetune":
            return training.of_finetune(spec, facts, on_gpu)
        case "generate":
            return inference.of_generate(spec, facts, on_gpu)
        case "evaluate":
            return evaluation.of_evaluate(spec, facts, on_gpu)
        case "benchmark":
            return inference.of_benchmark(spec, facts, on_gpu)
        case "export":
            return Estimate(disk_bytes=export_bytes(spec["to"], facts.model, merged_model_bytes(spec, facts.model)))
        case _:
            return Estimate()
