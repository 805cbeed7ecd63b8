"""Rows of Parquet and Arrow files, and of folders that `datasets` saved, read by pyarrow batch by batch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.data.problems import InvalidData
from jobs.data.values import Row

BATCH_ROWS = 256
#: What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave.
STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved_dataset(path: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def shards(folder: Path) -> list[Path]:
    """The files of a saved dataset. Raises InvalidData when it holds several splits, or is not whole."""
    try:
        if not (folder / STATE).is_file():
            splits = json.loads((folder / SPLITS).read_text())["splits"]
            named = ", ".join(str(split)[:40] for split in splits)
            raise InvalidData(
                folder, None, f"holds the splits {named}: name the folder of one, {folder.name}/{splits[0]} say"
            )
        files = [folder / entry["filename"] for entry in json.loads((folder / STATE).read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise (
            error
            if isinstance(error, InvalidData)
            else InvalidData(folder, None, "is not a folder that `datasets` saved: its state cannot be read")
        ) from None
    if outside := [file for file in files if file.parent != folder or not file.is_file()]:
        raise InvalidData(folder, None, f"its file {outside[0].name[:80]} is missing")
    return files


def parquet(path: Path) -> Iterator[tuple[int, Row]]:
    """Each row with its number."""
    yield from _numbered(path, "Parquet", _parquet_batches)


def arrow(path: Path) -> Iterator[tuple[int, Row]]:
    """Each row of an Arrow file (Feather's second version, too) or stream."""
    yield from _numbered(path, "Arrow", _arrow_batches)


def saved(folder: Path) -> Iterator[tuple[int, Row]]:
    """Each row of a folder that `datasets` saved."""
    number = 0
    for file in shards(folder):
        for _, row in arrow(file):
            number += 1
            yield number, row


def _numbered(path: Path, name: str, batches: Any) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
    except ImportError:
        raise InvalidData(path, None, f"{name} needs the package pyarrow on the rig; JSONL does not") from None
    number = 0
    try:
        for batch in batches(path):
            for row in batch.to_pylist():
                number += 1
                yield number, _without_nulls(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = number + 1 if number else None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InvalidData(path, where, f"not readable as {name}: {reason}", unit="row") from None


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow.ipc

    with pyarrow.memory_map(str(path)) as source:
        whole = source.read(6) == b"ARROW1"
        source.seek(0)
        if whole:
            with pyarrow.ipc.open_file(source) as file:
                for index in range(file.num_record_batches):
                    yield from _slices(file.get_batch(index))
        else:
            with pyarrow.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield from _slices(batch)


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _without_nulls(value: Any) -> Any:
    """Parquet fills every field of a struct; what JSON would leave out comes as None."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
