"""What data files and models say about themselves, each read once until it changes: a sweep names the same ones ten thousand times."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from jobs import data, model_facts, snapshot
from jobs.data import DataReport, InvalidData, Reading
from jobs.model_facts import ModelFacts, NoFacts


def rows(path: Path, reading: Reading) -> DataReport | InvalidData | None:
    """What a file of rows holds, or what is wrong with it; None for another job's result that is still to come."""
    try:
        return _rows(path, reading, data.identity(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        return InvalidData(path, None, f"cannot be read by the rig ({error.strerror})")


def model(folder: Path) -> ModelFacts | str:
    """A model's size, or why it is not known."""
    return _model(folder, model_facts.identity(folder))


def adapter_parameters(folder: Path) -> int | None:
    """How many parameters an adapter has; None when it is still to come or cannot be read."""
    return _adapter(folder, model_facts.identity(folder))


def hub_folder(name: str, environment: Mapping[str, str]) -> Path | None:
    """Where an earlier job has put a model of the hub (huggingface_hub's cache); None when none has."""
    model_id, _, revision = name.partition("@")
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(environment.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    repository = cache / f"models--{model_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        commit = revision
    folder = repository / "snapshots" / commit
    return folder if commit and os.sep not in commit and (folder / model_facts.CONFIG).is_file() else None


def packed(path: Path) -> frozenset[str] | str:
    """The names in a working folder that came along, or what is wrong with it."""
    facts = path.stat()
    return _packed(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _packed(path: Path, _inode: int, _size_bytes: int, _changed_ns: int) -> frozenset[str] | str:
    try:
        return snapshot.contents(path)
    except snapshot.BadSnapshot as error:
        return str(error)


@lru_cache(maxsize=256)
def _rows(path: Path, reading: Reading, _identity: object) -> DataReport | InvalidData:
    try:
        return data.check(path, reading)
    except InvalidData as error:
        return error
    except OSError as error:
        return InvalidData(path, None, f"cannot be read by the rig ({error.strerror})")


@lru_cache(maxsize=256)
def _model(folder: Path, _identity: object) -> ModelFacts | str:
    try:
        return model_facts.read_model(folder)
    except NoFacts as error:
        return str(error)


@lru_cache(maxsize=256)
def _adapter(folder: Path, _identity: object) -> int | None:
    try:
        return model_facts.read_adapter(folder)
    except NoFacts:
        return None
