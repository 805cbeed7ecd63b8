"""Files as people have them: formats told by their first bytes, and every wrong line named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from jobs.data import InvalidData, Reading, check, check_training, format_of, identity, read_rows, sha256_of

CHAT = {"messages": [{"role": "user", "content": "Where is bolt 7?"}, {"role": "assistant", "content": "Shelf A1."}]}
PAIR = {"prompt": "2+2=", "completion": " 4"}
Write = Callable[[Path], object]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def told(path: Path, objective: str = "sft") -> list[str]:
    with pytest.raises(InvalidData) as caught:
        check(path, Reading(objective))
    return [message for _, message in caught.value.told]


def table() -> pyarrow.Table:
    return pyarrow.Table.from_pylist([CHAT] * 700)


def write_stream(path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table().schema) as writer:
        writer.write_table(table())


def write_zstd(path: Path) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write((json.dumps(CHAT) + "\n").encode() * 700)


FORMATS: list[tuple[str, Write]] = [
    ("JSONL", lambda path: path.write_text((json.dumps(CHAT) + "\n") * 700)),
    ("JSONL", lambda path: path.write_bytes((json.dumps(CHAT) + "\r\n").encode() * 700)),
    ("JSONL", lambda path: path.write_bytes(gzip.compress((json.dumps(CHAT) + "\n").encode() * 700))),
    ("JSONL", write_zstd),
    ("JSON", lambda path: path.write_text(json.dumps([CHAT] * 700, indent=1))),
    ("JSON", lambda path: path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps([CHAT] * 700).encode())),
    ("Parquet", lambda path: pyarrow.parquet.write_table(table(), path)),
    ("Arrow", lambda path: pyarrow.feather.write_feather(table(), str(path))),
    ("Arrow", write_stream),
]


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_every_format_is_told_by_its_content_and_says_the_same(tmp_path: Path, name: str, write: Write) -> None:
    path = tmp_path / "0f3a"  # an upload has no name
    write(path)
    report = check_training(path)
    assert (report.rows, report.shape, report.format) == (700, "messages", name)
    assert next(row for _, row in read_rows(path)) == CHAT


def test_what_datasets_saved_is_read_as_it_is(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{**PAIR, "n": n} for n in range(10)])
    rows.save_to_disk(str(tmp_path / "one"), num_shards=3)
    report = check_training(tmp_path / "one")
    assert (report.rows, report.format) == (10, "dataset folder")
    assert [number for number, _ in read_rows(tmp_path / "one")] == list(range(1, 11))
    assert [row["n"] for _, row in read_rows(tmp_path / "one")] == list(range(10))
    assert len(report.sha256) == 64

    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "two"))
    assert told(tmp_path / "two") == ["holds the splits train, test: name the folder of one, two/train say"]
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    assert told(tmp_path / "one") == ["its file data-00001-of-00003.arrow is missing"]
    assert told(tmp_path) == ["is a folder, but not one that `datasets` saved (it has no state.json)"]


def test_a_change_inside_a_saved_dataset_is_seen(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "rows"
    datasets.Dataset.from_list([PAIR]).save_to_disk(str(folder))
    before, digest = identity(folder), sha256_of(folder)
    shard = next(folder.glob("*.arrow"))
    write_stream(shard)
    assert identity(folder) != before
    assert sha256_of(folder) != digest


# -- CSV ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_told_by_the_names_of_its_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(
        b"\xef\xbb\xbf" + delimiter.join(["id", "prompt", "completion"]).encode() + b"\r\n"
        + delimiter.join(["1", '"Zwei\r\nplus, zwei; ""="""', " 4 \N{DEGREE SIGN}"]).encode() + b"\r\n\r\n"
        + delimiter.join(["2", "x", "y"]).encode()
    )  # fmt: skip
    assert check_training(path).format == "CSV"
    rows = dict(read_rows(path))
    assert rows[2] == {"id": "1", "prompt": 'Zwei\r\nplus, zwei; "="', "completion": " 4 \N{DEGREE SIGN}"}
    assert check_training(path).rows == 2


def test_cells_of_csv_may_hold_messages_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    cell = json.dumps(CHAT["messages"]).replace('"', '""')
    path.write_text(f'messages,label\n"{cell}",true\n"{cell}",0\n')
    assert check(path, Reading("kto")).shape == "unpaired"
    assert check_training(path).shape == "messages"


def test_wrong_rows_of_csv_are_named(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"prompt,completion\na,b\na\na,\na,b,c\n")
    assert told(path) == [
        "line 3: has 1 cell, and the first line names 2 columns",
        "line 4: `completion` is missing",
        "line 5: has 3 cells, and the first line names 2 columns",
    ]
    path.write_bytes(b"prompt,completion\na,b\na,caf\xe9\n")
    assert "not UTF-8 text" in told(path)[0]


def test_a_csv_whose_columns_nobody_knows_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,b\n")
    assert "data_fields says which column is which" in told(path)[0]
    fields = (("answer", "completion"), ("question", "prompt"))
    assert check(path, Reading("sft", fields)).shape == "prompt_completion"
    assert (
        "a CSV file begins with a line of known column names" in told(lines(tmp_path / "upload", "question,answer"))[0]
    )


# -- JSON arrays --------------------------------------------------------------------------------------------------------


def test_rows_of_an_array_are_named_by_the_line_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([PAIR, {"prompt": "x"}, 7], indent=1))
    assert told(path) == [
        "line 6: `completion` is missing",
        "line 9: not a JSON object but int; every row is an object with fields",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}\n{"text": "b"}]', "line 2: not valid JSON: expecting ',' or ']' between two rows"),
        ('[{"text": "a"},\n{"text": b}]', "line 2: not valid JSON: Expecting value"),
        ('[{"text": "a"},\n{"text": "b', "line 2: not valid JSON: Unterminated string"),
        ('[{"text": "a"}', "line 1: not valid JSON: the array does not end"),
        ('[{"text": "a"}] []', "line 1: there is text behind the end of the array"),
        ('[{"text": "a"},\n{"text": ' + "[" * 100_000, "nested too deeply"),
        ("[]", "the file has no rows"),
        ("[", "the array does not end"),
    ],
)
def test_an_array_that_breaks_off_is_refused_where_it_does(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert message in told(path)[-1]


def test_an_array_is_read_in_pieces_wherever_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": 'ä🔩\\"]},[' * n, "n": -1.5e3, "ok": [True, None]} for n in range(1, 60)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr("jobs.data.json_rows.CHUNK_BYTES", size)
        assert [row for _, row in read_rows(path)] == rows


def test_an_endless_row_of_an_array_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.data.json_rows.MAX_LINE_BYTES", 2**16)
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "' + "x" * 2**18)
    assert "a row is longer than 0 MiB" in told(path)[0]


# -- what is wrong with files --------------------------------------------------------------------------------------------


def test_wrong_lines_are_told_up_to_twenty_and_then_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows", *[CHAT, "{", {"text": ""}] * 30)
    errors = told(path)
    assert errors[0].startswith("line 2: not valid JSON")
    assert errors[1] == "line 3: `text` is empty"
    assert len(errors) == 21
    assert errors[-1] == "… and 40 more lines like these"


def test_files_of_no_use_are_told_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(json.dumps(CHAT), encoding="utf-16")
    assert told(path) == ["line 1: not UTF-8 text but UTF-16; save the file as UTF-8"]
    path.write_bytes(b"FEA1....")
    assert "old Feather file" in told(path)[0]
    path.write_bytes(gzip.compress(json.dumps(CHAT).encode() * 99)[:40])
    assert "cannot be unpacked" in told(path)[0]
    path.write_bytes(b"ARROW1\0\0garbage")
    assert told(path)[0].startswith("not readable as Arrow")


def test_a_compressed_file_that_is_broken_in_the_middle_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    packed = gzip.compress(
        b"".join(json.dumps({"text": f"{n * 7919 % 10007}"}).encode() + b"\n" for n in range(90_000))
    )
    path.write_bytes(packed[: len(packed) * 2 // 3])
    assert "cannot be unpacked further" in told(path)[-1]


def test_the_format_of_jsonl_needs_no_rows(tmp_path: Path) -> None:
    assert format_of(lines(tmp_path / "rows")) == "JSONL"


def test_what_was_converted_is_counted(tmp_path: Path) -> None:
    other: dict[str, Any] = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    report = check_training(lines(tmp_path / "rows", CHAT, other, other))
    assert report.conversions == ("ShareGPT's `conversations` read as `messages` (2 of 3 rows)",)
