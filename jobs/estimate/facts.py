"""What is known of a job before it runs, and what is told from it. Plain records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.data import DataReport
from jobs.model_facts import ModelFacts

Json = Mapping[str, Any]
Part = Literal["weights", "adapter", "gradients", "optimizer", "activations", "logits", "kv_cache", "overhead"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a document's model and data. None: nothing."""

    model: ModelFacts | None = None
    data: DataReport | None = None
    eval_data: DataReport | None = None
    #: Of an adapter that is trained further; of all adapters of a generation together.
    adapter_parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job will need. None: nobody knows."""

    rows: int | None = None
    #: Optimizer steps of a fine-tune.
    steps: int | None = None
    tokens: int | None = None
    #: On each GPU, and what it is made of.
    vram_bytes: int | None = None
    parts: Mapping[Part, int] = field(default_factory=dict)
    #: The most that checkpoints and results will take at once.
    disk_bytes: int | None = None
    #: Floating-point operations of a fine-tune; only its order of magnitude is to be trusted.
    flops: float | None = None

    @property
    def record(self) -> dict[str, float]:
        """What a job's record keeps of it."""
        counts = {"rows": self.rows, "steps": self.steps, "tokens": self.tokens, "disk_bytes": self.disk_bytes, "flops": self.flops}  # fmt: skip
        return {name: count for name, count in counts.items() if count is not None}


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a job's record tells of it before it runs."""

    vram_bytes: int | None = None
    estimate: Mapping[str, float] = field(default_factory=dict)
    #: Whether it is to be checked first (daemon.preflights).
    preflight: bool = False
    #: How its GPUs share the work, and why so: `way`, `why`; empty with one GPU.
    parallel: Mapping[str, str] = field(default_factory=dict)


UNKNOWN = Outlook()
