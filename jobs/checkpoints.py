"""Sealed checkpoints of one training: `step-000200/`, each with a manifest of its files. The only place that knows their names.

A checkpoint counts only when it is whole. The trainer writes it aside; then every file is hashed and fsynced, the manifest is
written last, and the folder is renamed into place. On resume the newest that still matches its manifest is taken: plain trainers
load one with a zero-filled tail (a power cut does that) without a word, and go on with wrong weights.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jobs.rundir import read_json, sync_folder, write_json

MANIFEST = "manifest.json"
#: What these checkpoints were trained from; a resume with other data or another model starts over.
ORIGIN = "origin.json"
#: Where the trainer writes before a checkpoint is sealed, and where rows wait as tokens. Emptied at the start of an attempt.
DRAFTS = ".drafts"
#: A folder on its way out.
GONE = ".gone-{}"
STEP_FOLDER = re.compile(r"step-([0-9]{6,12})")
#: So many of the newest stay, and the best one.
KEEP = 2
#: Everything but weights and optimizer: states, configuration, RNG.
OTHER_FILES_BYTES = 1_000_000
#: Without each of these a trainer would go on silently with fresh state, or not at all.
REQUIRED = (
    ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"),
    ("optimizer.pt", "optimizer.bin"),
    ("scheduler.pt",),
    ("rng_state.pth", "rng_state_0.pth"),
    ("trainer_state.json",),
)


def drafts(folder: Path) -> Path:
    """An empty place for what is not sealed yet; leftovers of an earlier attempt are removed."""
    place = folder / DRAFTS
    shutil.rmtree(place, ignore_errors=True)
    for leftover in folder.glob(GONE.format("*")):
        shutil.rmtree(leftover, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def seal(draft: Path, folder: Path, step: int) -> Path:
    """Make a draft the checkpoint of this step. Once this returns it survives a power cut."""
    files = {name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(draft)}
    if lacking := _lacking(set(files)):
        raise ValueError(f"the draft of step {step} has no {lacking}")
    make_durable(draft)
    write_json(draft / MANIFEST, {"version": 1, "step": step, "files": files})
    target = folder / f"step-{step:06d}"
    put_in_place(draft, target)
    return target


def newest_whole(folder: Path, *, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that is whole; says which broken ones it passed over."""
    for checkpoint in reversed(sealed(folder)):
        wrong = what_is_wrong(checkpoint)
        if wrong is None:
            return checkpoint
        say(f"Checkpoint {checkpoint.name} is broken ({wrong}); looking for the one before.")
    return None


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint must not be loaded; None when it is whole. Reads every byte of it."""
    manifest = read_json(checkpoint / MANIFEST)
    files = manifest.get("files") if manifest else None
    if not isinstance(files, dict):
        return "no readable manifest"
    if lacking := _lacking(set(files)):
        return f"no {lacking}"
    present = dict(_files(checkpoint))
    if strangers := set(present) - set(files) - {MANIFEST}:
        return f"{min(strangers)} does not belong to it"
    for name, fact in files.items():
        if name not in present:
            return f"{name} is missing"
        if present[name].stat().st_size != fact["size"]:
            return f"{name} has the wrong size"
        if _sha256(present[name]) != fact["sha256"]:
            return f"{name} has the wrong checksum"
    return _wrong_step(checkpoint)


def _wrong_step(checkpoint: Path) -> str | None:
    state = read_json(checkpoint / "trainer_state.json")
    if state is None:
        return "trainer_state.json is not JSON"
    if state.get("global_step") != step_of(checkpoint):
        return f"trainer_state.json is of step {state.get('global_step')}"
    return None


def sealed(folder: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first; whether they are whole is another question."""
    found = [path for path in folder.glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which it was taken."""
    match = STEP_FOLDER.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint.name} is not a checkpoint's folder")
    return int(match[1])


def prune(folder: Path, *, keep: int = KEEP, best: int | None = None) -> None:
    """Remove all but the newest `keep`, and the one of step `best`. Only after a new one was sealed."""
    for checkpoint in sealed(folder)[:-keep]:
        if step_of(checkpoint) != best:
            remove(checkpoint)


def expected_bytes(trainable: Iterable[tuple[int, int]]) -> int:
    """How large one checkpoint will be, from each learning parameter's count of elements and bytes per element.

    Weights, and AdamW's two moments in the weights' own type; what else is in it is small.
    """
    return OTHER_FILES_BYTES + sum(3 * elements * size for elements, size in trainable)


def needed_bytes(folder: Path, one_bytes: int) -> int:
    """The space that a training still needs: for the newest, the one before, the best, the draft beside them, and its
    result. What is there already is counted."""
    there = sum(path.stat().st_size for checkpoint in sealed(folder) for _, path in _files(checkpoint))
    return max(one_bytes, (KEEP + 3) * one_bytes - there)


def discard_after(folder: Path, step: int) -> None:
    """Remove the checkpoints later than a step: broken ones, or ones of a training that had gone astray."""
    for checkpoint in sealed(folder):
        if step_of(checkpoint) > step:
            remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away at once; a kill in the middle leaves no half of it under its name."""
    gone = checkpoint.with_name(GONE.format(f"{checkpoint.name}-{os.getpid()}"))
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def origin(folder: Path) -> dict[str, Any] | None:
    """What the checkpoints in this folder were trained from, if anything."""
    return read_json(folder / ORIGIN)


def start_over(folder: Path, facts: dict[str, Any]) -> None:
    """Remove every checkpoint and note what the next ones are trained from."""
    discard_after(folder, -1)
    write_json(folder / ORIGIN, facts)


def note(folder: Path, **facts: Any) -> None:
    """Add to what is known of the checkpoints' training."""
    write_json(folder / ORIGIN, {**(origin(folder) or {}), **facts})


def make_durable(folder: Path) -> None:
    """Let everybody on the rig read the files (safetensors come 0600), and have them survive a power cut."""
    for _, path in _files(folder):
        path.chmod(0o644)
        sync_file(path)
    for inner in {path.parent for _, path in _files(folder)} | {folder}:
        sync_folder(inner)


def put_in_place(draft: Path, target: Path) -> None:
    """A durable folder takes its name, in place of an older one."""
    for leftover in target.parent.glob(GONE.format("*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if target.exists():
        remove(target)
    draft.rename(target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Have a file's content survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _lacking(names: set[str]) -> str | None:
    return next((" or ".join(choices) for choices in REQUIRED if not names & set(choices)), None)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
