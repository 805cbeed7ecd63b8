"""What differs between two texts is told within bounds: a job may have written them so that to compare them takes hours."""

from pathlib import Path

from jobs import code_diff, snapshot
from jobs.code_diff import MAX_COMPARED_LINES, MAX_LINES_IN_ALL

LABELS = ("1", "2")


def packed(place: Path, files: dict[str, str]) -> Path:
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    archive = place.with_suffix(".tar.gz")
    with archive.open("wb") as file:
        snapshot.pack(place, snapshot.listing(place).names, file)
    return archive


def test_a_text_of_very_many_lines_is_only_called_changed() -> None:
    long = "x\n" * (MAX_COMPARED_LINES + 1)
    assert code_diff.of_texts("a", long, long + "y\n", labels=LABELS).lines == ()
    assert "+y" in code_diff.of_texts("a", "x\n" * 100, "x\n" * 100 + "y\n", labels=LABELS).lines


def test_when_enough_is_told_no_further_file_is_compared(tmp_path: Path) -> None:
    names = [f"{number:02}.txt" for number in range(15)]
    before = packed(tmp_path / "a", dict.fromkeys(names, "old\n" * 300))
    after = packed(tmp_path / "b", dict.fromkeys(names, "new\n" * 300))
    found, more = code_diff.compare(before, after, labels=LABELS)
    assert not more and [change.how for change in found] == ["changed"] * 15
    assert sum(len(change.lines) for change in found) == MAX_LINES_IN_ALL
    assert all(change.cut for change in found)


def test_half_of_a_character_does_no_harm() -> None:
    assert "+?" in code_diff.of_texts("a", "x", "\ud800", labels=LABELS).lines
