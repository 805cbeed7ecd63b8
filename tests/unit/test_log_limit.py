"""The bound of a run's log."""

import os
from pathlib import Path

from workers.log_limit import shorten

LIMIT = 10_000


def lines(count: int, start: int = 0) -> str:
    return "".join(f"line {number:06d}\n" for number in range(start, start + count))


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert shorten(log, LIMIT) == 0
    log.write_text(lines(100))
    assert shorten(log, LIMIT) == 0 and log.read_text() == lines(100)


def test_of_a_long_log_the_beginning_and_the_end_stay_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(lines(10_000))
    gone = shorten(log, LIMIT)
    beginning, _, end = log.read_text().partition(
        f"\n[Overnight left out {gone} bytes here: max_log_bytes is {LIMIT}.]\n\n"
    )
    assert lines(10_000).startswith(beginning) and beginning.endswith("\n")
    assert lines(10_000).endswith(end) and end.startswith("line ")
    assert len(beginning) + gone + len(end) == len(lines(10_000))
    assert LIMIT / 4 < log.stat().st_size < LIMIT


def test_a_program_that_holds_its_log_open_writes_on_behind_the_cut(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("ab", buffering=0) as writer:
        for turn in range(20):
            writer.write(lines(1_000, turn * 1_000).encode())
            shorten(log, LIMIT)
        writer.write(b"the end\n")
    assert log.read_text().endswith("line 019999\nthe end\n") and log.read_text().startswith("line 000000\n")
    assert log.stat().st_size < LIMIT


def test_a_log_without_any_line_end_is_bounded_too(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"." * 50_000)
    assert shorten(log, LIMIT) > 0 and log.stat().st_size < LIMIT


def test_a_link_in_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(lines(10_000))
    (tmp_path / "log.txt").symlink_to(other)
    try:
        shorten(tmp_path / "log.txt", LIMIT)
    except OSError:
        pass
    assert other.read_text() == lines(10_000)
    assert os.readlink(tmp_path / "log.txt") == str(other)
