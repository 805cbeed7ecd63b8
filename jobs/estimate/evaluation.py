"""What an evaluation will need."""

from jobs.estimate.facts import Estimate, Facts, Json
from jobs.estimate.inference import inference_parts
from jobs.estimate.memory import USUAL_BYTES_PER_TOKEN, Batch, at_most, row_tokens, width_of

#: Logits that an evaluation holds at once (jobs.evaluation.scoring): 256 MiB in float32.
SCORING_TILE = 1 << 26


def of_evaluate(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    """Of rows. How long the questions of lm-eval's tasks are, nobody knows before."""
    data, model = facts.data, facts.model
    if data is None:
        return Estimate()
    rows = min(data.rows, spec["limit"] or data.rows)
    tokens = data.text_bytes // USUAL_BYTES_PER_TOKEN * rows // max(1, data.rows) + rows * spec["max_new_tokens"]
    if model is None or spec["tasks"]:
        return Estimate(rows=rows, tokens=tokens)
    width = width_of(spec, on_gpu)
    batch = Batch(at_most(spec["batch_size"], data), row_tokens({**spec, "packing": False}, data), packed=False)
    parts = inference_parts(model, batch, batch.length + spec["max_new_tokens"], width, on_gpu)
    tile = min(SCORING_TILE, batch.tokens * model.vocabulary)
    # of the tile: as the head gives it, in float32, and the sum of its exponentials on the way
    parts["logits"] = max(parts["logits"], tile * (width + 4 + 4) + batch.tokens * model.hidden * width)
    return Estimate(rows=rows, tokens=tokens, vram_bytes=sum(parts.values()), parts=parts)
