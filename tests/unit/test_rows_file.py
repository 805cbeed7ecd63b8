"""The file of measured rows: each once, in order, whatever was torn on the way."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from jobs.rows_file import Row, RowsFile
from jobs.rundir import read_json_lines

ORDER = {"data": "0f", "max_length": 64}


def file_in(folder: Path, order: dict[str, object] | None = None) -> RowsFile:
    return RowsFile(folder / "rows.jsonl", folder / "order.json", order or ORDER)


def rows(*indices: int) -> list[Row]:
    return [{"index": index, "answer": f"shelf {index} ü\u2028"} for index in indices]


@pytest.fixture
def begun(tmp_path: Path) -> RowsFile:
    file = file_in(tmp_path)
    file.start_over()
    file.append(rows(4, 2))
    file.append(rows(0))
    return file


def test_rows_come_out_in_their_order(begun: RowsFile) -> None:
    begun.finish()
    assert [row["index"] for row in begun] == [0, 2, 4]
    assert [row["index"] for row in read_json_lines(begun.path)] == [0, 2, 4]


@pytest.mark.parametrize("cut", [1, 5])
def test_a_torn_end_is_cut_off_and_what_comes_next_stands_on_a_line_of_its_own(begun: RowsFile, cut: int) -> None:
    begun.path.write_bytes(begun.path.read_bytes()[:-cut])
    again = file_in(begun.path.parent)
    assert again.resume() == {4, 2}
    again.append(rows(0, 1))
    again.finish()
    assert [row["index"] for row in again] == [0, 1, 2, 4]


def test_rows_of_another_order_are_never_mixed_in(begun: RowsFile) -> None:
    assert file_in(begun.path.parent, {**ORDER, "max_length": 65}).resume() == set()


def test_nothing_is_resumed_where_nothing_was(tmp_path: Path) -> None:
    assert file_in(tmp_path).resume() == set()


def test_what_came_in_with_the_data_goes_out_as_json(begun: RowsFile) -> None:
    ids = [date(2026, 1, 2), Decimal("1.50"), b"x", float("nan"), {"a": [float("inf"), 1.5]}]
    begun.append([{"index": 10 + at, "id": value} for at, value in enumerate(ids)])
    refuse = {"parse_constant": lambda word: pytest.fail(word)}
    told = [json.loads(line, **refuse) for line in begun.path.read_text().splitlines()[-len(ids) :]]
    assert [row["id"] for row in told] == ["2026-01-02", "1.50", "b'x'", None, {"a": [None, 1.5]}]
