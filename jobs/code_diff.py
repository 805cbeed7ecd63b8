"""Two working folders that came along, file by file: what was added, removed or changed, as `diff` tells it. Reads archives only."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs import snapshot

#: A larger file, or one that is no text, is only called changed.
MAX_TEXT_BYTES = 256 * 1024
#: The same of a text with more lines: to compare two takes difflib the third power of their number at worst.
MAX_COMPARED_LINES = 4_000
#: Lines that are told of one file, and of all.
MAX_LINES, MAX_LINES_IN_ALL = 200, 2_000
MAX_FILES = 500

How = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class FileChange:
    """One file that is not the same in both. `lines`: a unified diff, without its end when `cut`."""

    name: str
    how: How
    lines: tuple[str, ...] = ()
    cut: bool = False


def compare(before: Path, after: Path, *, labels: tuple[str, str]) -> tuple[list[FileChange], bool]:
    """What differs, by name, and whether there was more than is told. Raises snapshot.BadSnapshot."""
    one, other = snapshot.digests(before), snapshot.digests(after)
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    told = names[:MAX_FILES]
    texts = tuple(snapshot.read(path, told, MAX_TEXT_BYTES) for path in (before, after))
    found, left = [], MAX_LINES_IN_ALL
    for name in told:
        how: How = "added" if name not in one else "removed" if name not in other else "changed"
        if how != "changed" or not left:
            found.append(FileChange(name, how, cut=how == "changed"))
            continue
        lines = list(_lines(name, texts, labels))
        most = min(MAX_LINES, left)
        found.append(FileChange(name, how, tuple(lines[:most]), len(lines) > most))
        left -= len(found[-1].lines)
    return found, len(names) > len(told)


def of_texts(name: str, before: str, after: str, *, labels: tuple[str, str]) -> FileChange:
    """One text that is not the same in both."""
    lines = list(
        _lines(name, ({name: before.encode(errors="replace")}, {name: after.encode(errors="replace")}), labels)
    )
    return FileChange(name, "changed", tuple(lines[:MAX_LINES]), len(lines) > MAX_LINES)


def _lines(name: str, texts: Sequence[Mapping[str, bytes]], labels: tuple[str, str]) -> Iterator[str]:
    before, after = (_text(contents.get(name)) for contents in texts)
    if before is None or after is None:
        return
    old, new = before.splitlines(), after.splitlines()
    if max(len(old), len(new)) <= MAX_COMPARED_LINES:
        here, there = (f"{label}/{name}" for label in labels)
        yield from difflib.unified_diff(old, new, here, there, lineterm="")


def _text(content: bytes | None) -> str | None:
    if content is None or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
