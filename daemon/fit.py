"""Whether a job fits a GPU: what it needs (declared, learned or estimated) against what the GPUs of its rigs have."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from daemon import known_files
from daemon.placement import fits
from daemon.situation import gib
from jobs.data import DataReport
from jobs.estimate import VRAM_RESERVE_BYTES, Estimate, Facts, Outlook, Part, estimate
from jobs.fitting import Change, Sharing, sharing, what_fits
from jobs.known_models import known_model
from jobs.model_facts import ModelFacts
from jobs.parallel import way
from jobs.spec import CommandSpec, EvaluateSpec, ExportSpec, FieldError, FinetuneSpec, Spec, dump

GIB = 2**30

#: What earlier runs of the same shape have needed; None when there were none.
Learned = Callable[[Spec], int | None]
Source = Literal["declared", "learned", "dry run", "estimated"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a job needs on each GPU, and the largest GPU that it could get."""

    estimate: Estimate = field(default_factory=Estimate)
    #: How its GPUs share the work; None with one GPU.
    sharing: Sharing | None = None
    #: None: nobody knows, and `unknown` says why.
    vram_bytes: int | None = None
    source: Source | None = None
    unknown: str = ""
    #: Memory of the largest GPU (of as many as it asks for, the smallest); None: not limited, or not known.
    memory_bytes: int | None = None
    #: What would make it fit, when it does not.
    changes: tuple[Change, ...] = ()

    @property
    def fits(self) -> bool | None:
        """None when nobody knows."""
        if self.vram_bytes is None:
            return None
        return self.memory_bytes is None or fits(self.vram_bytes, self.memory_bytes)

    @property
    def outlook(self) -> Outlook:
        """For the job's record."""
        known = self.sharing is not None and self.sharing.vram_bytes is not None
        shared = {"way": self.sharing.way, "why": self.sharing.why} if self.sharing and known else {}
        return Outlook(vram_bytes=self.vram_bytes, estimate=self.estimate.record, parallel=shared)


def gather(spec: Spec, paths: Mapping[str, str], reports: Mapping[str, DataReport]) -> tuple[Facts, str]:
    """The facts of a document's model and data, and why its need is not known when one of them lacks."""
    if isinstance(spec, CommandSpec):
        return Facts(), "of a command only what it declares is known: set vram_gib"
    model = model_of(spec.model, paths)
    facts = Facts(
        model=model if isinstance(model, ModelFacts) else None,
        data=reports.get("data"),
        eval_data=reports.get("eval_data"),
        adapter_parameters=_adapter_parameters(paths),
    )
    if isinstance(model, str):
        return facts, model
    if isinstance(spec, EvaluateSpec) and spec.tasks:
        return facts, "how long the questions of its tasks are is not known: set vram_gib"
    if isinstance(spec, ExportSpec):
        return (
            facts,
            "an export goes to the GPU when it fits into what is free there, else into main memory: set vram_gib to keep room for it",
        )
    needs_data = "data" in type(spec).model_fields
    return facts, "its data is another job's result that is still to come" if needs_data and facts.data is None else ""


def _adapter_parameters(paths: Mapping[str, str]) -> int | None:
    """Of the job's adapter, or of several together; None when there is none whose size is known."""
    places = [Path(place) for name, place in paths.items() if name == "adapter" or name.startswith("adapters.")]
    known = [size for place in places if (size := known_files.adapter_parameters(place)) is not None]
    return sum(known) if known else None


def judge(
    spec: Spec,
    facts: Facts,
    unknown: str,
    *,
    memories: Sequence[Sequence[int]] = (),
    learned: Learned = lambda spec: None,
    stepped: Mapping[Part, int] | None = None,
) -> Fit:
    """What the job needs, and whether a rig has it. `memories`: bytes of each rig's slots, 0 for a CPU slot.

    `stepped`: its parts by a dry run (daemon.dry_runs); asked for, it counts more than what was learned.
    """
    document = dump(spec)
    memory_bytes = largest(memories, spec.gpus)
    shared = None
    if way(document) is not None:
        shared = sharing(document, facts, memory_bytes - VRAM_RESERVE_BYTES if memory_bytes else None)
        document["parallel"] = shared.way
    made = estimate(document, facts)
    if stepped is not None:
        made = replace(made, parts=stepped, vram_bytes=sum(stepped.values()))
    need, source = (made.vram_bytes, "dry run") if stepped is not None else _need(spec, made, learned)
    changes: list[Change] = []
    if need is not None and memory_bytes is not None and not fits(need, memory_bytes):
        room_bytes = memory_bytes - VRAM_RESERVE_BYTES
        if made.vram_bytes is not None and need > made.vram_bytes:
            # the estimate is too low for this job, and will be for its changes
            room_bytes = room_bytes * made.vram_bytes // need
        changes = what_fits(document, facts, room_bytes)
    return Fit(
        estimate=made,
        sharing=shared,
        vram_bytes=need,
        source=source,
        unknown=unknown if need is None else "",
        memory_bytes=memory_bytes,
        changes=tuple(changes),
    )


def settled(
    spec: Mapping[str, Any], told: Mapping[str, str], paths: Mapping[str, str], memory_bytes: int
) -> dict[str, Any]:
    """The orders' document: how several GPUs share a training is as the job's record says, else chosen by what is there now.

    `memory_bytes`: of the smallest of its GPUs; 0 for CPU slots.
    """
    if way(spec) is None or spec.get("parallel") != "auto":
        return dict(spec)
    if not told:
        model = model_of(str(spec["model"]), paths)
        facts = Facts(model=model if isinstance(model, ModelFacts) else None)
        room_bytes = memory_bytes - VRAM_RESERVE_BYTES if memory_bytes else None
        return {**spec, "parallel": sharing(spec, facts, room_bytes).way}
    return {**spec, "parallel": told["way"]}


def refusal(spec: Spec, fit: Fit) -> FieldError | None:
    """What to tell the owner of a job that fits no GPU; None when it fits, or nobody knows."""
    if fit.fits is not False or fit.vram_bytes is None or fit.memory_bytes is None:
        return None
    each = "on each GPU, " if spec.gpus > 1 else ""
    kept = f" ({gib(VRAM_RESERVE_BYTES)} of it stay free)" if fit.vram_bytes <= fit.memory_bytes else ""
    says = {
        "declared": f"asks for {gib(fit.vram_bytes)}",
        "learned": f"needed {gib(fit.vram_bytes)} in earlier runs",
        "dry run": f"needs {gib(fit.vram_bytes)} by a dry run",
        "estimated": f"needs about {gib(fit.vram_bytes)}",
    }[fit.source or "estimated"]
    largest_has = f"{'the largest GPUs have' if spec.gpus > 1 else 'the largest GPU has'} {gib(fit.memory_bytes)}{kept}"
    parts = [f"{says} {each}and {largest_has}" if not each else f"{says} {each}{largest_has}", *_advice(spec, fit)]
    return FieldError(_field(spec, fit), ". ".join(parts))


def words(change: Change) -> str:
    """A change as its owner would write it."""
    return " and ".join(f"{name} = {_value(value)}" for name, value in change.fields.items())


def largest(memories: Sequence[Sequence[int]], gpus: int) -> int | None:
    """What the best rig can give to each of so many GPUs; None when a slot takes any job, or no rig has so many."""
    found = [sorted(rig, key=lambda size: size or float("inf"), reverse=True)[gpus - 1] for rig in memories if len(rig) >= gpus]  # fmt: skip
    return max(found) if found and all(found) else None


def _need(spec: Spec, made: Estimate, learned: Learned) -> tuple[int | None, Source | None]:
    if spec.vram_gib is not None:
        return round(spec.vram_gib * GIB), "declared"
    if (known := learned(spec)) is not None:
        return known, "learned"
    return (made.vram_bytes, "estimated") if made.vram_bytes is not None else (None, None)


def _field(spec: Spec, fit: Fit) -> str:
    if fit.source == "declared" or isinstance(spec, CommandSpec):
        return "vram_gib"
    if not fit.changes:
        return "model"
    return "per_device_train_batch_size" if isinstance(spec, FinetuneSpec) else next(iter(fit.changes[0].fields))


def _advice(spec: Spec, fit: Fit) -> list[str]:
    if fit.source == "declared":
        return []
    own = "Declare vram_gib where you know better"
    if not fit.changes:
        weights = fit.estimate.parts.get("weights")
        because = f"; its weights alone take {gib(weights)}" if weights else ""
        return [f"No smaller batch would help{because}. Use a smaller model or a larger GPU", own]
    ways = ", or with ".join(f"{words(change)} ({gib(change.vram_bytes)})" for change in fit.changes)
    if any(change.changes_meaning for change in fit.changes):
        return [f"No smaller batch would help. It would fit with {ways}, but that changes what comes out", own]
    return [f"It would fit with {ways}", own]


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def model_folder(name: str, paths: Mapping[str, str]) -> Path | None:
    """Where a document's model is on this rig; None while it is still on the hub."""
    base = paths.get("model", "")
    return Path(base) if base.startswith("/") else known_files.hub_folder(base or name, os.environ)


def model_of(name: str, paths: Mapping[str, str]) -> ModelFacts | str:
    """A model's size, or why it is not known. One that is still on the hub is known when it is one of the usual ones."""
    folder = model_folder(name, paths)
    if folder is None:
        return known_model(paths.get("model") or name) or "its model is still on the hub"
    found = known_files.model(folder)
    return found if isinstance(found, ModelFacts) else f"the size of its model is not known: {found}"
