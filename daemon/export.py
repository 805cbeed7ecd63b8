"""Telemetry as a file: CSV line by line, or Parquet.

    python -m daemon.export --home DIR --slot ID [...] --start S --end S --out FILE     Parquet

Parquet is made in a process of its own: pyarrow would stay in the API's memory.
"""

import argparse
import csv
import io
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from daemon.samples import STATES, Sample
from daemon.telemetry import open_readings

#: Columns in the units of `daemon.samples.Sample`; `state` as a word.
COLUMNS = ("slot", *Sample._fields)
LINES_PER_CHUNK = 2_000
RAW = f"SELECT {', '.join(Sample._fields)} FROM recent WHERE gid = ? AND ts >= ? AND ts < ? ORDER BY ts"  # noqa: S608


def rows(home: Path, slots: Sequence[str], start: float, end: float) -> Iterator[tuple[Any, ...]]:
    """Every second that is known of these slots, one slot after the other. Raises sqlite3.Error."""
    for slot in slots:
        opened = open_readings(home, slot)
        if opened is None:
            continue
        database, gid = opened
        with closing(database):
            for row in database.execute(RAW, (gid, start, end)):
                sample = Sample._make(row)
                yield (slot, *sample._replace(state=STATES[sample.state]))  # type: ignore[arg-type]


def csv_chunks(found: Iterator[tuple[Any, ...]]) -> Iterator[bytes]:
    """The rows as CSV, in pieces; what was not read is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, row in enumerate(found, 1):
        writer.writerow(row)
        if number % LINES_PER_CHUNK == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def write_parquet(found: Iterator[tuple[Any, ...]], path: Path) -> None:
    """The rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"slot": pa.dictionary(pa.int32(), pa.string()), "state": pa.dictionary(pa.int32(), pa.string())}
    schema = pa.schema([(name, types.get(name, pa.int64())) for name in COLUMNS])
    columns = list(zip(*found, strict=True)) or [()] * len(COLUMNS)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m daemon.export", description="Write telemetry as Parquet.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--slot", action="append", required=True)
    parser.add_argument("--start", type=float, required=True)
    parser.add_argument("--end", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    try:
        write_parquet(rows(wanted.home, wanted.slot, wanted.start, wanted.end), wanted.out)
    except sqlite3.Error as error:
        print(f"{wanted.home}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
