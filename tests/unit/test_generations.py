"""The file of answers: each once, in order, whatever was torn on the way."""

from pathlib import Path

from jobs.generations import Generations
from jobs.rundir import read_json_lines

ORDER = {"data_sha256": "0f", "temperature": 0.0}
BATCHES = [[4, 2], [0, 1], [3]]


def answers_in(folder: Path, order: dict[str, object] | None = None) -> Generations:
    return Generations(folder / "generations.jsonl", folder / "order.json", order or ORDER)


def batch(*rows: int) -> list[dict[str, object]]:
    return [{"index": row, "text": f"answer {row} ü\u2028"} for row in rows]


def rows(folder: Path) -> list[int]:
    return [answer["index"] for answer in read_json_lines(folder / "generations.jsonl")]


def test_answers_come_out_in_the_order_of_their_prompts(tmp_path: Path) -> None:
    answers = answers_in(tmp_path)
    answers.start_over()
    for numbers in BATCHES:
        answers.append(batch(*numbers))
    assert rows(tmp_path) == [4, 2, 0, 1, 3]
    assert [answer["index"] for answer in answers.finish()] == rows(tmp_path) == [0, 1, 2, 3, 4]


def test_a_torn_batch_is_dropped_whole_and_the_rest_stays(tmp_path: Path) -> None:
    answers = answers_in(tmp_path)
    answers.start_over()
    answers.append(batch(4, 2))
    answers.append(batch(0, 1))
    file = tmp_path / "generations.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert answers_in(tmp_path).resume(BATCHES) == {4, 2}
    assert rows(tmp_path) == [4, 2]


def test_a_last_line_without_its_end_does_not_count(tmp_path: Path) -> None:
    answers = answers_in(tmp_path)
    answers.start_over()
    answers.append(batch(4, 2))
    answers.append(batch(3))
    file = tmp_path / "generations.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    assert answers_in(tmp_path).resume(BATCHES) == {4, 2}


def test_answers_of_another_order_are_never_mixed_in(tmp_path: Path) -> None:
    answers = answers_in(tmp_path)
    answers.start_over()
    answers.append(batch(4, 2))
    assert answers_in(tmp_path, {**ORDER, "temperature": 0.7}).resume(BATCHES) == set()


def test_nothing_is_resumed_where_nothing_was(tmp_path: Path) -> None:
    assert answers_in(tmp_path).resume(BATCHES) == set()
