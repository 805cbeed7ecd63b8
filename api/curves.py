"""What a run folder tells while its job runs: the curves of metrics.jsonl, the end of log.txt, the files. Bounded reads only.

All of it is written by jobs, so none of it is trusted: sizes, numbers, names and bytes may be anything.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from api.files import Found, NoSuchFile, list_files, open_beneath
from api.wording import ESCAPE, UNPRINTABLE
from jobs.metrics import is_finite
from jobs.rundir import RunDir

#: Fields of a line that are no measurement.
NOT_METRICS = frozenset({"step", "epoch"})
#: A line's moment is no metric either, but tells where an attempt began.
TIME = "time"
MOST_CURVES = 24
#: Beyond this a curve keeps every second of its points.
MOST_KEPT = 20_000
#: A longer file is read over several looks.
READ_AT_ONCE_BYTES = 16 << 20
HEAD_BYTES = 128
#: Larger numbers are noise, and would not fit into an axis.
LARGEST = 1e30

TAIL_LINES, TAIL_BYTES, LINE_CHARACTERS = 200, 256 << 10, 2_000
MOST_FILES = 200

Curve = Sequence[tuple[float, float]]


@dataclass
class _Followed:
    """How far a file was read, and what was found."""

    inode: int
    #: Its first bytes: a new file may get the inode of the one before.
    head: bytes
    offset: int = 0
    torn: bytes = b""
    values: dict[str, dict[float, float]] = field(default_factory=dict)


class Curves:
    """Metric files by path. A live page asks every second: only what was added is parsed."""

    def __init__(self, kept: int = 16):
        self._kept = kept
        self._files: OrderedDict[Path, _Followed] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, folder: RunDir) -> dict[str, Curve]:
        """Every metric as (step, value) in the order of steps. Of a step that was done twice, the last counts."""
        with self._lock:
            known = self._follow(folder)
            return _sorted(known.values) if known else {}

    def times(self, folder: RunDir) -> Curve:
        """When each step was told, as (step, epoch seconds); as far as `read` has come."""
        with self._lock:
            known = self._files.get(folder.metrics)
            return sorted(known.values.get(TIME, {}).items()) if known else []

    def _follow(self, folder: RunDir) -> _Followed | None:
        path = folder.metrics
        known = self._files.pop(path, None)
        try:
            descriptor = open_beneath(folder.path, path.name)
        except NoSuchFile:
            return None
        with os.fdopen(descriptor, "rb") as file:
            facts, head = os.fstat(file.fileno()), os.pread(file.fileno(), HEAD_BYTES, 0)
            grew = (
                known and known.inode == facts.st_ino and known.offset <= facts.st_size and head.startswith(known.head)
            )
            if known is None or not grew:
                known = _Followed(facts.st_ino, head)
            _read_on(file, known)
        self._files[path] = known
        while len(self._files) > self._kept:
            self._files.popitem(last=False)
        return known


def curves_of(rows: Iterable[object]) -> dict[str, Curve]:
    """The same of rows that another rig has read."""
    return _sorted(_noted(rows))


def times_of(rows: Iterable[object]) -> Curve:
    """When each of their steps was told."""
    return sorted(_noted(rows).get(TIME, {}).items())


def _noted(rows: Iterable[object]) -> dict[str, dict[float, float]]:
    values: dict[str, dict[float, float]] = {}
    for row in rows:
        _note(values, row)
    return values


def _sorted(values: Mapping[str, Mapping[float, float]]) -> dict[str, Curve]:
    return {name: sorted(points.items()) for name, points in values.items() if name != TIME}


def _read_on(file: IO[bytes], known: _Followed) -> None:
    file.seek(known.offset)
    added = file.read(READ_AT_ONCE_BYTES)
    known.offset += len(added)
    *lines, known.torn = (known.torn + added).split(b"\n")
    if len(known.torn) > READ_AT_ONCE_BYTES:
        known.torn = b""  # a line without end is none
    for line in lines:
        try:
            _note(known.values, json.loads(line))
        except (ValueError, RecursionError):
            continue


def _note(values: dict[str, dict[float, float]], line: object) -> None:
    numbers = (
        {n: float(v) for n, v in line.items() if is_finite(v) and abs(v) <= LARGEST} if isinstance(line, dict) else {}
    )
    if "step" not in numbers:
        return
    for name, value in numbers.items():
        if name in NOT_METRICS or (name not in values and name != TIME and len(values) > MOST_CURVES):
            continue
        curve = values.setdefault(name, {})
        curve[numbers["step"]] = value
        if len(curve) > MOST_KEPT:
            values[name] = dict(sorted(curve.items())[::2])


def log_end(folder: RunDir) -> list[str]:
    """The last lines of the log as plain text: a progress bar shows its latest state, colours are gone."""
    try:
        descriptor = open_beneath(folder.path, folder.log.name)
    except NoSuchFile:
        return []
    try:
        length = os.fstat(descriptor).st_size
        text = os.pread(descriptor, TAIL_BYTES, max(0, length - TAIL_BYTES)).decode(errors="replace")
    finally:
        os.close(descriptor)
    return lines_of(text, cut=length > TAIL_BYTES)


def lines_of(text: str, *, cut: bool = False) -> list[str]:
    """The last lines of a log's text as plain text. `cut`: its first line may be a part of one."""
    lines = text.removesuffix("\n").split("\n") if text else []
    if cut and len(lines) > 1:
        del lines[0]
    return [plain(line) for line in lines[-TAIL_LINES:]]


def plain(line: str) -> str:
    """A line of a log as somebody reads it: without what a progress bar overwrote, without colours and controls."""
    shown = line.rstrip("\r").rpartition("\r")[2]
    clean = UNPRINTABLE.sub("", ESCAPE.sub("", shown))
    return clean if len(clean) <= LINE_CHARACTERS else clean[:LINE_CHARACTERS] + " …"


def plain_text(value: object, most: int) -> str:
    """The same of what may be several lines, or no text at all; of a longer one its first characters."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    shown = "\n".join(map(plain, text[: most + 1].split("\n")))
    return shown if len(text) <= most else f"{shown[:most]} …"


@dataclass(frozen=True)
class File:
    """A file that can be fetched, or a folder's sum when `files` is set."""

    path: str
    size_bytes: int
    files: int | None = None


def files(folder: RunDir) -> tuple[list[File], bool]:
    """What the run folder holds, results first; each checkpoint as one line. Second: whether there is more."""
    return listed(*list_files(folder.path))


def listed(found: Sequence[Found], more: bool) -> tuple[list[File], bool]:
    """The same of files that were listed already."""
    folder = RunDir(Path())
    shown = [File(file.path, file.size_bytes) for file in found if _is_shown(file.path)]
    results = [file for file in shown if file.path.startswith(f"{folder.output.name}/")]
    others = [file for file in shown if "/" not in file.path]
    listed = [*results, *others][:MOST_FILES]
    return [*listed, *_checkpoints(found, folder)], more or len(results) + len(others) > MOST_FILES


def _is_shown(path: str) -> bool:
    """Drafts that are being written begin with a dot."""
    return not any(part.startswith(".") for part in path.split("/"))


def _checkpoints(found: Sequence[Found], folder: RunDir) -> list[File]:
    inside: dict[str, list[int]] = {}
    for file in found:
        top, _, rest = file.path.partition("/")
        if top == folder.checkpoints.name and "/" in rest and _is_shown(file.path):
            inside.setdefault(f"{top}/{rest.partition('/')[0]}", []).append(file.size_bytes)
    return [File(path, sum(sizes), len(sizes)) for path, sizes in sorted(inside.items())][-MOST_FILES:]


def charted(curves: Mapping[str, Curve]) -> list[str]:
    """Which curves deserve a small chart of their own: two points or more, the loss aside."""
    return [name for name, points in curves.items() if name not in ("loss", "eval_loss") and len(points) > 1]
