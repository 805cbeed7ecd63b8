"""What a job would need, as the commands ask for it and show it. Loads pydantic (through documents)."""

from collections.abc import Iterator, Mapping
from typing import Any

from api.cli import output
from api.cli.session import Session
from jobs.data import DataReport

Json = dict[str, Any]

GIB = 2**30
PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "logits": "logits",
    "kv_cache": "KV cache",
    "overhead": "CUDA, gaps",
}
ORIGIN = {
    "declared": "as declared",
    "learned": "learned from earlier runs",
    "dry run": "by a dry run",
    "estimated": "estimated",
}


def ask(
    session: Session,
    document: Mapping[str, Any],
    reports: Mapping[str, DataReport],
    vram_gib: float | None = None,
    *,
    dry_run: bool = False,
) -> Json:
    """The rig's estimate. `reports`: what files hold that may not be on the rig yet, by `sha256:...`. `vram_gib`: of a GPU that is not there."""
    report = reports.get(str(document.get("data")))
    facts: Json = {name: getattr(report, name) for name in ("rows", "text_bytes", "longest_bytes")} if report else {}
    if vram_gib is not None:
        facts["vram_gib"] = vram_gib
    if dry_run:
        facts["dry_run"] = True
    return session.client.estimate(document, **facts)


def show(session: Session, view: Mapping[str, Any]) -> None:
    """What it needs and of what, where it fits, and what would."""
    parts = _parts(view["parts"]) if view["source"] in ("estimated", "dry run") else []
    for line in (*_lines(view), *parts, *_verdict(view), *_capacity(view.get("capacity"))):
        session.say(line)


def _lines(view: Mapping[str, Any]) -> Iterator[str]:
    counts = [
        _count(view["steps"], "step"),
        _count(view["rows"], "row"),
        f"about {view['tokens']} tokens" if view["tokens"] is not None else "",
        f"checkpoints up to {output.size(view['disk_bytes'])}" if view["disk_bytes"] is not None else "",
    ]
    if any(counts):
        yield f"Work: {', '.join(filter(None, counts))}"
    time_s = view["time_s"]
    yield (
        f"Time: about {output.duration(time_s)}"
        if time_s is not None
        else f"Time: not known, {view['unknown']['time_s']}"
    )
    if view.get("preflight"):
        yield "Preflight: yes, a few real steps first, ahead of the queue (--no-preflight leaves it out)"
    if shared := view["parallel"]:
        yield f"GPUs: {output.clean_line(shared['way'])}, because {output.clean_line(shared['why'])}"
    if view["vram_bytes"] is None:
        yield f"Memory: not known, {view['unknown'].get('vram_bytes', '')}"
    else:
        yield f"Memory: {gib(view['vram_bytes'])} on each GPU ({ORIGIN.get(view['source'], view['source'])})"


def _verdict(view: Mapping[str, Any]) -> Iterator[str]:
    for gpu in view["gpus"]:
        if gpu["memory_bytes"]:
            words = {True: "fits", False: "does not fit", None: "not known"}[gpu["fits"]]
            yield f"{gpu['name']} of {gpu['rig']} ({gib(gpu['memory_bytes'])}): {words}"
    if view["message"]:
        yield f"It would be refused: {view['message']}."
    yield from view["warnings"]


def _capacity(found: Mapping[str, Any] | None) -> Iterator[str]:
    """The most that would fit, whatever the rows of the data are like."""
    if found is None:
        return
    if not found["longest"]:
        yield f"Room for: not even one short row, which needs {gib(found['least_bytes'])}"
        return
    most = ", ".join(f"{at['rows']} x {at['length']}" for at in found["batches"])
    yield f"Room for (rows x tokens): {most}{'; ' if most else ''}one row of up to {found['longest']} tokens"


def _parts(parts: Mapping[str, int]) -> list[str]:
    return [
        f"  {output.clean_line(PARTS.get(name, name)):<16}{size / GIB:8.2f} GiB" for name, size in parts.items() if size
    ]


def _count(number: int | None, word: str) -> str:
    return "" if number is None else f"{number} {word}{'' if number == 1 else 's'}"


def gib(count: float) -> str:
    """Bytes as GiB, to one decimal."""
    return f"{count / GIB:.1f} GiB"
